"""Function calling: offered, forced, read back, called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock, ToolCallBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from rsd_integrations.errors import BackendError, ConfigError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.llama_index.messages import to_chat
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.backends.test_constraints import loaded
from tests.follower import follow

QUESTION = "Add 2 and 3."


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Sum(BaseModel):
    """A sum."""

    number: int


def find(what: str = "something") -> str:
    """Find something."""
    return f"found {what}"


TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(find)]


@pytest.fixture
def llm() -> Iterator[RSDLLM]:
    with scripted_pipeline(follow) as pipe:
        yield RSDLLM.from_pipeline(pipe)


@pytest.fixture(scope="module")
def tiny() -> Iterator[RSDPipeline]:
    with loaded(("tools", "tools-b", "ascii")) as pipe:
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


async def test_parameters_count_by_react_too() -> None:
    with scripted_pipeline([REACT]) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        llm = RSDLLM.from_pipeline(pipe)
        seen: list[Any] = []
        answer = llm.predict_and_call(TOOLS, QUESTION, on_step=seen.append, tool_required=True, verbose=False)
        assert (answer.response, len(seen)) == ("5", 1)
        await llm.apredict_and_call(TOOLS, QUESTION, on_step=seen.append, allow_parallel_tool_calls=True)
        assert (len(seen), llm.on_step) == (2, None)
        for wrong, match in (
            ({"treshold": 5}, "Did you mean 'threshold'"),
            ({"temperature": -5}, "temperature"),
        ):
            with pytest.raises(ValueError, match=match):
                llm.predict_and_call(TOOLS, QUESTION, **wrong)
            with pytest.raises(ValueError, match=match):
                await llm.apredict_and_call(TOOLS, QUESTION, **wrong)


@pytest.mark.parametrize("name", ["my tool.v1", "Box[int]"])
async def test_tools_by_the_names_they_have(name: str, tiny: RSDPipeline) -> None:
    def choose(yes: bool) -> str:
        """Choose."""
        return f"so {yes}"

    tools = [FunctionTool.from_defaults(choose, name=name)]
    llm = RSDLLM.from_pipeline(tiny, temperature=1.0, seed=0, max_tokens=400)
    for given in ({"tool_required": True}, {"tool_choice": name}):
        answer = await llm.apredict_and_call(tools, QUESTION, **given)
        assert answer.sources[0].tool_name == name and answer.response in ("so True", "so False")
    told = llm.chat_with_tools(tools, QUESTION, tool_required=True)
    assert to_chat([told.message])[0]["tool_calls"][0]["function"]["name"] == name


async def test_completions_have_no_place_for_calls(llm: RSDLLM) -> None:
    tools = [tool.metadata.to_openai_tool() for tool in TOOLS]
    with pytest.raises(ConfigError, match=r"tools=.* in a completion.*Use chat"):
        llm.complete(QUESTION, tools=tools)
    with pytest.raises(ConfigError, match="tool_choice='required' in a completion"):
        await llm.acomplete(QUESTION, tool_choice="required")
    with pytest.raises(ConfigError, match="in a completion"):
        list(llm.stream_complete(QUESTION, tools=tools))
    with pytest.raises(ConfigError, match="in a completion"):
        await llm.astream_complete(QUESTION, parallel_tool_calls=False)
    assert llm.complete(QUESTION, tools=None).text


def test_no_tools_are_none(llm: RSDLLM) -> None:
    none: Any = None
    assert (
        llm.chat_with_tools(none, QUESTION).message.content
        == llm.chat_with_tools([], QUESTION).message.content
    )


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
    with pytest.raises(BackendError, match="Raise max_tokens"):
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
