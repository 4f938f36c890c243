"""Rewrites share a pass over the target's weights. They wait for company, on their way too, but not long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import Prompt
from tests.gated import PATIENCE, wait_for
from tests.tiny_models import trio

STEPS = 8


def rejecting(places: Mapping[str, int], length: int, *, live: int) -> RSDPipeline:
    """Answers of steps of so many tokens. Each prompt's step at its place is rejected; the target writes "!"
    where the draft wrote ".".
    """

    def writes(mark: str) -> Any:
        return lambda prompt, index, text: mark * (length - 2) + "\n\n" if index < STEPS else None

    def reward(prompt: Prompt, index: int, body: str) -> float:
        return float(places.get(str(prompt)) != index)

    return scripted_pipeline(writes("."), writes("!"), reward, max_batch_size=live)


def launches(pipe: RSDPipeline) -> list[tuple[str, int]]:
    """Who was launched and with how many rows, in order."""
    order: list[tuple[str, int]] = []
    for role in ("draft", "target"):
        model = getattr(pipe.backend, role)

        def noted(sessions: Sequence[Any], role: str = role, own: Any = model.advance) -> Any:
            order.append((role, len(sessions)))
            return own(sessions)

        model.advance = noted
    return order


def answers(pipe: RSDPipeline, asked: Mapping[str, dict[str, Any]]) -> list[Generation]:
    """To all prompts, begun in one round."""
    gate = threading.Event()
    pipe._engine._inbox.put(lambda: gate.wait(PATIENCE))
    streams = [pipe.stream(prompt, **fields) for prompt, fields in asked.items()]
    gate.set()
    return [stream.result() for stream in streams]


def test_rewrites_wait_for_one_another() -> None:
    """Of twelve requests, each is rejected once and at a place of its own."""
    prompts = [f"prompt {number}" for number in range(12)]
    places = {prompt: number % 6 for number, prompt in enumerate(prompts)}
    with rejecting(places, 30, live=12) as pipe:
        order = launches(pipe)
        together = answers(pipe, {prompt: {} for prompt in prompts})
        rows = [count for role, count in order if role == "target"]
        # Six times two rows, if only those wait for each other that were rejected in the same round.
        assert sum(rows) == 12 * 30
        assert len(rows) <= 12 * 30 / 3.5
        for prompt, answer in zip(prompts, together, strict=True):
            assert answer.text == pipe.generate(prompt).text
            assert [step.accepted for step in answer.steps].index(False) == places[prompt]


@pytest.mark.parametrize(("length", "waited"), [(5, 16), (20, 40)])
def test_a_rewrite_waits_for_two_steps_at_most(length: int, waited: int) -> None:
    """In rounds of the draft; behind that it is written without a break."""
    prompts = ["alone", *(f"kept {number}" for number in range(7))]
    with rejecting({"alone": 1}, length, live=8) as pipe:
        order = launches(pipe)
        answers(pipe, {prompt: {} for prompt in prompts})
        first = order.index(("target", 1))
        rejected = 2 * length
        assert first - rejected == waited + 1  # The round in which it is rejected is the first.
        own = order[first : first + 2 * length]
        assert [role for role, _ in own] == ["target", "draft"] * length


@pytest.mark.parametrize("live", [6, 7])
def test_a_third_of_all_is_company_enough(live: int) -> None:
    prompts = [f"prompt {number}" for number in range(live)]
    with rejecting({"prompt 0": 0, "prompt 1": 0}, 10, live=live) as pipe:
        order = launches(pipe)
        answers(pipe, {prompt: {} for prompt in prompts})
        behind = ("target", 2) if live == 6 else ("draft", 5)
        assert order[10:12] == [("draft", live - 2), behind]


@pytest.mark.parametrize("scored", [0, 6])
def test_those_that_are_never_rewritten_are_no_company(scored: int) -> None:
    """Written by the draft alone, or only scored."""
    with rejecting({"rejected": 0}, 10, live=8) as pipe, ThreadPoolExecutor(8) as pool:
        order = launches(pipe)
        pipe._engine._inbox.put(lambda: wait_for(lambda: pipe.requests.waiting == 8))
        asked = [pool.submit(pipe.generate, "rejected")]
        for number in range(7):
            if number < scored:
                asked.append(pool.submit(pipe.score, f"{number}", ["a"] * 200))
            else:
                asked.append(pool.submit(pipe.generate, f"{number}", threshold=0.0))
        for one in asked:
            one.result()
        # Ten tokens of the step, and one of the others at most.
        assert [role for role, _ in order].index("target") <= 11


@pytest.mark.parametrize(("long", "waited"), [(7, 0), (1, 5)])
def test_rewrites_hardly_wait_while_a_long_prompt_is_read(long: int, waited: int) -> None:
    """For many rounds, which take long. Who reads is no company."""
    with rejecting({"short": 0}, 10, live=8) as pipe:
        writer: Any = pipe.backend.draft
        own, rounds = writer.advance, [0]

        def advance(sessions: Sequence[Any]) -> list[Any]:
            rounds[0] += 1
            going = [one for one in sessions if "long" not in str(one.prompt) or rounds[0] > 100]
            made = dict(zip(map(id, going), own(going), strict=True))
            return [made.get(id(one)) for one in sessions]

        writer.advance = advance
        order = launches(pipe)
        others = [f"{'long' if number < long else 'kept'} {number}" for number in range(7)]
        short, *rest = answers(pipe, {prompt: {} for prompt in ["short", *others]})
        assert not short.steps[0].accepted
        assert order.index(("target", 1)) == 11 + waited
        assert all(step.accepted for answer in rest for step in answer.steps)


def test_what_is_only_written_on_is_no_company() -> None:
    """Seven requests wait for rewards that take long, and their drafts write on behind."""
    gate = threading.Event()

    async def judged(prompt: Prompt, steps: tuple[str, ...]) -> float:
        while prompt != "at once" and not gate.is_set():
            await asyncio.sleep(0.001)
        return float(prompt != "at once")

    models = {role: model for role, model in trio().items() if role in ("draft", "target")}
    with RSDPipeline.from_pretrained(**models, prm=judged, device="cpu", max_batch_size=8) as pipe:
        order = launches(pipe)
        fields: dict[str, Any] = {"step_delimiter": "\0", "max_step_tokens": 40, "max_steps": 2}
        pipe._engine._inbox.put(lambda: wait_for(lambda: pipe.requests.waiting == 8))
        slow = [pipe.stream(f"later {number}", **fields) for number in range(7)]
        first = pipe.stream("at once", **{**fields, "max_steps": 1, "max_step_tokens": 60})
        assert not first.result().steps[0].accepted
        # The others' drafts write 40 tokens, then as many as they may behind them.
        assert [role for role, _ in order].index("target") < 70
        gate.set()
        assert all(stream.result().steps[0].accepted for stream in slow)


def test_guesses_go_before_steps() -> None:
    """All rewrites wait for them, and long prompts are read in the order of the sessions."""
    orders: list[list[bool]] = []
    with RSDPipeline.from_pretrained(**trio("Qwen2", "Qwen2"), device="cpu", max_batch_size=4) as pipe:
        draft: Any = pipe.backend.draft
        pipe.backend.target.info = replace(pipe.backend.target.info, parameters=10**9)  # type: ignore[misc]
        own = draft.advance

        def noted(sessions: Sequence[Any]) -> Any:
            # Guesses of the target's tokens draw nothing.
            orders.append([one.work.sampling is not None for one in sessions])
            return own(sessions)

        draft.advance = noted
        fields: dict[str, Any] = {"step_delimiter": "\0", "max_step_tokens": 30, "max_steps": 4}
        asked = {f"prompt {n}": {**fields, "threshold": 0.5, "seed": n} for n in range(8)}
        answers(pipe, asked)
    mixed = [order for order in orders if len({*order}) == 2 and not order[0]]
    assert mixed
    assert all(order == sorted(order) for order in orders)


def test_what_nobody_drafted_does_not_wait() -> None:
    """An answer by the target alone, among others."""
    asked: dict[str, dict[str, Any]] = {"by the target": {"threshold": 2.0}}
    asked |= {f"kept {number}": {} for number in range(7)}
    with rejecting({}, 10, live=8) as pipe:
        order = launches(pipe)
        answer, *_ = answers(pipe, asked)
        assert order[:20] == [("draft", 7), ("target", 1)] * 10
        assert set(answer.text) == {"!", "\n"}
