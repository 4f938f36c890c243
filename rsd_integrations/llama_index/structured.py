"""Structured output in LlamaIndex's words."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from rsd_integrations.errors import BackendError

__all__ = ["LastJSONParser", "StructuredPrediction", "parsed", "response_format"]

Form = TypeVar("Form", bound=BaseModel)

_dispatcher = get_dispatcher(__name__)


class StructuredPrediction(LLM):
    """``structured_predict`` and its twins.

    By default a model that takes tools is made to call one (LlamaIndex's own way), any other to write a
    document of the form; either is enforced while it writes. ``pydantic_program_mode="llm"`` asks in words
    alone, and takes the last object of the answer that fits.
    """

    def structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Form:
        """An object of the form."""
        if self._by_tools():
            made: Form = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return made
        _begin(output_cls, prompt, prompt_args)
        if self.pydantic_program_mode == PydanticProgramMode.LLM:
            program = _in_words(self, output_cls, prompt)
            return _end(output_cls, program(llm_kwargs=llm_kwargs, **prompt_args))
        messages = self._asking(output_cls, prompt, prompt_args)
        response = self.chat(messages, response_format=response_format(output_cls), **(llm_kwargs or {}))
        return _end(output_cls, parsed(output_cls, response))

    async def astructured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Form:
        """An object of the form."""
        if self._by_tools():
            made: Form = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return made
        _begin(output_cls, prompt, prompt_args)
        if self.pydantic_program_mode == PydanticProgramMode.LLM:
            program = _in_words(self, output_cls, prompt)
            return _end(output_cls, await program.acall(llm_kwargs=llm_kwargs, **prompt_args))
        messages = self._asking(output_cls, prompt, prompt_args)
        form = response_format(output_cls)
        response = await self.achat(messages, response_format=form, **(llm_kwargs or {}))
        return _end(output_cls, parsed(output_cls, response))

    def stream_structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Form, None, None]:
        """The object: a document or a call is one step of RSD, so it comes whole."""
        whole = self.structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _dispatcher.event(LLMStructuredPredictInProgressEvent(output=whole))
        yield whole

    async def astream_structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Form, None]:
        """The object: a document or a call is one step of RSD, so it comes whole."""

        async def alone() -> AsyncGenerator[Form, None]:
            whole = await self.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            _dispatcher.event(LLMStructuredPredictInProgressEvent(output=whole))
            yield whole

        return alone()

    def _by_tools(self) -> bool:
        """Whether LlamaIndex's own programs do it."""
        mode = self.pydantic_program_mode
        if mode == PydanticProgramMode.DEFAULT:
            return self.metadata.is_function_calling_model
        return mode != PydanticProgramMode.LLM

    def _asking(
        self, output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any]
    ) -> list[ChatMessage]:
        """The prompt with the form in it: what is enforced is better known."""
        messages = self._get_messages(prompt, **prompt_args)
        return LastJSONParser(output_cls).format_messages(messages)


def response_format(form: type[BaseModel]) -> dict[str, Any]:
    """The call parameter that makes an answer a document of this form."""
    named = {"name": form.__name__, "schema": form.model_json_schema()}
    return {"type": "json_schema", "json_schema": named}


def parsed(form: type[Form], response: ChatResponse) -> Form:
    """The object that an answer is.

    Raises:
        BackendError: the answer was cut off at a limit.
        pydantic.ValidationError: it does not fit the form (what a schema cannot say, no grammar enforces).
    """
    text = response.message.content or ""
    if response.raw and response.raw["finish_reason"] == "length":
        raise BackendError(
            f"the answer was cut off at a limit of tokens or steps: {text[-200:]!r}.",
            hint="Raise max_tokens or max_steps, or bound the lengths in the form.",
        )
    return form.model_validate_json(text)


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
                fitting: Form = self._output_cls.model_validate(found)
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
        except ValueError:
            start = text.find("{", start + 1)
        else:
            yield found
            start = text.find("{", end)


def _in_words(
    llm: LLM, form: type[BaseModel], prompt: BasePromptTemplate
) -> LLMTextCompletionProgram[BaseModel]:
    # The program writes its parser into the prompt it is given.
    parser = LastJSONParser(form)
    return LLMTextCompletionProgram.from_defaults(output_parser=parser, llm=llm, prompt=copy.copy(prompt))


def _begin(form: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any]) -> None:
    event = LLMStructuredPredictStartEvent(output_cls=form, template=prompt, template_args=prompt_args)
    _dispatcher.event(event)


def _end(form: type[Form], found: Any) -> Form:
    assert isinstance(found, form)
    _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found
