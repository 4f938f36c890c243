"""ChatRSD: RSD as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any, cast

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict, model_validator

from rsd_integrations.adapters.calls import CallSettings
from rsd_integrations.adapters.identity import identifying_params
from rsd_integrations.adapters.running import aevents, events
from rsd_integrations.adapters.secrets import without_secrets
from rsd_integrations.adapters.settings import OPTIONS, RSDSettings, unset_limits
from rsd_integrations.adapters.specs import plain
from rsd_integrations.documented import documented
from rsd_integrations.langchain.batches import Batched
from rsd_integrations.langchain.caching import cache_key
from rsd_integrations.langchain.counting import count_tokens
from rsd_integrations.langchain.errors import langchain_errors
from rsd_integrations.langchain.messages import Chunks, to_chat, to_result, to_turns
from rsd_integrations.langchain.params import (
    Guess,
    call_of,
    langsmith_params,
    profile_of,
    traced_params,
)
from rsd_integrations.langchain.tools import binding, structured
from rsd_integrations.langchain.tracing import StepReporter, announced, arunning, running, take_running
from rsd_integrations.output import Output
from rsd_integrations.types import ROLES, Generation, StepEvent


@documented
class ChatRSD(Batched, RSDSettings):
    """Draft, PRM and target as one chat model.

    Every field of ``RSDConfig`` is a field here, and can be given per call, bound, or made
    configurable. Objects that name the same models, with the same options of loading, share the loaded
    models and the engine's batches. Consecutive messages of one role become one turn, with a blank line
    between them.

    Example::

        llm = ChatRSD(draft="...", target="...", prm="...", threshold=0.7)
        llm.invoke("What is 17 * 23?", threshold=0.9).response_metadata["rsd"]
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    streaming: bool | None = None
    """True: ``invoke`` streams tokens to callbacks, too. False: ``stream`` gives the answer as one chunk."""

    @model_validator(mode="before")
    @classmethod
    def _without_guess(cls, data: Any) -> Any:
        # LangChain makes configured objects of all that another one holds, which others set for it.
        guessed = isinstance(data, dict) and isinstance(data.get("profile"), Guess)
        return {name: value for name, value in data.items() if name != "profile"} if guessed else data

    @model_validator(mode="after")
    def _set_rsd_version(self) -> ChatRSD:
        from rsd_integrations import __version__

        self._add_version("rsd-integrations", __version__)
        return self

    # The two hooks of every chat model and their async twins: folds over the engine's events. None closes the
    # generator it reads: a loop that shuts down closes all of them at once, and reports one closing another.

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        generation = None
        with langchain_errors():
            call = call_of(self, stop, kwargs)
            for event in self._events(messages, call, run_manager):
                generation = event.generation
        return to_result(cast(Generation, generation), call.model_name(self.model_names))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        generation = None
        with langchain_errors():
            call = call_of(self, stop, kwargs)
            async for event in await self._aevents(messages, call, run_manager):
                generation = event.generation
        return to_result(cast(Generation, generation), call.model_name(self.model_names))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            call = call_of(self, stop, kwargs)
            happening = self._events(messages, call, run_manager)
            chunks = Chunks(call.model_name(self.model_names))
            for event in happening:
                yield from chunks.of(event)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with langchain_errors():
            call = call_of(self, stop, kwargs)
            happening = await self._aevents(messages, call, run_manager)
            chunks = Chunks(call.model_name(self.model_names))
            async for event in happening:
                for chunk in chunks.of(event):
                    yield chunk

    def _events(
        self, messages: list[BaseMessage], call: CallSettings, run: BaseRunManager | None
    ) -> Iterator[StepEvent]:
        chat, left = to_chat(messages), take_running()
        pipe = self.load()
        return events(pipe, chat, StepReporter(run or left, call.over(pipe), self.model_names))

    async def _aevents(
        self, messages: list[BaseMessage], call: CallSettings, run: BaseRunManager | None
    ) -> AsyncGenerator[StepEvent, None]:
        chat, left = to_chat(messages), take_running()
        pipe = await self.aload()
        return aevents(pipe, chat, StepReporter(run or left, call.over(pipe), self.model_names))

    # LangChain passes the run to these methods, but not to the ``_stream`` or ``_astream`` that they may
    # call: it is left where ``take_running`` finds it.

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with running(run_manager):
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with arunning(run_manager):
            return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Committed text, step by step."""
        config, run = announced(self, config, CallbackManager)
        chunks = super().stream(input, config, stop=stop, **kwargs)
        with running(run):
            first = next(chunks, None)
        if first is not None:
            yield first
            yield from chunks

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Committed text, step by step."""
        config, run = announced(self, config, AsyncCallbackManager)
        chunks = super().astream(input, config, stop=stop, **kwargs)
        with running(run):
            first = await anext(chunks, None)
        if first is not None:
            yield first
        async for chunk in chunks:
            yield chunk

    @langchain_errors()
    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: Any = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools it may call.

        Args:
            tools: functions, ``@tool`` tools, Pydantic models, OpenAI tool dicts, ...
            tool_choice: "auto" (default), "none", "any" or "required", or the name of the tool that has
                to be called. A forced call is enforced token by token, in draft and target alike.
            strict: True: the arguments of every call keep to the tool's schema.
            parallel_tool_calls: False: one call at most.
            response_format: form of an answer that calls no tool, in the words of OpenAI's API.
            kwargs: further parameters of the call.

        Raises:
            ConfigError: one of ``tools`` is no tool, or the models' chat templates take none. On a running
                event loop templates are checked only if the models are loaded, else at the first call.
            ModelError: a tokenizer cannot be read, to see whether its template takes tools.
            BackendError: likewise, a server cannot be asked.
        """
        bound = binding(
            tools,
            tool_choice=tool_choice,
            strict=strict,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
        )
        self.source.check_output(Output.of(**bound))
        return self.bind(**bound, **kwargs)

    @langchain_errors()
    def with_structured_output(  # type: ignore[override]
        self,
        schema: Any = None,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model with answers that are objects of a schema, enforced while it writes.

        Args:
            schema: Pydantic model (answers are instances), TypedDict or JSON schema (dicts).
            method: "json_schema" (default): the answer is one JSON document, by any model;
                "function_calling": it is a forced call, by a model that takes tools; "json_mode": some
                JSON object, which the prompt has to describe.
            include_raw: give {"raw": message, "parsed": object, "parsing_error": error or None}.
            strict: True: refuse schemas with keywords that cannot be enforced token by token.

        Raises:
            ConfigError: the method is unknown, ``schema`` is no schema, the models take no tools, or
                "json_mode" is to be strict.
            ModelError, BackendError: as ``bind_tools``.
        """
        return structured(self, schema, method=method, include_raw=include_raw, strict=strict)

    @langchain_errors()
    def get_token_ids(self, text: str) -> list[int]:
        """A text in the target's tokens."""
        return self.custom_get_token_ids(text) if self.custom_get_token_ids else self.load().token_ids(text)

    @langchain_errors()
    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Length of a chat in the target's tokens, its chat template and tools included.

        Parts of a chat, which ``trim_messages`` asks about, are counted too: one that the template refuses to
        render, as its texts and the frame that the template puts around each turn.
        """
        output = Output.of(**binding(tools or []))
        return count_tokens(self.load(), to_turns(messages), output, self.chat_template_kwargs)

    # What LangChain wants to know of a model.

    @property
    def _llm_type(self) -> str:
        return "rsd"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return identifying_params(self)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        stop, shown = traced_params(self, stop, kwargs)
        return super()._get_invocation_params(stop, **shown)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return langsmith_params(self, stop, kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return cache_key(self, stop, kwargs)

    def _resolve_model_profile(self) -> ModelProfile | None:
        return profile_of(self)

    def _loaded(self) -> None:
        # With the models loaded the whole profile is known. One that the user set stays.
        if isinstance(self.profile, Guess) and self.profile != (known := profile_of(self)):
            self.profile = known

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where saved objects say that this class is: the public module."""
        return ["rsd_integrations", "langchain"]

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Yes: ``load(dumpd(llm), allowed_objects=[ChatRSD], valid_namespaces=["rsd_integrations"])``."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Data from which ``load`` makes an equal object, but for callbacks, ``on_step``, secrets and what
        LangChain never saves (tags, metadata, cache), which have to be given anew. ``load`` refuses live
        models and a weighting that is a function.
        """
        made = super().to_json()
        kwargs: dict[str, Any] = cast(dict[str, Any], made).get("kwargs") or {}
        for name in unset_limits(self):
            kwargs.pop(name, None)
        return made

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Fields that are saved (and traced) in another form than they are kept: plain, without secrets."""
        given = {name: getattr(self, name) for name in (*ROLES, *OPTIONS, "dtype")}
        return {name: plain(without_secrets(value)) for name, value in given.items() if value is not None}
