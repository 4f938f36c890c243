"""Calls by keys and values, written by models in this process and over servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.shared.writing import render
from rsd_integrations.errors import ConfigError
from rsd_integrations.output import Output
from rsd_integrations.types import ToolCall
from tests.backends.test_constraints import loaded
from tests.tiny_models import causal, token_classifier, tokenizer
from tests.vllm.double import double

QUESTION = "Which colour has the sky?"
TOOL = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "To paint.",
        "parameters": {
            "type": "object",
            "properties": {
                "colour": {"type": "string", "maxLength": 4},
                "kind": {"enum": ["sky", "sea\n\nside"]},
                "sure": {"type": "boolean"},
                "size": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 99}, {"type": "null"}]},
            },
            "required": ["colour", "kind", "sure"],
        },
    },
}
FORCED = Output.of(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
HOT: dict[str, Any] = {"temperature": 50.0, "weighting": "constant", "max_tokens": 250}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("keyed", "keyed"), marks=pytest.mark.slow),
        ("keyed", "keyed-b"),
        ("gemma", "gemma-b"),
    ],
)
def pipe(request: pytest.FixtureRequest) -> Iterator[RSDPipeline]:
    with loaded((*request.param, "ascii")) as made:
        yield made


def check(answer: Generation) -> ToolCall:
    [call] = answer.tool_calls
    assert not answer.invalid_tool_calls
    assert (answer.text, call.name) == ("", "paint")
    given = call.arguments
    assert {"colour", "kind", "sure"} <= given.keys() <= {"colour", "kind", "sure", "size"}
    assert isinstance(given["colour"], str) and len(given["colour"]) <= 4
    assert given["kind"] in ("sky", "sea\n\nside")
    assert given["sure"] in (True, False)
    assert given.get("size") is None or 1 <= given["size"] <= 99
    return call


@pytest.mark.parametrize("step", [512, 9])
def test_models_write_what_they_must(pipe: RSDPipeline, step: int) -> None:
    calls = [
        check(pipe.generate(QUESTION, output=FORCED, seed=seed, max_step_tokens=step, **HOT))
        for seed in range(2)
    ]
    assert len({str(call.arguments) for call in calls}) > 1


def test_a_call_is_one_step_whatever_is_in_it(pipe: RSDPipeline) -> None:
    for seed in range(6):
        answer = pipe.generate(QUESTION, output=FORCED, seed=seed, **HOT)
        if "\n\n" in check(answer).arguments["kind"]:
            assert [step.text.count("paint") for step in answer.steps if step.text.strip()] == [1]
            return
    pytest.fail("no such call")


def test_calls_that_were_made_are_shown_to_the_model_as_it_writes_them(pipe: RSDPipeline) -> None:
    call = check(pipe.generate(QUESTION, output=FORCED, seed=0, **HOT))
    function = {"name": call.name, "arguments": call.arguments}
    history: list[Any] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": "painted"},
    ]
    backend: Any = pipe.backend
    prompt = render(backend.target.tokenizer, history, FORCED, {})
    shown = backend.target.tokenizer.decode(prompt)
    colour = call.arguments["colour"]
    ways = f"<parameter=colour>\n{colour}\n</parameter>", f'call:paint{{colour:<|"|>{colour}<|"|>,'
    assert any(way in shown for way in ways)
    check(pipe.generate(history, output=FORCED, seed=1, **HOT))


@pytest.mark.parametrize("seed", range(3))
def test_strict_tools_leave_words_free_and_calls_valid(pipe: RSDPipeline, seed: int) -> None:
    strict = [{"type": "function", "function": {**TOOL["function"], "strict": True}}]  # type: ignore[dict-item]
    answer = pipe.generate(
        QUESTION, output=Output.of(tools=strict), temperature=2.0, seed=seed, max_tokens=120
    )
    assert not answer.invalid_tool_calls or answer.finish_reason == "length"


@pytest.mark.parametrize(("kind", "step"), [("keyed", 9), ("gemma", 512)])
def test_servers_write_the_same(tmp_path: Path, kind: str, step: int) -> None:
    for name, seed, flavour in (("draft", 1, kind), ("target", 2, f"{kind}-b")):
        causal("Qwen2", seed, flavour, max_position_embeddings=2048).save_pretrained(tmp_path / name)
        tokenizer(flavour).save_pretrained(tmp_path / name)
    token_classifier(0, "ascii").save_pretrained(tmp_path / "prm")
    tokenizer("ascii").save_pretrained(tmp_path / "prm")
    folders = [tmp_path / name for name in ("draft", "target", "prm")]
    fields: dict[str, Any] = {"weighting": "constant", "max_tokens": 250, "max_step_tokens": step}
    with (
        double(folders[0]) as draft,
        double(folders[1]) as target,
        double(folders[2]) as prm,
        RSDPipeline.from_vllm(draft.url, target.url, prm.url) as over,
        RSDPipeline.from_pretrained(*map(str, folders), device="cpu") as within,
    ):
        for seed in range(2):
            mine, theirs = (
                pipe.generate(QUESTION, output=FORCED, seed=seed, **fields) for pipe in (over, within)
            )
            assert mine.steps[0].text == theirs.steps[0].text
            assert check(mine).arguments == check(theirs).arguments


def test_a_schema_that_cannot_be_kept_to_is_refused(pipe: RSDPipeline) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)b"}}}
    function = {"name": "paint", "parameters": schema}
    for strict in (True, False):
        output = Output.of(
            tools=[{"type": "function", "function": {**function, "strict": strict}}], tool_choice="required"
        )
        if strict:
            with pytest.raises(ConfigError, match=r"pattern '\(\?=a\)b' of text"):
                pipe.generate(QUESTION, output=output)
        else:
            pipe.generate(QUESTION, output=output, max_tokens=3)
