"""Steps that the tests have written and committed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rsd_integrations.protocols import DraftStep, Kept, Sampling, TargetStep, Writer, WriterSession, Written
from rsd_integrations.text.segment import StepBoundary
from rsd_integrations.types import Prompt, Source

PROMPTS: list[Prompt] = ["hello there", [{"role": "user", "content": "a longer one, with a comma"}], "x"]
DELIMITERS = ("e", "\n\n", " ")


def work(
    max_tokens: int = 8,
    *,
    stop: tuple[str, ...] = (),
    tail: str = "",
    seed: int | None = None,
    kind: type[DraftStep] | type[TargetStep] = DraftStep,
    delimiters: tuple[str, ...] = DELIMITERS,
    **sampled: Any,
) -> DraftStep | TargetStep:
    """A step to write: greedy, or sampled if there is a seed. ``sampled``: fields of ``Sampling``."""
    plain = Sampling(0.0 if seed is None else 1.0, 1.0, None, random.Random(seed).random)
    return kind(StepBoundary(delimiters, stop, tail), max_tokens, replace(plain, **sampled))


_ROUNDS = 2000
"""Most rounds of a step here."""


def write(writer: Writer, sessions: Sequence[WriterSession], steps: Sequence[Any]) -> list[Written]:
    """Let some sessions write a step each, in shared rounds until the last is done."""
    for session, step in zip(sessions, steps, strict=True):
        session.begin(step)
    done: dict[int, Written] = {}
    for _ in range(_ROUNDS):
        waiting = [index for index in range(len(sessions)) if index not in done]
        if not waiting:
            return [done[index] for index in range(len(sessions))]
        results = writer.advance([sessions[index] for index in waiting])
        assert len(results) == len(waiting)
        for index, result in zip(waiting, results, strict=True):
            assert not isinstance(result, Exception), result
            if result is not None:
                done[index] = result
    raise AssertionError("a step never ended")


def finish(writer: Writer, session: WriterSession, between: Callable[[], None] = lambda: None) -> Written:
    """Let a session end the step that it has begun. ``between`` is called behind each round that does not."""
    for _ in range(_ROUNDS):
        (written,) = writer.advance([session])
        assert not isinstance(written, Exception), written
        if written is not None:
            return written
        between()
    raise AssertionError("a step never ended")


def keep(session: Any, written: Written, *, own: bool = True, body: str | None = None) -> None:
    """Commit a step: a session's own, or another model's."""
    source: Source = "draft" if own else "target"
    session.commit(Kept(source, written, written.shown.strip() if body is None else body), own=own)


def told(written: Written) -> tuple[Any, ...]:
    """What two equal steps have in common."""
    return written.text, written.token_ids, written.end, written.cut
