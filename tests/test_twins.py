"""Requests that are nearly the same: who asked before makes no difference to the one who asks now.

A pipeline keeps much of what it made (grammars, prefixes, traces). Whatever that is kept by has to tell apart
all that answers depend on; an oracle that asks once finds nothing of it.
"""

from __future__ import annotations

from typing import Any

import pytest

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.output import Output
from rsd_integrations.types import Message
from tests.tiny_models import trio

BASE: dict[str, Any] = {"seed": 1, "threshold": 0.5, "max_tokens": 40, "step_delimiter": ("e", " ")}
YES, PICK = {"type": "boolean"}, {"enum": ["x", "yy"]}


def document(*names: str, **more: Any) -> Output:
    """A document with these properties, "b" of another kind than the others."""
    properties = {name: PICK if name == "b" else YES for name in names}
    return Output(schema={"type": "object", "properties": properties, "required": sorted(names), **more})


def valued(*values: Any) -> Output:
    return Output(schema={"enum": [*values]})


def tool(name: str, *names: str, description: str = "Does it.", **more: Any) -> dict[str, Any]:
    parameters = document(*names).schema
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters, **more},
    }


def calls(*tools: dict[str, Any], choice: str = "required", **more: Any) -> Output:
    return Output.of(tools=tools, tool_choice=choice, **more)


def doubled(reward: float) -> float:
    return min(1.0, 2 * reward)


def halved(reward: float) -> float:
    return reward / 2


HOT = {"temperature": 1.5}
TWINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "order of properties": ({"output": document("a", "b")}, {"output": document("b", "a")}),
    "order of arguments": ({"output": calls(tool("f", "a", "b"))}, {"output": calls(tool("f", "b", "a"))}),
    "further properties": (
        {"output": document("a", additionalProperties=True)},
        {"output": document("a", additionalProperties=False)},
    ),
    "a number and a truth value": ({"output": valued(1)}, {"output": valued(True)}),
    "a number and its digits": ({"output": valued(1)}, {"output": valued("1")}),
    "what a tool does": (
        {"output": calls(tool("f", "a"))},
        {"output": calls(tool("f", "a", description="Does something else."))},
    ),
    "whether it must call": (
        {"output": calls(tool("f", "a"))},
        {"output": calls(tool("f", "a"), choice="auto")},
    ),
    "strict": (
        {"output": calls(tool("f", "a"), choice="auto")},
        {"output": calls(tool("f", "a", strict=True), choice="auto")},
    ),
    "how many calls": (
        {"output": calls(tool("f", "a"), parallel_tool_calls=True), "max_tokens": 60},
        {"output": calls(tool("f", "a"), parallel_tool_calls=False), "max_tokens": 60},
    ),
    "white space": ({"prompt": "count"}, {"prompt": "count "}),
    "roles": (
        {"prompt": [Message(role="user", content="count"), Message(role="assistant", content="so")]},
        {"prompt": [Message(role="user", content="count"), Message(role="user", content="so")]},
    ),
    "functions of one kind": ({"weighting": doubled}, {"weighting": halved}),
    "which ends a step": ({"step_delimiter": ("e", " ")}, {"step_delimiter": ("a", " ")}),
    "where it stops": ({"stop": ("e",)}, {"stop": ("a",)}),
    "filters": ({**HOT, "top_k": 3}, {**HOT, "top_p": 0.3}),
    "penalties": ({"repetition_penalty": 1.0}, {"repetition_penalty": 1.5}),
    "how many candidates": ({**HOT, "draft_candidates": 2}, {**HOT, "draft_candidates": 3}),
}


def fresh() -> RSDPipeline:
    models = trio("Qwen2", "Llama", ("tools", "tools-b", "ascii"), max_position_embeddings=2048)
    return RSDPipeline.from_pretrained(**models, device="cpu", max_batch_size=3)


def ask(pipe: RSDPipeline, fields: dict[str, Any]) -> Generation:
    return pipe.generate(**{"prompt": "count", **BASE, **fields})


def seen(answer: Generation) -> dict[str, Any]:
    """What is in an answer, but for times, ids of calls, rounding, and what was remembered, not read."""
    return {
        "text": answer.text,
        "end": answer.finish_reason,
        "steps": [
            (step.source, step.text, step.reward and round(step.reward, 3), step.accepted)
            for step in answer.steps
        ],
        "calls": [(call.name, repr(call.arguments)) for call in answer.tool_calls],
        "prompt": answer.usage.prompt_tokens,
    }


@pytest.mark.parametrize("twins", TWINS)
def test_who_asked_before_makes_no_difference(twins: str) -> None:
    first, second = TWINS[twins]
    with fresh() as pipe:
        before, behind = seen(ask(pipe, first)), seen(ask(pipe, second))
    assert before != behind, "twins that are the same show nothing"
    with fresh() as pipe:
        assert seen(ask(pipe, second)) == behind
