"""Structured output in LlamaIndex's words."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from rsd_integrations.adapters.settings import RSDSettings
from rsd_integrations.adapters.whole import no_document
from rsd_integrations.errors import AskedError, ConfigError, PromptLengthError
from rsd_integrations.llama_index.asked import aloaded, asking, seen
from rsd_integrations.llama_index.tools import cut, refuse
from rsd_integrations.raising import Converting

Form = TypeVar("Form", bound=BaseModel)

_dispatcher = get_dispatcher(__name__)


class StructuredPrediction(LLM, RSDSettings):
    """``structured_predict`` and its twins.

    By default a model that takes tools is made to call one (LlamaIndex's own way), any other to write a
    document of the form; either is enforced while it writes. Lists, unions, strict forms and forms that
    refer to themselves are written as documents. ``pydantic_program_mode="llm"`` asks in words alone, and
    takes the last object of the answer that fits; other modes are LlamaIndex's own programs.
    """

    def structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Form:
        """An object of the form."""
        return _end(self._whole(output_cls, prompt, llm_kwargs, prompt_args))

    async def astructured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Form:
        """An object of the form."""
        return _end(await self._awhole(output_cls, prompt, llm_kwargs, prompt_args))

    def stream_structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Form, None, None]:
        """The object: a document or a call is one step of RSD, so it comes whole."""
        whole = self._whole(output_cls, prompt, llm_kwargs, prompt_args)
        _dispatcher.event(LLMStructuredPredictInProgressEvent(output=whole))
        yield _end(whole)

    async def astream_structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Form, None]:
        """The object: a document or a call is one step of RSD, so it comes whole."""

        async def alone() -> AsyncGenerator[Form, None]:
            whole = await self._awhole(output_cls, prompt, llm_kwargs, prompt_args)
            _dispatcher.event(LLMStructuredPredictInProgressEvent(output=whole))
            yield _end(whole)

        return alone()

    def _whole(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> Form:
        with asking(), _fitting(output_cls):
            given, program = self._begun(output_cls, prompt, llm_kwargs, prompt_args)
            if program is not None:
                return cast(Form, program(llm_kwargs=given, **prompt_args))
            messages, given, read = self._written(output_cls, prompt, given, prompt_args)
            return read(output_cls, self.chat(messages, **given))

    async def _awhole(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> Form:
        with asking(), _fitting(output_cls):
            await aloaded(self)
            given, program = self._begun(output_cls, prompt, llm_kwargs, prompt_args)
            if program is not None:
                return cast(Form, await program.acall(llm_kwargs=given, **prompt_args))
            messages, given, read = self._written(output_cls, prompt, given, prompt_args)
            return read(output_cls, await self.achat(messages, **given))

    def _begun(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[dict[str, Any], BasePydanticProgram[Form] | None]:
        """Parameters of the call, and the program of LlamaIndex's that makes it, if one does."""
        given = _own_form(llm_kwargs)
        event = LLMStructuredPredictStartEvent(
            output_cls=output_cls, template=prompt, template_args=prompt_args
        )
        _dispatcher.event(event)
        if not self._by_tools(output_cls):
            return given, None
        mode = self.pydantic_program_mode
        return given, get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode)

    def _by_tools(self, output_cls: type[BaseModel]) -> bool:
        """Whether a program of LlamaIndex's own makes the object."""
        mode = self.pydantic_program_mode
        if mode not in (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION):
            return mode != PydanticProgramMode.LLM
        # LlamaIndex's tools lose all but the root's properties: for lists, unions and forms that refer to
        # themselves nothing would be enforced.
        if "properties" not in output_cls.model_json_schema():
            return False
        # LlamaIndex validates arguments as Python objects: strict forms refuse the string of a date there.
        if output_cls.model_config.get("strict"):
            return False
        return mode == PydanticProgramMode.FUNCTION or self.metadata.is_function_calling_model

    def _written(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any],
        prompt_args: dict[str, Any],
    ) -> tuple[list[ChatMessage], dict[str, Any], Callable[[type[Form], ChatResponse], Form]]:
        """What to ask and how, and how to read the answer. The prompt holds the form even where it is
        enforced: a model should know what it is held to.
        """
        messages = LastJSONParser(output_cls).format_messages(self._get_messages(prompt, **prompt_args))
        if self.pydantic_program_mode == PydanticProgramMode.LLM:
            return messages, llm_kwargs, in_words
        return messages, {**llm_kwargs, "response_format": response_format(output_cls)}, parsed


def response_format(form: type[BaseModel]) -> dict[str, Any]:
    """The call parameter that makes an answer a document of this form."""
    named = {"name": form.__name__, "schema": form.model_json_schema()}
    return {"type": "json_schema", "json_schema": named}


def parsed(form: type[Form], response: ChatResponse) -> Form:
    """The object that an answer is.

    Raises:
        BackendError: the answer was cut off, at a limit or by a stop string.
        pydantic.ValidationError: it does not fit the form (what a schema cannot say, no grammar enforces).
    """
    text = response.message.content or ""
    refuse(cut(response, "answer") or no_document(text))
    return form.model_validate_json(text)


def in_words(form: type[Form], response: ChatResponse) -> Form:
    """The last object in an answer that fits.

    Raises:
        ValueError: none does.
    """
    return LastJSONParser(form).parse(response.message.content or "")


class LastJSONParser(PydanticOutputParser[Form]):
    r"""Reads the last object of a text that fits: ``\boxed{}`` and other braces before it do not matter."""

    def parse(self, text: str) -> Form:
        """The object.

        Raises:
            ValueError: nothing in the text fits.
        """
        error: Exception | None = None
        for found in reversed(list(_objects(text))):
            try:
                # As JSON: there alone a strict model takes a string for a date.
                fitting: Form = self._output_cls.model_validate_json(json.dumps(found))
            except ValidationError as wrong:
                error = error or wrong
            else:
                return fitting
        raise ValueError(
            f"no JSON object of {self._output_cls.__name__} in {text[-300:]!r}: {error or 'there is none'}"
        )


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text that are not inside of another one."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
        else:
            yield found
            start = text.find("{", end)


def _fitting(form: type[BaseModel]) -> Converting[AskedError]:
    """Say why prompt and form are too long: LlamaIndex fills the window up to ``num_output``, and does not
    count what the form adds.
    """

    def told(error: AskedError) -> AskedError | None:
        if not isinstance(error.__cause__, PromptLengthError):
            return None
        size = len(json.dumps(form.model_json_schema()))
        hint = (
            f"The schema of {form.__name__} takes {size} characters of the prompt, which LlamaIndex does not "
            "count: leave max_tokens out, if it is set."
        )
        made = AskedError(error.message, hint=f"{error.hint} {hint}")
        made.__cause__ = error.__cause__
        return made

    return Converting(AskedError, told)


def _own_form(llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Parameters of the call: a copy, because LlamaIndex's programs take some out.

    Raises:
        AskedError: they ask for another form.
    """
    given = dict(llm_kwargs or {})
    for name in ("response_format", "tools"):
        if name in given:
            with seen(by_llama_index=True):
                raise ConfigError(
                    f"llm_kwargs={given!r:.200} ask for another form than output_cls.",
                    hint=f"Leave {name} out, or use chat(messages, {name}=...).",
                )
    return given


def _end(found: Form) -> Form:
    _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found
