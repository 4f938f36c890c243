"""Tools: bound, shown, called, forced, read back, and used by agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import date
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command
from pydantic import BaseModel, Field

from rsd_integrations.adapters import sources
from rsd_integrations.errors import ConfigError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.output import Output
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.backends.test_constraints import TOOLS, loaded
from tests.follower import follow

QUESTION = "Add 2 and 3."


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def find(what: str) -> str:
    """Find something."""
    return f"found {what}"


class Sum(BaseModel):
    """A sum."""

    total: int


def call_text(**arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'add', 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def llm() -> Iterator[ChatRSD]:
    with scripted_pipeline(follow) as pipe:
        yield ChatRSD.from_pipeline(pipe)


@pytest.fixture(scope="module", params=["tools", "keyed"])
def tiny(request: pytest.FixtureRequest) -> Iterator[RSDPipeline]:
    """Models that write calls as JSON, or by keys and values."""
    with loaded((request.param, f"{request.param}-b", "ascii")) as pipe:
        yield pipe


def facts(message: Any) -> Any:
    """What a message says and calls, ids aside."""
    return (
        message.text,
        [(call["name"], call["args"]) for call in message.tool_calls],
        [(call["name"], bool(call["args"])) for call in message.invalid_tool_calls],
        message.response_metadata["finish_reason"],
    )


def summed(chunks: list[Any]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


async def all_ways(model: Any, asked: Any) -> list[Any]:
    """The answer by each way to call a model."""
    v2 = [event async for event in model.astream_events(asked, version="v2")]
    return [
        model.invoke(asked),
        await model.ainvoke(asked),
        summed(list(model.stream(asked))),
        summed([chunk async for chunk in model.astream(asked)]),
        model.batch([asked])[0],
        (await model.abatch([asked]))[0],
        v2[-1]["data"]["output"],
        model.stream_events(asked, version="v3").output,
        await (await model.astream_events(asked, version="v3")).output,
    ]


async def test_a_call_in_every_way(llm: ChatRSD) -> None:
    answers = await all_ways(llm.bind_tools([add, find], tool_choice="add"), QUESTION)
    assert {repr(facts(answer)) for answer in answers} == {
        repr(("", [("add", {"a": 2, "b": 3})], [], "tool_calls"))
    }
    ids = {answer.tool_calls[0]["id"] for answer in answers}
    assert len(ids) == len(answers) and all(len(one) == 9 and one.isalnum() for one in ids)


SCRIPTS: dict[str, tuple[list[str], Any]] = {
    "words and two calls": (
        ["Let me see.\n\n", f"First:\n{call_text(a=1, b=2)}", f"\n{call_text(a=3, b=4)}"],
        ("Let me see.\n\nFirst:", [("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})], [], "tool_calls"),
    ),
    "words on both sides of a call": (
        ["First:\n\n", call_text(a=1, b=2), "\n\nThat was it."],
        ("First:\nThat was it.", [("add", {"a": 1, "b": 2})], [], "tool_calls"),
    ),
    "a broken call beside a good one": (
        [call_text(a=1, b=2), '\n<tool_call>\n{"name": "add", "arguments": {"a": 1\n</tool_call>'],
        ("", [("add", {"a": 1, "b": 2})], [(None, True)], "tool_calls"),
    ),
    "a broken call that LangChain would mend": (
        ['<tool_call>{"name": "add", "arguments": {"a": 1'],
        ("", [], [(None, True)], "stop"),
    ),
    "a tool that is not there": (
        ['<tool_call>{"name": "subtract", "arguments": {}}</tool_call>'],
        ("", [("subtract", {})], [], "tool_calls"),
    ),
    "words": (["Five.\n\n", "Or so."], ("Five.\n\nOr so.", [], [], "stop")),
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_calls_leave_the_text(name: str) -> None:
    steps, expected = SCRIPTS[name]
    with scripted_pipeline(steps) as pipe:
        answers = await all_ways(ChatRSD.from_pipeline(pipe).bind_tools([add]), QUESTION)
    for answer in answers:
        assert facts(answer) == expected
    for broken in answers[0].invalid_tool_calls:
        assert broken["error"] and broken["id"]


def test_streamed_blocks_keep_calls_apart() -> None:
    """LangChain numbers blocks of text itself, from 0 on: calls are to have other numbers."""
    with scripted_pipeline(["Let me see.\n\n", call_text(a=1, b=2), "\n" + call_text(a=3, b=4)]) as pipe:
        bound = ChatRSD.from_pipeline(pipe, output_version="v1").bind_tools([add])
        for whole in (
            summed(list(bound.stream(QUESTION))),
            bound.stream_events(QUESTION, version="v3").output,
        ):
            assert [block["type"] for block in whole.content_blocks] == ["text", "tool_call", "tool_call"]
            assert [call["args"] for call in whole.tool_calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_streamed_arguments_are_the_letters_that_were_written() -> None:
    with scripted_pipeline([call_text(what="公园 é"), call_text(what="\ud800")]) as pipe:
        chunks = list(ChatRSD.from_pipeline(pipe).bind_tools([find]).stream(QUESTION))
    right, half = (call["args"] for chunk in chunks for call in chunk.tool_call_chunks)
    assert right == '{"what": "公园 é"}'
    # Of half a character there are no letters: the call is invalid, and shown as it was written.
    assert half == call_text(what="\ud800")
    assert len(summed(chunks).invalid_tool_calls) == 1


def test_without_tools_markup_is_text() -> None:
    with scripted_pipeline([call_text(a=1, b=2)]) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        assert llm.invoke(QUESTION).content == call_text(a=1, b=2)
        none = llm.bind_tools([add], tool_choice="none").invoke(QUESTION)
    assert none.content == call_text(a=1, b=2) and not none.tool_calls


def test_one_call_where_parallel_ones_are_off() -> None:
    with scripted_pipeline([call_text(a=1, b=2), call_text(a=3, b=4)]) as pipe:
        bound = ChatRSD.from_pipeline(pipe).bind_tools([add], parallel_tool_calls=False)
        answer = bound.invoke(QUESTION)
        assert [call["args"] for call in answer.tool_calls] == [{"a": 1, "b": 2}]
        assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_a_rejected_call_never_shows() -> None:
    """The PRM reads the call as it is written; the target's takes its place."""
    read: list[str] = []

    def reward(prompt: Any, index: int, step: str) -> float:
        read.append(step)
        return 0.1

    wrong, right = call_text(a=9, b=9), call_text(a=2, b=3)
    with scripted_pipeline([wrong], [right], reward) as pipe:
        bound = ChatRSD.from_pipeline(pipe, threshold=0.7).bind_tools([add])
        seen: list[Any] = []
        chunks = list(bound.stream(QUESTION, on_step=seen.append))
    assert [call["args"] for call in summed(chunks).tool_calls] == [{"a": 2, "b": 3}]
    assert read[0] == wrong
    assert (seen[0].rejected_text, seen[0].text) == (wrong, right)


def test_what_is_bound(llm: ChatRSD) -> None:
    bound = llm.bind_tools([add, Sum, TOOLS[1]], tool_choice="any", strict=True, temperature=0.5)
    kwargs = bound.kwargs  # type: ignore[attr-defined]
    assert [one["function"]["name"] for one in kwargs["tools"]] == ["add", "Sum", "look_up"]
    assert all(one["function"]["strict"] for one in kwargs["tools"])
    assert (kwargs["tool_choice"], kwargs["temperature"]) == ("any", 0.5)
    assert "tools" not in llm.bind_tools([]).kwargs  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"tools": [3]}, "3 cannot be made into a tool"),
        ({"tools": [add], "tool_choice": "addd"}, r"tool_choice='addd'.*The tools are: add"),
        ({"tools": [add], "response_format": {"type": "yaml"}}, "response_format"),
    ],
)
def test_nonsense_is_refused_at_bind_time(llm: ChatRSD, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        llm.bind_tools(**fields)
    assert llm.invoke(QUESTION).content


def test_a_model_that_takes_no_tools_says_so_before_it_is_loaded() -> None:
    llm = ChatRSD.pocket(max_batch_size=3)
    with pytest.raises(ConfigError, match="takes no tools"):
        llm.bind_tools([add])
    assert llm.source.loaded is None
    assert llm.profile is not None and not llm.profile["tool_calling"]
    llm.load()
    with pytest.raises(ConfigError, match=r"takes no tools\..* needs no tools: with_structured_output\("):
        llm.bind_tools([add])
    with pytest.raises(ConfigError, match="takes no tools"):
        llm.invoke(QUESTION, tools=TOOLS)
    assert llm.profile is not None and not llm.profile["tool_calling"]


async def test_on_an_event_loop_nothing_is_loaded_or_asked_to_bind_tools(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``create_agent`` binds within its first call: everybody on the loop would wait."""
    llm = ChatRSD.pocket(max_batch_size=5)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "check_tools", lambda **named: pytest.fail("the loop waits for a tokenizer"))
        bound = llm.bind_tools([add])
    assert llm.source.loaded is None
    with pytest.raises(ConfigError, match="takes no tools"):
        await bound.ainvoke(QUESTION)
    with pytest.raises(ConfigError, match="takes no tools"):
        llm.bind_tools([add])  # Once it is loaded nobody has to wait for it.
    served = ChatRSD(draft="http://127.0.0.1:9", target="http://127.0.0.1:9", prm="http://127.0.0.1:9")
    assert served.bind_tools([add])


def test_the_prompt_has_the_tools(tiny: RSDPipeline) -> None:
    llm = ChatRSD.from_pipeline(tiny)
    messages = [HumanMessage(QUESTION)]
    bare, shown = (llm.get_num_tokens_from_messages(messages, tools=tools) for tools in (None, [add]))
    assert shown > bare
    assert llm.profile is not None and llm.profile["tool_calling"]
    answer = llm.bind_tools([add]).invoke(messages, max_tokens=2)
    assert answer.usage_metadata is not None and answer.usage_metadata["input_tokens"] == shown


@pytest.mark.parametrize("choice", ["any", pytest.param("look_up", marks=pytest.mark.slow)])
async def test_real_models_call_what_they_must(tiny: RSDPipeline, choice: str) -> None:
    llm = ChatRSD.from_pipeline(tiny, temperature=1.0, seed=1, weighting="constant", max_step_tokens=9)
    bound = llm.bind_tools(TOOLS, tool_choice=choice, parallel_tool_calls=False)
    answers = await all_ways(bound, QUESTION)
    assert len({repr(facts(answer)) for answer in answers}) == 1
    (call,) = answers[0].tool_calls
    assert call["args"]["x"] in (1, 22) and call["args"]["why"] in ("so", "no")
    assert choice in ("any", call["name"])


class Colour(BaseModel):
    """A colour."""

    red: int = Field(ge=0, le=255)
    name: Literal["sky blue", "sea green"]
    of: Named | None
    dark: bool


class Named(BaseModel):
    """A thing."""

    kind: Literal["sky", "sea"]


def test_real_models_fill_forms_by_calls(tiny: RSDPipeline) -> None:
    llm = ChatRSD.from_pipeline(tiny, temperature=1.0, weighting="constant", max_tokens=300)
    form = llm.with_structured_output(Colour, method="function_calling")
    found = [form.invoke(QUESTION, seed=seed) for seed in range(4)]
    assert all(isinstance(one, Colour) for one in found)
    assert len({str(one) for one in found}) > 1


def test_caches_tell_tools_apart(llm: ChatRSD) -> None:
    plain, bound = (llm._get_llm_string(**more) for more in ({}, {"tools": TOOLS}))
    assert plain != bound != llm._get_llm_string(tools=TOOLS, tool_choice="any")


def test_an_agent_with_tools(llm: ChatRSD) -> None:
    agent = create_agent(llm, tools=[add])
    messages = agent.invoke({"messages": [HumanMessage(QUESTION)]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[2].content == "5"
    assert messages[-1].content == "The tool says 5."
    done = asyncio.run(agent.ainvoke({"messages": [HumanMessage(QUESTION)]}))
    assert done["messages"][-1].content == "The tool says 5."
    streamed = [
        chunk
        for chunk, _ in agent.stream({"messages": [HumanMessage(QUESTION)]}, stream_mode="messages")
        if isinstance(chunk, AIMessage)
    ]
    assert "".join(chunk.text for chunk in streamed) == "The tool says 5."


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy, None])
def test_an_agent_with_a_form_for_its_answer(strategy: Any) -> None:
    """The model calls a tool first, then answers in the form."""

    def script(prompt: Any, index: int, text: str, output: Output) -> str | None:
        if prompt[-1]["role"] != "tool":
            return call_text(a=2, b=3) if index == 0 else None
        names = [name for name, _ in output.functions]
        if output.schema is None and "Sum" in names:
            return '<tool_call>{"name": "Sum", "arguments": {"total": 5}}</tool_call>' if index == 0 else None
        assert output.schema is not None
        return '{"total": 5}' if index == 0 else None

    with scripted_pipeline(script) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        form: Any = Sum if strategy is None else strategy(Sum)
        agent = create_agent(llm, tools=[add], response_format=form)
        done = agent.invoke({"messages": [HumanMessage(QUESTION)]})
    assert done["structured_response"] == Sum(total=5)


def test_a_humans_answer_stands_where_its_call_does() -> None:
    """The middleware puts it before the results of other calls, and most chat templates show no ids."""
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str) -> str | None:
        seen.append(prompt)
        if prompt[-1]["role"] == "tool":
            return None if index else "Done."
        found = '<tool_call>{"name": "find", "arguments": {"what": "gold"}}</tool_call>'
        return [call_text(a=2, b=3), found][index] if index < 2 else None

    human = HumanInTheLoopMiddleware(interrupt_on={"find": {"allowed_decisions": ["reject"]}})
    thread: Any = {"configurable": {"thread_id": "1"}}
    with scripted_pipeline(script) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        agent = create_agent(llm, tools=[add, find], middleware=[human], checkpointer=InMemorySaver())
        agent.invoke({"messages": [HumanMessage(QUESTION)]}, thread)
        said = {"decisions": [{"type": "reject", "message": "It is mine."}]}
        done = agent.invoke(Command(resume=said), thread)
    refused, added = (message.text for message in done["messages"][2:4])
    assert (added, "It is mine." in refused) == ("5", True)
    assert [turn["content"] for turn in seen[-1][2:]] == [added, refused]


async def test_a_react_loop_in_langgraph(llm: ChatRSD) -> None:
    bound = llm.bind_tools([add, find])

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_node("tools", ToolNode([add, find]))
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", tools_condition)
    graph.add_edge("tools", "ask")
    done = await graph.compile().ainvoke({"messages": [HumanMessage("find 'gold' and add 2 and 3")]})
    tools = [message for message in done["messages"] if isinstance(message, ToolMessage)]
    assert {message.content for message in tools} == {"5", "found gold"}
    assert done["messages"][-1].content.startswith("The tool says")


@pytest.mark.parametrize("wrong", [None, 5, "add", {"name": "f"}, len])
def test_tools_that_are_no_list(llm: Any, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"tools=.* is no list of tools"):
        llm.bind_tools(wrong)
    if wrong is not None:
        with pytest.raises(ConfigError, match=r"tools=.* is no list of tools"):
            llm.invoke("x", tools=wrong)


def test_what_cannot_be_told_to_a_model_is_refused(llm: Any) -> None:
    parameters = {"type": "object", "properties": {"day": {"const": date(2020, 1, 1)}}}
    dated = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    for ask in (
        lambda: llm.bind_tools([dated]),
        lambda: llm.invoke("x", tools=[dated]),
        lambda: llm.with_structured_output({"title": "Day", **parameters}).invoke("x"),
    ):
        with pytest.raises(ConfigError, match=r"datetime\.date\(2020, 1, 1\) in (tools|schema) is no JSON"):
            ask()
    dated["function"]["parameters"] = {"type": "object", "properties": {}}  # type: ignore[index]
    with pytest.raises(ConfigError, match="two tools have the name 'add'"):
        llm.bind_tools([add, dated])


def test_a_tool_alone_is_no_list(llm: Any) -> None:
    @tool
    def alone(x: int) -> int:
        """Alone."""
        return x

    with pytest.raises(ConfigError, match=r"is no list of tools\. Write bind_tools\(\[tool, ...\]\)"):
        llm.bind_tools(alone)
