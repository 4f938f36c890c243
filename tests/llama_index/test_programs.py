"""Programs of LlamaIndex, which ask the model by themselves: what they read, and what their users see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex, get_response_synthesizer
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from rsd_integrations.errors import AskedError, PromptError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.llama_index.messages import to_chat
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.llama_index.spans import recording


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


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


@pytest.mark.parametrize("streaming", [True, False])
async def test_users_of_engines_see_why_a_call_was_refused(pipe: RSDPipeline, streaming: bool) -> None:
    llm = RSDLLM.from_pipeline(pipe, system_prompt="x" * 3000)
    engine = filtering(llm, streaming=streaming)
    with pytest.raises(AskedError, match="do not fit the window") as caught:
        str(engine.query("Which?"))
    assert isinstance(caught.value.__cause__, PromptError)
    with pytest.raises(AskedError, match="do not fit the window"):
        str(await engine.aquery("Which?"))
    with pytest.raises(PromptError):
        llm.predict_and_call([get_function_tool(Sum)], "Add 2 and 3.")
    assert pipe.backend.draft.open_sessions == 0  # type: ignore[attr-defined]


async def test_streamed_programs_require_the_call_as_others_do() -> None:
    seen: list[str] = []

    def told(prompt: Any, index: int, text: str, output: Any) -> str | None:
        seen.append(output.choice)
        return script(prompt, index, text, output)

    with scripted_pipeline(told) as pipe:
        llm = RSDLLM.from_pipeline(pipe)
        list(program(llm).stream_call())
        [found async for found in await program(llm).astream_call()]
        assert {*seen} == {"required"}
        seen.clear()
        list(llm.stream_chat_with_tools([FunctionTool.from_defaults(add, name="Sum")], "Add 2 and 3."))
        assert {*seen} == {"auto"}


def test_calling_has_one_span(pipe: RSDPipeline) -> None:
    with recording() as record:
        program(RSDLLM.from_pipeline(pipe))()
    assert len(record.named("RSDLLM.predict_and_call")) == 1


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
