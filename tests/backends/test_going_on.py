"""The draft writes on while its step waits for a reward, so that the PRM scores several at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.torch.writer import TorchWriterSession
from rsd_integrations.protocols import DraftStep, GuessStep, Sampling
from rsd_integrations.text.segment import StepBoundary
from tests.backends.test_speculation import FIELDS, PAIRS, check_equal, count_forwards, load, pairs

PROMPTS = ("Ava has 12 marbles. She buys 9 more.", "Hi.", "What is left of 7 apples? " * 3)


@pytest.fixture
def temperature() -> float:
    """Where a test names none."""
    return 0.0


@pytest.fixture(params=PAIRS)
def pipe(request: pytest.FixtureRequest, temperature: float) -> Iterator[RSDPipeline]:
    """Sampling in double precision: in single precision a draw next to an edge of the distribution falls on
    either side of it by rounding, which differs with the company and from machine to machine.
    """
    with load(*PAIRS[request.param], dtype=torch.float64 if temperature else torch.float32) as made:
        yield made


@pytest.fixture
def recalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were known already, each time that some were."""
    counts: list[int] = []
    recall = TorchWriterSession.recall

    def counting(session: TorchWriterSession) -> Any:
        before = len(session._known)
        written = recall(session)
        if before:
            counts.append(before - len(session._known))
        return written

    monkeypatch.setattr(TorchWriterSession, "recall", counting)
    return counts


def begin(pipe: RSDPipeline, seed: int, **fields: Any) -> Any:
    prompt = fields.pop("prompt", PROMPTS[seed % 3])
    return pipe.stream(prompt, **{**FIELDS, "acceptance_rate": 0.6, **fields}, seed=seed)


def ask(pipe: RSDPipeline, seed: int, **fields: Any) -> Generation:
    return begin(pipe, seed, **fields).result()


def together(pipe: RSDPipeline, count: int = 8, **fields: Any) -> list[Generation]:
    """So many at once: none begins before all are there."""
    there, draft = threading.Event(), pipe.backend.draft
    advance: Any = draft.advance

    def waiting(sessions: Any) -> Any:
        assert there.wait(30)
        return advance(sessions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "advance", waiting)
        streams = [begin(pipe, seed, **fields) for seed in range(count)]
        there.set()
        return [stream.result() for stream in streams]


# Waiting for scores has nothing to do with layers.
@pairs("same tokenizer", "sliding window", "kinds of layers", of="pipe")
@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 0.8])
def test_the_same_answers_and_fewer_forwards_of_the_prm(
    pipe: RSDPipeline, temperature: float, recalled: list[int]
) -> None:
    fields = {"temperature": temperature, "max_tokens": 60}
    alone = [ask(pipe, seed, **fields) for seed in range(8)]
    assert not recalled, "nobody waits for himself"
    forwards = count_forwards(pipe.backend.prm)
    found = together(pipe, **fields)
    for one, other in zip(found, alone, strict=True):
        check_equal(one, other)
    assert sum(recalled) > 8
    scored = sum(step.reward is not None for one in alone for step in one.steps)
    assert forwards[0] < 0.9 * scored


# What ends a step has nothing to do with layers.
@pairs("other tokenizer", "sliding window", "kinds of layers", of="pipe")
@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.2])
@pytest.mark.parametrize("count", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_short_steps_long_waits_limits_and_stop_strings(
    pipe: RSDPipeline, temperature: float, count: int, recalled: list[int]
) -> None:
    pipe._engine._score_rounds = 30
    for more in (
        {"max_step_tokens": 2},
        {"step_delimiter": ("e", " ", "a", "t")},
        {"max_tokens": 9},
        {"stop": "e"},
        {"max_steps": 3},
        {"top_k": 5},
        {"min_p": 0.1},
    ):
        fields = {"temperature": temperature, **more}
        alone = [ask(pipe, seed, **fields) for seed in range(count)]
        for one, other in zip(together(pipe, count, **fields), alone, strict=True):
            check_equal(one, other)
    assert recalled


@pairs("same tokenizer", "sliding window", "kinds of layers", of="pipe")
def test_steps_that_a_limit_cuts_are_written_on_behind_too(pipe: RSDPipeline, recalled: list[int]) -> None:
    fields: dict[str, Any] = {"step_delimiter": "\0", "max_step_tokens": 5, "max_tokens": 60}
    alone = [ask(pipe, seed, **fields) for seed in range(8)]
    for one, other in zip(together(pipe, **fields), alone, strict=True):
        check_equal(one, other)
    assert sum(recalled) > 8


@pytest.mark.parametrize("closing", [False, True])
def test_nothing_is_written_behind_a_step_that_a_limit_makes_the_last(closing: bool) -> None:
    with load(*PAIRS["same tokenizer"]) as pipe:
        draft: Any = pipe.backend.draft
        session = draft.open("What comes last?")
        boundary, greedy = StepBoundary(("\0",)), Sampling(0.0, 1.0, None, random.random)
        session.begin(DraftStep(boundary, 4, greedy, closing=closing))
        while (written := draft.advance([session])[0]) is None:
            pass
        assert written.end == "limit"
        assert session.goes_on == (not closing)
        session.close()


def test_what_fails_there_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the model is broken the next step says so; if it is not, nothing was lost."""
    with load(*PAIRS["same tokenizer"]) as pipe:
        draft: Any = pipe.backend.draft
        alone = [ask(pipe, seed) for seed in range(8)]
        advance, failed = draft.advance, []

        def failing(sessions: Any) -> Any:
            on = [isinstance(one.work, GuessStep) and one.work.sampling is not None for one in sessions]
            results = iter(advance([one for one, its in zip(sessions, on, strict=True) if not its]))
            failed.extend(its for its in on if its)
            return [RuntimeError("not now") if its else next(results) for its in on]

        monkeypatch.setattr(draft, "advance", failing)
        for one, other in zip(together(pipe), alone, strict=True):
            check_equal(one, other)
        assert failed


def test_the_window_s_end(recalled: list[int]) -> None:
    """It goes on no further than the window, and the answer ends where it would."""
    with load(*PAIRS["same tokenizer"]) as pipe:
        room = 512 - pipe.backend.draft.count("")
        fields = {"prompt": "a" * (room - 20), "max_tokens": None, "acceptance_rate": 1.0, "temperature": 1.0}
        alone = [ask(pipe, seed, **fields) for seed in range(4)]
        for one, other in zip(together(pipe, 4, **fields), alone, strict=True):
            check_equal(one, other)
        assert "length" in {one.finish_reason for one in alone}
        assert recalled
