"""Function calling: offered, forced, read back, called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from typing import Any, Generic, TypeVar

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock, ToolCallBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from rsd_integrations.errors import BackendError, ConfigError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.backends.test_constraints import loaded
from tests.follower import follow
from tests.llama_index.entries import ENTRIES, text_of

QUESTION = "Add 2 and 3."


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Sum(BaseModel):
    """A sum."""

    number: int


Item = TypeVar("Item")


class Box(BaseModel, Generic[Item]):
    """A box."""

    item: Item


def find(what: str = "something") -> str:
    """Find something."""
    return f"found {what}"


TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(find)]


@pytest.fixture
def llm() -> Iterator[RSDLLM]:
    with scripted_pipeline(follow) as pipe:
        yield RSDLLM.from_pipeline(pipe)


@pytest.fixture(scope="module", params=["tools", "keyed"])
def tiny(request: pytest.FixtureRequest) -> Iterator[RSDPipeline]:
    """Models that write calls as JSON, or by keys and values."""
    with loaded((request.param, f"{request.param}-b", "ascii")) as pipe:
        yield pipe


def call_text(**arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'add', 'arguments': arguments})}\n</tool_call>"


async def every_way(llm: RSDLLM, **given: Any) -> list[Any]:
    """The answer by each of the four methods with tools."""
    given = {"tools": TOOLS, "user_msg": QUESTION, **given}
    return [
        llm.chat_with_tools(**given),
        list(llm.stream_chat_with_tools(**given))[-1],
        await llm.achat_with_tools(**given),
        [state async for state in await llm.astream_chat_with_tools(**given)][-1],
    ]


def called(llm: RSDLLM, response: Any) -> list[Any]:
    selections = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return [(selection.tool_name, selection.tool_kwargs) for selection in selections]


async def test_a_call_in_every_way(llm: RSDLLM) -> None:
    ids = set()
    for response in await every_way(llm, tool_choice="add"):
        assert called(llm, response) == [("add", {"a": 2, "b": 3})]
        (block,) = response.message.blocks
        assert isinstance(block, ToolCallBlock)
        assert response.raw["finish_reason"] == "tool_calls"
        ids.add(block.tool_call_id)
    assert len(ids) == 4


async def test_parallel_calls_only_where_they_are_allowed(llm: RSDLLM) -> None:
    asked = "Call add and find: add 2 and 3."
    both = [("add", {"a": 2, "b": 3}), ("find", {"what": "something"})]
    for response in await every_way(llm, user_msg=asked, allow_parallel_tool_calls=True):
        assert called(llm, response) == both
    for response in await every_way(llm, user_msg=asked):
        assert called(llm, response) == both[:1]


def test_one_call_alone_is_shown_even_if_more_were_written() -> None:
    with scripted_pipeline([call_text(a=1, b=2), "\n" + call_text(a=3, b=4)]) as pipe:
        llm = RSDLLM.from_pipeline(pipe)
        alone = llm.chat_with_tools(TOOLS, QUESTION)
        assert called(llm, alone) == [("add", {"a": 1, "b": 2})]
        assert len(alone.message.additional_kwargs["tool_calls"]) == 1
        more = llm.chat_with_tools(TOOLS, QUESTION, allow_parallel_tool_calls=True)
        assert called(llm, more) == [("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})]
        states = list(llm.stream_chat_with_tools(TOOLS, QUESTION, allow_parallel_tool_calls=True))
        # Each call is shown as soon as it is whole.
        assert [len(called(llm, state)) for state in states] == [1, 2, 2]
    # Some models write a list of calls, which is one call's text.
    both = json.dumps([{"name": "add", "arguments": {"a": a, "b": 2}} for a in (1, 3)])
    with scripted_pipeline([f"<tool_call>\n{both}\n</tool_call>"]) as pipe:
        llm = RSDLLM.from_pipeline(pipe)
        alone = llm.chat_with_tools(TOOLS, QUESTION)
        assert called(llm, alone) == [("add", {"a": 1, "b": 2})]
        assert len(alone.message.additional_kwargs["tool_calls"]) == 1


async def test_words_beside_calls(llm: RSDLLM) -> None:
    with scripted_pipeline(["Let me see.\n\n", call_text(a=1, b=2)]) as pipe:
        for response in await every_way(RSDLLM.from_pipeline(pipe)):
            text, block = response.message.blocks
            assert isinstance(text, TextBlock)
            assert (text.text, block.tool_name) == ("Let me see.", "add")


async def test_a_call_that_is_none_shows_as_text_and_is_not_called() -> None:
    broken = '<tool_call>{"name": "add", "arguments": {"a": 1'
    with scripted_pipeline([broken]) as pipe:
        llm = RSDLLM.from_pipeline(pipe)
        for response in await every_way(llm):
            assert called(llm, response) == []
            assert response.message.content == broken
            (invalid,) = response.message.additional_kwargs["invalid_tool_calls"]
            assert invalid["error"]
        with pytest.raises(ValueError, match="Expected at least one tool call, but got '<tool_call>"):
            llm.get_tool_calls_from_response(response)


def test_what_the_models_are_told(llm: RSDLLM) -> None:
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str, output: Any) -> str | None:
        if index == 0:
            seen.append((prompt, output))
        return "so" if index == 0 else None

    with scripted_pipeline(script) as pipe:
        told = RSDLLM.from_pipeline(pipe, system_prompt="Be brief.")
        told.chat_with_tools(
            TOOLS, QUESTION, chat_history=[ChatMessage("Hi"), ChatMessage("Ho", role="assistant")]
        )
        told.chat_with_tools([], QUESTION, tool_required=True)
        told.chat_with_tools(TOOLS, ChatMessage(QUESTION), tool_required=True)
    (first, offered), (_, none), (_, forced) = seen
    assert [turn["role"] for turn in first] == ["system", "user", "assistant", "user"]
    assert [name for name, _ in offered.functions] == ["add", "find"]
    assert (offered.choice, offered.parallel) == ("auto", False)
    assert none.tools == ()
    assert forced.choice == "required"


def test_results_go_back_to_the_model(llm: RSDLLM) -> None:
    response = llm.chat_with_tools(TOOLS, QUESTION)
    (call,) = llm.get_tool_calls_from_response(response)
    assert [call.tool_id] == [getattr(block, "tool_call_id", None) for block in response.message.blocks]
    result = ChatMessage("5", role="tool", additional_kwargs={"tool_call_id": call.tool_id})
    answer = llm.chat_with_tools(TOOLS, chat_history=[ChatMessage(QUESTION), response.message, result])
    assert answer.message.content == "The tool says 5."


async def test_predict_and_call(llm: RSDLLM) -> None:
    for answer in (llm.predict_and_call(TOOLS, QUESTION), await llm.apredict_and_call(TOOLS, QUESTION)):
        assert answer.response == "5"
        assert answer.sources[0].tool_name == "add"


REACT = 'Thought: I add.\nAction: add\nAction Input: {"a": 2, "b": 3}\nObservation: 77'


async def test_predict_and_call_by_react_where_templates_take_no_tools() -> None:
    with scripted_pipeline([REACT]) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        llm = RSDLLM.from_pipeline(pipe)
        assert not llm.metadata.is_function_calling_model
        answer = await llm.apredict_and_call(TOOLS, QUESTION)
        assert (answer.response, answer.sources[0].tool_name) == ("5", "add")


def test_predict_and_call_by_react_sync() -> None:
    with scripted_pipeline([REACT]) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        answer = RSDLLM.from_pipeline(pipe).predict_and_call(TOOLS, QUESTION)
        assert (answer.response, answer.sources[0].tool_name) == ("5", "add")


@pytest.mark.parametrize(
    "name", ["my tool.v1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Box[int]", "<lambda>"))]
)
async def test_names_that_are_none_of_openais(tiny: RSDPipeline, name: str) -> None:
    """Offered, forced by that name, called, and told in the history."""

    def choose(yes: bool) -> str:
        """Choose."""
        return f"so {yes}"

    tools = [*TOOLS, FunctionTool.from_defaults(choose, name=name)]
    llm = RSDLLM.from_pipeline(tiny, temperature=1.0, seed=1, max_tokens=100)
    for answer in (
        llm.predict_and_call(tools, QUESTION, tool_choice=name),
        await llm.apredict_and_call(tools, QUESTION, tool_choice=name),
    ):
        assert answer.response in ("so True", "so False")
        assert answer.sources[0].tool_name == name
    asked = llm.chat_with_tools(tools, QUESTION, tool_choice=name).message
    (call,) = [block for block in asked.blocks if isinstance(block, ToolCallBlock)]
    result = ChatMessage("yes", role="tool", additional_kwargs={"tool_call_id": call.tool_call_id})
    again = llm.chat_with_tools(tools[2:], chat_history=[ChatMessage(QUESTION), asked, result])
    assert again.raw["finish_reason"]


@pytest.mark.parametrize("name", ['say "so"', "a\\b", "{}", "two\nlines"])
def test_names_that_no_model_can_write(llm: RSDLLM, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written in a call"):
        llm.chat_with_tools([FunctionTool.from_defaults(add, name=name)], QUESTION)


def test_generic_forms(tiny: RSDPipeline) -> None:
    llm = RSDLLM.from_pipeline(tiny, temperature=1.0, seed=1, max_tokens=100)
    assert isinstance(llm.structured_predict(Box[bool], PromptTemplate(QUESTION)), Box)


def test_no_tools_by_none(llm: RSDLLM) -> None:
    none: Any = None
    assert llm.chat_with_tools(none, QUESTION).message.content
    assert list(llm.stream_chat_with_tools(none, QUESTION))[-1].message.content


@pytest.fixture
def reacting() -> Iterator[RSDLLM]:
    with scripted_pipeline([REACT]) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        yield RSDLLM.from_pipeline(pipe)


async def test_parameters_of_a_call_hold_by_react_too(reacting: RSDLLM) -> None:
    steps: list[Any] = []
    history = [ChatMessage("Hi"), ChatMessage("Ho", role="assistant")]
    given: dict[str, Any] = {"chat_history": history, "tool_required": True, "tool_choice": None}
    for answer in (
        reacting.predict_and_call(TOOLS, QUESTION, on_step=steps.append, seed=3, **given),
        await reacting.apredict_and_call(TOOLS, QUESTION, on_step=steps.append, temperature=None, **given),
    ):
        assert (answer.response, answer.sources[0].tool_name) == ("5", "add")
    assert len(steps) == 2
    assert (reacting.on_step, reacting.seed) == (None, None)
    # What is cut off calls nothing.
    assert not reacting.predict_and_call(TOOLS, QUESTION, max_tokens=3).sources
    assert not (await reacting.apredict_and_call(TOOLS, QUESTION, stop="Action:")).sources


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"treshold": 0.5}, r"unknown parameter 'treshold'(?s:.)*Did you mean 'threshold'"),
        ({"temperature": -5}, "greater than or equal to 0"),
        ({"max_length": 5}, "'max_length' is fixed for the object"),
        ({"response_format": {"type": "json_object"}}, "unknown parameter 'response_format'"),
    ],
)
async def test_parameters_that_are_none_are_refused_by_react_too(
    reacting: RSDLLM, given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reacting.predict_and_call(TOOLS, QUESTION, **given)
    with pytest.raises(ValueError, match=message):
        await reacting.apredict_and_call(TOOLS, QUESTION, **given)


async def test_nonsense_is_refused(llm: RSDLLM) -> None:
    wrong: Any = [add]
    with pytest.raises(ConfigError, match="tools must be LlamaIndex tools"):
        llm.chat_with_tools(wrong, QUESTION)
    with pytest.raises(ConfigError, match="tools must be LlamaIndex tools"):
        await llm.achat_with_tools(wrong, QUESTION)
    with pytest.raises(ConfigError, match="tool_choice='subtract' is no tool"):
        llm.chat_with_tools(TOOLS, QUESTION, tool_choice="subtract")
    with pytest.raises(ConfigError, match="unknown parameter 'treshold'"):
        llm.chat_with_tools(TOOLS, QUESTION, treshold=1)


def test_what_cannot_be_told_to_a_model_is_refused(llm: RSDLLM) -> None:
    asked = {"type": "json_schema", "json_schema": {"schema": {"const": date(2020, 1, 1)}}}
    with pytest.raises(ConfigError, match=r"datetime\.date\(2020, 1, 1\) in schema is no JSON"):
        llm.complete(QUESTION, response_format=asked)
    with pytest.raises(ConfigError, match="two tools have the name 'add'"):
        llm.chat_with_tools([*TOOLS, FunctionTool.from_defaults(find, name="add")], QUESTION)


def test_a_tool_that_an_agent_also_retrieved_is_one(llm: RSDLLM) -> None:
    made = llm.chat_with_tools([*TOOLS, *TOOLS], QUESTION, tool_required=True)
    assert [call.tool_name for call in llm.get_tool_calls_from_response(made)] == ["add"]


def test_models_without_tools_say_so() -> None:
    with RSDLLM.pocket() as llm, pytest.raises(ConfigError, match="takes no tools"):
        llm.chat_with_tools(TOOLS, QUESTION)


@pytest.mark.parametrize("seed", [0, 1])
async def test_real_models_call_what_they_must(tiny: RSDPipeline, seed: int) -> None:
    llm = RSDLLM.from_pipeline(tiny, temperature=1.0, seed=seed, max_tokens=400)

    def choose(yes: bool) -> str:
        """Choose."""
        return f"so {yes}"

    tools = [FunctionTool.from_defaults(choose)]
    for answer in (
        llm.predict_and_call(tools, QUESTION, tool_required=True),
        await llm.apredict_and_call(tools, QUESTION, tool_required=True),
    ):
        assert answer.response in ("so True", "so False")
        assert answer.sources[0].tool_name == "choose"


async def test_a_call_that_a_limit_cuts_says_so(tiny: RSDPipeline) -> None:
    llm = RSDLLM.from_pipeline(tiny, max_tokens=5)
    with pytest.raises(BackendError, match="the call was cut off at a limit of tokens or steps"):
        llm.predict_and_call(TOOLS, QUESTION, tool_required=True)
    with pytest.raises(BackendError, match="or raise max_tokens"):
        await llm.apredict_and_call(TOOLS, QUESTION, tool_required=True)
    with pytest.raises(BackendError, match="the call was cut off"):
        llm.structured_predict(Sum, PromptTemplate(QUESTION))


def answer_with(arguments: Any) -> ChatResponse:
    """Of another LLM."""
    block = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs=arguments)
    return ChatResponse(message=ChatMessage(role="assistant", blocks=[block]))


def test_arguments_of_other_llms_are_json_text(llm: RSDLLM) -> None:
    (call,) = llm.get_tool_calls_from_response(answer_with('{"a": 1, "b": 2}'))
    assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 1, "b": 2})
    assert llm.get_tool_calls_from_response(answer_with(""))[0].tool_kwargs == {}
    with pytest.raises(ValueError, match=r"The arguments of 'add' are no JSON object: '\{oops'"):
        llm.get_tool_calls_from_response(answer_with("{oops"))


@pytest.mark.parametrize("name", ["tools", "tool_choice", "parallel_tool_calls"])
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if "complete" in entry])
def test_completions_take_no_tools(llm: RSDLLM, entry: str, name: str) -> None:
    """There is no place for a call in what they give."""
    assert text_of(ENTRIES[entry](llm, **{name: None})[-1])
    with pytest.raises(ConfigError, match=rf"^{name}=.* is for chats(?s:.)*Use chat"):
        ENTRIES[entry](llm, **{name: []})
