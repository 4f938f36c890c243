"""Agents of LlamaIndex over scripted models."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from rsd_integrations.llama_index import RSDLLM, RSDWorkflowEvent
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.text.thoughts import ReasoningTags
from tests.follower import follow

QUESTION = "Add 2 and 3."


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def observed(prompt: Any) -> str | None:
    """What the last tool said."""
    last = str(prompt[-1]["content"])
    return last.removeprefix("Observation: ") if last.startswith("Observation: ") else None


ACTION = 'Thought: I have to add.\nAction: add\nAction Input: {"a": 2, "b": 3}\n'
INVENTED = "Observation: 77\nThought: I can answer.\nAnswer: 77"


def react(prompt: Any, index: int, text: str) -> str | None:
    """A model that goes on to invent what the tool says, unless it is stopped."""
    if index:
        return None
    found = observed(prompt)
    return ACTION + INVENTED if found is None else f"Thought: I can answer.\nAnswer: It is {found}."


@pytest.fixture
def reacting() -> Iterator[RSDPipeline]:
    """Models that take no tools."""
    with scripted_pipeline(react) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        yield pipe


@pytest.fixture
def calling() -> Iterator[RSDPipeline]:
    with scripted_pipeline(follow) as pipe:
        yield pipe


async def run(agent: Any, question: str = QUESTION, **given: Any) -> tuple[str, list[Any]]:
    """The answer, and what was in the event stream."""
    handler = agent.run(question, **given)
    events = [event async for event in handler.stream_events()]
    return str(await handler), events


def results(events: list[Any]) -> list[Any]:
    return [event.tool_output.raw_output for event in events if isinstance(event, ToolCallResult)]


@pytest.mark.parametrize("streaming", [True, False])
async def test_react_stops_at_the_observation(reacting: RSDPipeline, streaming: bool) -> None:
    agent = ReActAgent(tools=[add], llm=RSDLLM.from_pipeline(reacting), streaming=streaming)
    answer, events = await run(agent)
    assert answer == "It is 5."
    assert results(events) == [5]
    assert all("77" not in event.response for event in events if isinstance(event, AgentStream))


def test_react_stops_where_a_caller_passes_no_stop_on(reacting: RSDPipeline) -> None:
    tools = [FunctionTool.from_defaults(add)]
    asked = ReActChatFormatter().format(tools, [ChatMessage("What is 2 + 3?")])
    llm = RSDLLM.from_pipeline(reacting)
    answer = llm.chat(asked, stop=None)
    assert "Action: add" in str(answer.message.content)
    assert "77" not in str(answer.message.content)
    assert "77" in str(llm.chat(asked, stop=["nothing"]).message.content), "the caller's own come first"


async def test_react_without_the_stop(reacting: RSDPipeline) -> None:
    """That is what the stop is for."""
    agent = ReActAgent(tools=[add], llm=RSDLLM.from_pipeline(reacting, react_stop=False))
    _, events = await run(agent)
    assert any("77" in event.response for event in events if isinstance(event, AgentStream))


async def test_react_with_a_model_that_thinks_of_the_observation() -> None:
    def thinking(prompt: Any, index: int, text: str) -> str | None:
        thought = "<think>I call it, and stop at Observation: or so.</think>\n\n"
        return thought if index == 0 else react(prompt, index - 1, text)

    with scripted_pipeline(thinking, tags=ReasoningTags()) as pipe:
        agent = ReActAgent(tools=[add], llm=RSDLLM.from_pipeline(pipe))
        assert str(await agent.run(QUESTION)) == "It is 5."


async def test_a_rewritten_step_does_not_break_react() -> None:
    """The draft's format is broken, in both steps; the target's is not."""

    def draft(prompt: Any, index: int, text: str) -> str | None:
        return None if index else "ACTION - add 2, 3!\n" + INVENTED

    def reward(prompt: Any, index: int, body: str) -> float:
        return 0.9 if body.startswith("Thought:") else 0.1

    with scripted_pipeline(draft, react, reward) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        agent = ReActAgent(tools=[add], llm=RSDLLM.from_pipeline(pipe, steps_to_workflow=True))
        answer, events = await run(agent)
    assert answer == "It is 5."
    assert results(events) == [5]
    rewritten = [event for event in events if isinstance(event, RSDWorkflowEvent)]
    assert [event.name for event in rewritten] == ["rsd_step_rejected"] * 2
    assert rewritten[0].data["text"] == ACTION


async def test_a_blank_line_between_thought_and_action_is_a_step_and_no_harm() -> None:
    def script(prompt: Any, index: int, text: str) -> str | None:
        found = observed(prompt)
        if found is not None:
            return ["Thought: I can answer.\n\n", f"Answer: It is {found}."][index] if index < 2 else None
        return ["Thought: I have to add.\n\n", ACTION.split("\n", 1)[1]][index] if index < 2 else None

    with scripted_pipeline(script) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        answer, events = await run(ReActAgent(tools=[add], llm=RSDLLM.from_pipeline(pipe)))
    assert answer == "It is 5."
    assert results(events) == [5]


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent(calling: RSDPipeline, streaming: bool) -> None:
    agent = FunctionAgent(tools=[add], llm=RSDLLM.from_pipeline(calling), streaming=streaming)
    answer, events = await run(agent)
    assert answer == "The tool says 5."
    assert results(events) == [5]
    first = await run(
        FunctionAgent(tools=[add], llm=RSDLLM.from_pipeline(calling), initial_tool_choice="add")
    )
    assert first[0] == answer


async def test_an_agent_with_a_form_for_its_answer(calling: RSDPipeline) -> None:
    class Total(BaseModel):
        """A total."""

        total: int

    agent = FunctionAgent(tools=[add], llm=RSDLLM.from_pipeline(calling), output_cls=Total)
    handler = agent.run(QUESTION)
    assert isinstance((await handler).get_pydantic_model(Total), Total)


async def test_agent_workflow_chooses_by_what_the_models_take(
    calling: RSDPipeline, reacting: RSDPipeline
) -> None:
    for pipe, kind, expected in (
        (calling, FunctionAgent, "The tool says 5."),
        (reacting, ReActAgent, "It is 5."),
    ):
        workflow = AgentWorkflow.from_tools_or_functions([add], llm=RSDLLM.from_pipeline(pipe))
        (agent,) = workflow.agents.values()
        assert isinstance(agent, kind)
        answer, _ = await run(workflow)
        assert answer == expected


async def test_a_code_act_agent() -> None:
    def execute(code: str) -> str:
        """Stands in for a sandbox: it knows one program."""
        assert code == "print(add(2, 3))"
        with contextlib.redirect_stdout(io.StringIO()) as out:
            print(add(2, 3))
        return out.getvalue()

    def script(prompt: Any, index: int, text: str) -> str | None:
        done = "5\n" in str(prompt[-1]["content"])
        steps = ["It is 5."] if done else ["Let me run it.\n\n", "<execute>\nprint(add(2, 3))\n</execute>"]
        return steps[index] if index < len(steps) else None

    with scripted_pipeline(script) as pipe:
        agent = CodeActAgent(code_execute_fn=execute, llm=RSDLLM.from_pipeline(pipe), tools=[add])
        answer, events = await run(agent)
    assert answer == "It is 5."
    assert len(results(events)) == 1


@pytest.mark.parametrize("streaming", [True, False])
async def test_steps_in_the_event_stream_on_request(calling: RSDPipeline, streaming: bool) -> None:
    for asked in (True, False):
        llm = RSDLLM.from_pipeline(calling, steps_to_workflow=asked)
        _, events = await run(FunctionAgent(tools=[add], llm=llm, streaming=streaming))
        steps = [event for event in events if isinstance(event, RSDWorkflowEvent)]
        assert len(steps) == (3 if asked else 0)  # The call, its end, the answer.
        for event in steps:
            assert json.loads(json.dumps(event.data)) == event.data
            assert event.name == "rsd_step_accepted"


async def test_steps_of_a_call_inside_a_tool_reach_the_event_stream(calling: RSDPipeline) -> None:
    inner = RSDLLM.from_pipeline(calling, steps_to_workflow=True)

    async def look(what: str) -> str:
        """Look something up."""
        return (await inner.achat([ChatMessage(f"What is {what}?")], max_steps=2)).message.content or ""

    tool = FunctionTool.from_defaults(async_fn=look)
    answer, events = await run(FunctionAgent(tools=[tool], llm=RSDLLM.from_pipeline(calling)), "Look 'it' up")
    assert answer.startswith("The tool says Step 0.")
    steps = [event.data["text"] for event in events if isinstance(event, RSDWorkflowEvent)]
    assert steps == ["Step 0.\n\n", "Step 1.\n\n"]


async def test_results_of_parallel_calls_reach_the_model_in_the_order_of_the_calls() -> None:
    """The agent gives them in the order in which they are done, and most chat templates show no ids."""
    seen: list[Any] = []
    measured = asyncio.Event()

    async def temperature(city: str) -> str:
        """The temperature in a city."""
        if city == "Oslo":
            await measured.wait()
            await asyncio.sleep(0.05)  # Until the other result is collected.
        measured.set()
        return {"Oslo": "-4 degrees", "Cairo": "35 degrees"}[city]

    def script(prompt: Any, index: int, text: str) -> str | None:
        seen.append(prompt)
        if prompt[-1]["role"] == "tool":
            return None if index else "Cold and hot."
        calls = [{"name": "temperature", "arguments": {"city": city}} for city in ("Oslo", "Cairo")]
        return f"<tool_call>{json.dumps(calls[index])}</tool_call>" if index < 2 else None

    with scripted_pipeline(script) as pipe:
        agent = FunctionAgent(tools=[temperature], llm=RSDLLM.from_pipeline(pipe))
        _, events = await run(agent)
    assert results(events) == ["35 degrees", "-4 degrees"]
    assert [turn["content"] for turn in seen[-1] if turn["role"] == "tool"] == ["-4 degrees", "35 degrees"]
