"""RSDLLM: RSD as a LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from contextvars import copy_context
from typing import Any, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from pydantic import (
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
    model_validator,
)

from rsd_integrations.adapters.calls import TOOLS, CallSettings, call_settings
from rsd_integrations.adapters.identity import identifying_params
from rsd_integrations.adapters.running import aevents, events
from rsd_integrations.adapters.settings import LIMITS, LOADING, unset_limits
from rsd_integrations.adapters.sources import live_name
from rsd_integrations.adapters.specs import POCKET, plain
from rsd_integrations.documented import documented
from rsd_integrations.errors import ConfigError, PromptError
from rsd_integrations.llama_index.asked import AskedByEngines, is_asking, seen
from rsd_integrations.llama_index.calling import ToolCalling
from rsd_integrations.llama_index.messages import REACT_STOP, Answer, is_react, to_chat
from rsd_integrations.llama_index.streams import alast, last, told_astream, told_stream
from rsd_integrations.llama_index.structured import StructuredPrediction
from rsd_integrations.llama_index.tracing import StepSpans, typed
from rsd_integrations.protocols import FREE
from rsd_integrations.types import ROLES, Message

_USUAL_FRAME = 64
"""Tokens that most chat templates put around a text at most."""

Response = TypeVar("Response", ChatResponse, CompletionResponse)


@documented
class RSDLLM(StructuredPrediction, AskedByEngines, ToolCalling, CustomLLM):
    """Draft, PRM and target as one LLM.

    Every field of ``RSDConfig`` is a field here, and can be given per call. Objects that name the same
    models, with the same options of loading, share the loaded models and the engine's batches. A chat is
    rendered for each model by its own chat template; a completion is one user turn. Consecutive messages of
    one role become one turn, with a blank line between them.

    Example::

        llm = RSDLLM(draft="...", target="...", prm="...", threshold=0.7)
        llm.complete("What is 17 * 23?", threshold=0.9).raw["rsd"]
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_assignment=True)

    react_stop: bool = True
    """Stop at "Observation:" in chats in LlamaIndex's ReAct format, whose agent passes no stop words."""

    steps_to_workflow: bool = False
    """Send an ``RSDWorkflowEvent`` for each step into the event stream of the workflow or agent that makes
    the call. Calls from threads other than its event loop's (sync methods in sync tools) send none."""

    @model_validator(mode="after")
    def _templates_are_the_models(self) -> RSDLLM:
        for name, given in (
            ("messages_to_prompt", self.messages_to_prompt not in (None, generic_messages_to_prompt)),
            ("query_wrapper_prompt", self.query_wrapper_prompt is not None),
        ):
            if given:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r:.100} would not be used.",
                    hint="Chats go through the chat templates of draft and target; give completion_to_prompt "
                    "or system_prompt instead.",
                )
        return self

    @classmethod
    def class_name(cls) -> str:
        """Its name in serialised data."""
        return "RSDLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex wants to know of the model. Before the first call this may load tokenizers, or ask
        servers.

        LlamaIndex fills ``context_window`` with texts, so what chat templates put around these is taken off
        it: as measured, or before the models are loaded 64 tokens at most. What is packed for a query leaves
        room for a system prompt; the memory of chats does not.

        Raises:
            RSDError: a tokenizer cannot be loaded, or a server does not answer.
        """
        # ``takes_tools`` goes first: it downloads the models' configs, from which the window is read.
        takes_tools, window = self.source.takes_tools, self.window
        frame = self._frame(window)
        # A template that takes most of it is left to the call to refuse, which says why.
        window -= frame if frame < window // 2 else 0
        return LLMMetadata(
            context_window=window,
            num_output=min(self.max_tokens or window // 4, window - 1),
            is_chat_model=True,
            is_function_calling_model=takes_tools,
            model_name=self.model or self.model_names["target"],
        )

    def _frame(self, window: int) -> int:
        pipe = self.source.loaded
        if pipe is None or pipe.closed:
            return min(_USUAL_FRAME, window // 16)
        chat, variables = to_chat([ChatMessage("x")], self.system_prompt), self.chat_template_kwargs
        writers = pipe.backend.draft, pipe.backend.target
        # A system prompt's text LlamaIndex takes off itself, for queries. Templates may leave some of it out.
        said = "x", self.system_prompt or ""
        frames = (
            writer.count(chat, FREE, variables) - sum(len(writer.encode(text)) for text in said)
            for writer in writers
        )
        return max(0, *frames)

    def to_payload(self) -> dict[str, Any]:
        """What traces say of the model: nothing that has to be loaded, and no secrets."""
        params = identifying_params(self)
        return {"class_name": self.class_name(), "model_name": params.pop("model"), **params}

    # Completions and chats: LlamaIndex's decorators around all eight, and one core without them.

    @typed(llm_completion_callback())
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a text. Further parameters: fields of ``RSDConfig``, ``timeout``, ``on_step``, ..."""
        return last(self._stream(self._texts(prompt, formatted, kwargs), kwargs, Answer.as_completion))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Committed text, step by step. Closing or dropping the stream stops the models."""

        def start() -> CompletionResponseGen:
            return self._stream(self._texts(prompt, formatted, kwargs), kwargs, Answer.as_completion)

        return told_stream(llm_completion_callback(), self, prompt, kwargs, start)

    @typed(llm_chat_callback())
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat. Parameters as for ``complete``; tools and ``response_format`` as in OpenAI's API."""
        return last(self._stream(messages, kwargs, Answer.as_chat))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Committed text, step by step. Closing or dropping the stream stops the models."""

        def start() -> ChatResponseGen:
            return self._stream(messages, kwargs, Answer.as_chat)

        return told_stream(llm_chat_callback(), self, messages, kwargs, start)

    @typed(llm_completion_callback())
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a text; cancelling stops the models within a round."""
        return await alast(
            self._astream(self._texts(prompt, formatted, kwargs), kwargs, Answer.as_completion)
        )

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Committed text, step by step."""

        def start() -> CompletionResponseAsyncGen:
            return self._astream(self._texts(prompt, formatted, kwargs), kwargs, Answer.as_completion)

        return await told_astream(llm_completion_callback(), self, prompt, kwargs, start)

    @typed(llm_chat_callback())
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat; cancelling stops the models within a round."""
        return await alast(self._astream(messages, kwargs, Answer.as_chat))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Committed text, step by step."""

        def start() -> ChatResponseAsyncGen:
            return self._astream(messages, kwargs, Answer.as_chat)

        return await told_astream(llm_chat_callback(), self, messages, kwargs, start)

    def _stream(
        self,
        messages: Sequence[ChatMessage],
        kwargs: dict[str, Any],
        shown: Callable[[Answer], Response],
    ) -> Generator[Response, None, None]:
        asked = is_asking()
        with seen(asked):
            chat, call = self._request(messages, kwargs)
        context = copy_context()

        def states() -> Generator[Response, None, None]:
            with seen(asked):
                pipe = self.load()
                answer = Answer(call.model_name(self.model_names))
                spans = StepSpans(call.over(pipe), context, to_workflow=self.steps_to_workflow)
                with closing(events(pipe, chat, spans)) as happening:
                    for event in happening:
                        if answer.take(event):
                            yield shown(answer)

        return states()

    def _astream(
        self,
        messages: Sequence[ChatMessage],
        kwargs: dict[str, Any],
        shown: Callable[[Answer], Response],
    ) -> AsyncGenerator[Response, None]:
        asked = is_asking()
        with seen(asked):
            chat, call = self._request(messages, kwargs)
        context = copy_context()

        async def states() -> AsyncGenerator[Response, None]:
            with seen(asked):
                pipe = await self.aload()
                answer = Answer(call.model_name(self.model_names))
                spans = StepSpans(call.over(pipe), context, to_workflow=self.steps_to_workflow)
                async with aclosing(aevents(pipe, chat, spans)) as happening:
                    async for event in happening:
                        if answer.take(event):
                            yield shown(answer)

        return states()

    def _request(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[list[Message], CallSettings]:
        """Turns and settings of a call: checked at once, not when a stream is first read."""
        chat = to_chat(messages, self.system_prompt)
        # LlamaIndex's DocumentContextExtractor sends any model headers for Anthropic's servers, ragas
        # asks any for one answer.
        kwargs = {
            name: value
            for name, value in kwargs.items()
            if name != "extra_headers" and (name, value) != ("n", 1)
        }
        if self.react_stop and kwargs.get("stop") is None and is_react(messages):
            kwargs = {**kwargs, "stop": (*self.stop, REACT_STOP)}
        return chat, call_settings(self, kwargs)

    def _texts(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> list[ChatMessage]:
        for name in TOOLS:
            if kwargs.get(name) is not None:
                raise ConfigError(
                    f"{name}={kwargs[name]!r:.200} is for chats: a completion has no place for calls.",
                    hint=f"Use chat(messages, {name}=...), or chat_with_tools(tools, text).",
                )
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt must be a string, not {prompt!r:.200}.", hint="Use chat(messages).")
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(prompt)]

    # ``to_chat`` puts the system prompt in front of every chat: LlamaIndex must not add it once more.

    def _extend_messages(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        return messages

    def _extend_prompt(self, formatted_prompt: str) -> str:
        return formatted_prompt

    # Saving and restoring.

    def __setstate__(self, state: dict[str, Any]) -> None:
        # LlamaIndex makes the object anew from all fields: limits that nobody set would count as set.
        unset = set(LIMITS) - state["__pydantic_fields_set__"]
        fields = {name: value for name, value in state["__dict__"].items() if name not in unset}
        super().__setstate__({**state, "__dict__": fields})

    @model_validator(mode="before")
    @classmethod
    def _without_its_name(cls, data: Any) -> Any:
        # LlamaIndex writes class_name into everything it saves, and only ``from_dict`` removes it again.
        if isinstance(data, dict) and data.get("class_name") == cls.class_name():
            return {name: value for name, value in data.items() if name != "class_name"}
        return data

    @field_serializer("weighting")
    def _name_functions(self, value: Any) -> str:
        return live_name(value) if callable(value) else str(value)

    @model_serializer(mode="wrap")
    def custom_model_dump(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Plain data, also as part of another object (ingestion caches tell extractors apart by their dumps):
        live models, pipelines and functions appear as names.
        """
        models = (*ROLES, *LOADING)
        left_out: Sequence[str] = unset_limits(self)
        saved = {name: plain(getattr(self, name)) for name in models}
        if not self.is_portable:
            left_out = models
            saved = {name: type(self).model_fields[name].default for name in models}
            named = isinstance(self.pipeline, str) and self.pipeline != POCKET
            saved["pipeline"] = self.pipeline if named else self.source.name
        # The base class dumps the object on which it is called: here a copy, which holds names.
        data = super(RSDLLM, self.model_copy(update=saved)).custom_model_dump(handler, info)
        return {name: value for name, value in data.items() if name not in left_out}

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Plain data from which ``from_dict`` makes an equal object over the same models, except for
        ``on_step``, callbacks, prompt functions and secrets, which have to be given anew. Live models and
        pipelines are saved by name; only this process can find them again.

        Raises:
            ConfigError: the weighting is a function.
        """
        if callable(self.weighting):
            raise ConfigError(
                f"weighting={self.weighting!r} is a function, which cannot be saved.",
                hint="Use one of the named weightings, or set it again after from_dict.",
            )
        return super().to_dict(**kwargs)
