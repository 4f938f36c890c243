"""Programs of LlamaIndex, which ask the model by themselves: what they read, and what their users see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

import pytest
from llama_index.core import Document, SummaryIndex, get_response_synthesizer
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, Field, RootModel

from rsd_integrations.errors import AskedError, BackendError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.llama_index.messages import to_chat
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.backends.test_constraints import loaded


class Sum(BaseModel):
    """A sum."""

    number: int


INDEX = SummaryIndex.from_documents([Document(text="The sky is blue.")])
GOOD = {"Sum": {"number": 5}, "StructuredRefineResponse": {"query_satisfied": True, "answer": "blue, größer"}}


def script(prompt: Any, index: int, text: str, output: Any) -> str | None:
    """Calls the first tool that it is given."""
    if index:
        return None
    (name, _), *_ = output.functions
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': GOOD[name]})}\n</tool_call>"


@pytest.fixture
def pipe() -> Iterator[RSDPipeline]:
    """Models that take tools."""
    with scripted_pipeline(script, window=3000) as made:
        yield made


def program(llm: RSDLLM) -> Any:
    return FunctionCallingProgram.from_defaults(Sum, prompt_template_str="Add 2 and 3.", llm=llm)


def filtering(llm: RSDLLM, **given: Any) -> Any:
    synthesizer = get_response_synthesizer(llm=llm, structured_answer_filtering=True, **given)
    return INDEX.as_query_engine(llm=llm, response_synthesizer=synthesizer)


async def test_streamed_programs_give_the_object(pipe: RSDPipeline) -> None:
    llm = RSDLLM.from_pipeline(pipe)
    assert list(program(llm).stream_call())[-1] == Sum(number=5)
    assert [found async for found in await program(llm).astream_call()][-1] == Sum(number=5)


async def test_answers_that_engines_filter_are_not_lost(pipe: RSDPipeline) -> None:
    llm = RSDLLM.from_pipeline(pipe)
    assert str(filtering(llm).query("Which?")) == "blue, größer"
    assert str(filtering(llm, streaming=True).query("Which?")) == "blue, größer"
    streamed = await filtering(llm, streaming=True, use_async=True).aquery("Which?")
    assert str(await streamed.get_response()) == "blue, größer"


async def test_engines_that_filter_show_why_a_call_was_refused(pipe: RSDPipeline) -> None:
    engine = filtering(RSDLLM.from_pipeline(pipe, system_prompt="x" * 3000))
    with pytest.raises(AskedError, match="do not fit the window"):
        engine.query("Which?")
    with pytest.raises(AskedError, match="do not fit the window"):
        await engine.aquery("Which?")


class Tree(BaseModel):
    """A tree."""

    leaf: bool
    kids: list[Tree] = Field(default=[], max_length=1)


class Flags(RootModel[list[bool]]):
    """Some flags."""


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    """A box."""

    item: T


@pytest.fixture(scope="module")
def tiny() -> Iterator[RSDPipeline]:
    with loaded(("tools", "tools-b", "ascii")) as made:
        yield made


@pytest.mark.parametrize("form", [Tree, Flags, Box[bool]])
async def test_forms_that_no_tool_can_take(form: type[BaseModel], tiny: RSDPipeline) -> None:
    llm = RSDLLM.from_pipeline(tiny, temperature=1.0, max_tokens=100)
    prompt = PromptTemplate("Say.")
    made = []
    for seed in range(6):
        # Random models do not know where to stop.
        with suppress(CutOff):
            made.append(predicted(llm, form, prompt, seed))
            assert await llm.astructured_predict(form, prompt, {"seed": seed}) == made[-1]
    assert made and all(isinstance(one, form) for one in made)


class CutOff(Exception):
    """A limit ended the answer."""


def predicted(llm: RSDLLM, form: type[BaseModel], prompt: PromptTemplate, seed: int) -> BaseModel:
    try:
        return llm.structured_predict(form, prompt, {"seed": seed})
    except BackendError as error:
        raise CutOff if "cut off at a limit" in str(error) else error from error


def test_calls_are_told_once_after_any_keeping(pipe: RSDPipeline) -> None:
    llm = RSDLLM.from_pipeline(pipe)
    message = llm.chat_with_tools([get_function_tool(Sum)], "Add 2 and 3.").message
    memory = ChatMemoryBuffer.from_defaults(token_limit=1000)
    memory.put(message)
    kept = [
        message,
        ChatMessage.model_validate_json(message.model_dump_json()),
        # Some of LlamaIndex's parts keep no blocks.
        ChatMessage(role="assistant", content="", additional_kwargs=message.additional_kwargs),
        memory.get()[0],
    ]
    (call,) = message.additional_kwargs["tool_calls"]
    function = {"name": "Sum", "arguments": '{"number": 5}'}
    assert call == {"id": call["id"], "type": "function", "function": function}
    told = {"type": "function", "id": call["id"], "function": {"name": "Sum", "arguments": {"number": 5}}}
    for one in kept:
        assert to_chat([one]) == [{"role": "assistant", "content": "", "tool_calls": [told]}]
