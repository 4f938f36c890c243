"""Reward-Guided Speculative Decoding itself (Liao et al., arXiv 2501.19324, Algorithms 1 and 2).

A generator without I/O: it yields the work it needs done (``DraftStep``, ``ScoreStep``,
``TargetStep``) and is sent the result; it yields ``Kept`` and ``StepEvent`` and is sent nothing.
Whoever drives it decides where and with whom the work runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from rsd_integrations.calls import CallReader
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import RewardError
from rsd_integrations.output import Output
from rsd_integrations.protocols import (
    DraftStep,
    Kept,
    Sampling,
    Scored,
    ScoreStep,
    TargetStep,
    WindowFull,
    Work,
    Written,
)
from rsd_integrations.segment import (
    CallSplitter,
    HoldBack,
    ReasoningSplitter,
    ReasoningTags,
    StepBoundary,
    Unbroken,
    step_body,
)
from rsd_integrations.types import FinishReason, InvalidToolCall, Source, Step, StepEvent, ToolCall
from rsd_integrations.weighting import acceptance_probability

__all__ = ["Cancelled", "Outcome", "Story", "rsd"]

Story = Generator[Work | Kept | StepEvent, Any, "Outcome"]


class Cancelled(Exception):
    """Thrown into the generator to end the answer where it stands."""


@dataclass(slots=True)
class Outcome:
    """What the story came to. ``delta``, ``reasoning_delta`` and ``late_calls`` were not yet part of an
    event.
    """

    finish_reason: FinishReason = "stop"
    text: str = ""
    reasoning: str | None = None
    delta: str = ""
    reasoning_delta: str = ""
    late_calls: list[ToolCall | InvalidToolCall] = field(default_factory=list)
    calls: list[ToolCall | InvalidToolCall] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    completion_tokens: int = 0
    draft_generated: int = 0
    draft_discarded: int = 0
    target_generated: int = 0
    scored: int = 0
    scored_discarded: int = 0


def rsd(
    config: RSDConfig,
    *,
    seed: int,
    max_tokens: int,
    tags: ReasoningTags | None = None,
    output: Output | None = None,
    reader: CallReader | None = None,
    clock: Callable[[], float],
) -> Story:
    """Tell the story of one answer.

    Args:
        config: with its threshold resolved.
        seed: of the three streams of random numbers (draft, target, acceptance).
        max_tokens: the answer's budget, already cut to the window.
        tags: the thinking markup of a reasoning model.
        output: what the answer may be besides text.
        reader: of calls, where there are tools.
        clock: seconds, for the steps' timings.

    Raises:
        RewardError: a reward is NaN or outside [0, 1], or the weighting gave no probability.
    """
    teller = _Teller(config, seed, max_tokens, _Reading(config, tags, output or Output(), reader), clock)
    try:
        yield from teller.tell()
    except Cancelled:
        teller.finish("cancelled")
    except WindowFull:
        teller.finish("length")
    return teller.outcome


class _Reading:
    """Committed text as it is read: what may be shown, what is thought, what is called."""

    def __init__(
        self, config: RSDConfig, tags: ReasoningTags | None, output: Output, reader: CallReader | None
    ) -> None:
        self._held = HoldBack(config.stop)
        self._splitter = ReasoningSplitter(tags)
        self._reader = reader if output.tools else None
        self._calls = CallSplitter(self._reader.unbroken) if self._reader else None
        self.single = bool(output.tools) and not output.parallel
        self.unbroken = self._reader.unbroken if self._reader else None
        if output.schema is not None:
            # A document fills the answer, behind the thinking if there is any.
            self.unbroken = Unbroken(tags.closing if tags and tags.open_in_prompt else "")
        self.outcome = Outcome()

    def push(self, written: Written) -> tuple[str, str, list[ToolCall | InvalidToolCall]]:
        """Take a committed step, return the (answer, reasoning, calls) that became certain."""
        held = self._held
        text = held.push(written.text) if written.cut is None else held.finish(written.text, written.cut)
        return self._read(text)

    def finish(self) -> None:
        """Give out what was held back."""
        outcome = self.outcome
        outcome.delta, outcome.reasoning_delta, outcome.late_calls = self._read(
            self._held.finish(), final=True
        )
        if not self._splitter.seen_reasoning:
            outcome.reasoning = None

    def _read(self, text: str, *, final: bool = False) -> tuple[str, str, list[ToolCall | InvalidToolCall]]:
        delta, reasoning = self._splitter.push(text, final=final)
        found: list[ToolCall | InvalidToolCall] = []
        if self._calls is not None and self._reader is not None:
            delta, texts = self._calls.push(delta, final=final)
            for call in texts:
                read = self._reader.read(call)
                delta += call if read is None else ""
                found += read or ()
        self.outcome.text += delta
        self.outcome.reasoning = (self.outcome.reasoning or "") + reasoning
        self.outcome.calls += found
        return delta, reasoning, found


class _Teller:
    """The state of one answer: what is committed and what is left to spend."""

    def __init__(
        self,
        config: RSDConfig,
        seed: int,
        max_tokens: int,
        reading: _Reading,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self._reading = reading
        self.outcome = reading.outcome
        self._weigh = config.acceptance()
        self._clock = clock
        self._left = max_tokens
        self._tail = ""
        reach = reading.unbroken.reach if reading.unbroken else 0
        self._tail_length = max([reach, *(len(string) - 1 for string in config.stop)])
        self._inside = False
        self._blank = True  # White space at most: there is no step to score yet.
        self._last_reward: float | None = None
        self._accept = random.Random(f"{seed}/accept").random
        self._sampling: dict[Source, Sampling] = {
            source: Sampling(
                config.temperature,
                config.top_p,
                config.top_k,
                random.Random(f"{seed}/{source}").random,
            )
            for source in ("draft", "target")
        }

    def tell(self) -> Generator[Work | Kept | StepEvent, Any, None]:
        """Algorithm 1: draft, score, keep or rewrite, until the end."""
        while True:
            facts = _Facts(index=len(self.outcome.steps))
            kept = None
            if self.config.mode != "target":
                kept = yield from self._draft(facts)
            if kept is None:
                kept = yield from self._rewrite(facts)
            if kept.end == "limit" and not kept.token_ids:
                return self.finish("length")
            yield Kept(facts.source, kept, self._body(kept))
            yield self._commit(kept, facts)
            if reason := self._ending(kept):
                return self.finish(reason)

    def _draft(self, facts: _Facts) -> Generator[Work | Kept | StepEvent, Any, Written | None]:
        """Algorithm 2: the draft's step if it is accepted, else None."""
        start = self._clock()
        written: Written = yield DraftStep(**self._terms("draft"))
        facts.draft_ms = 1000 * (self._clock() - start)
        if written.end == "limit" and not written.token_ids:
            return written
        facts.draft_tokens = len(written.token_ids)
        self.outcome.draft_generated += facts.draft_tokens
        # Until it is committed it counts as thrown away: a cancel may come at any yield.
        self.outcome.draft_discarded += facts.draft_tokens
        facts.drafted = written
        yield self._event("proposed", facts)
        if self.config.mode == "rsd":
            yield from self._judge(written, facts)
        accepted = self._accept() < facts.probability
        yield self._event("accepted" if accepted else "rejected", facts)
        return written if accepted else None

    def _judge(self, written: Written, facts: _Facts) -> Generator[Work | StepEvent, Any, None]:
        """Ask for the reward and weigh it. A step that the PRM has no room for is not accepted."""
        start = self._clock()
        try:
            scored = yield from self._score(self._body(written))
        except WindowFull:
            # A step too long for the PRM has no reward to be kept by.
            facts.probability = 0.0
            return
        facts.score_ms = 1000 * (self._clock() - start)
        if not 0.0 <= scored.reward <= 1.0:
            raise RewardError(
                f"the PRM gave reward {scored.reward!r}, which is not in [0, 1], "
                f"for step {facts.index}: {written.shown!r}.",
                hint="Check that prm_format fits the PRM, and its dtype if the reward is nan.",
            )
        self._last_reward = facts.reward = scored.reward
        facts.scored_tokens = scored.tokens
        self.outcome.scored += scored.tokens
        self.outcome.scored_discarded += scored.tokens
        facts.probability = acceptance_probability(self._weigh, scored.reward)
        yield self._event("scored", facts)

    def _score(self, body: str) -> Generator[Work, Any, Scored]:
        """An empty step leaves the text as it is, and so the reward of its last step."""
        if not body and self._blank:
            return Scored(0.0, 0)
        if not body and self._last_reward is not None:
            return Scored(self._last_reward, 0)
        scored: Scored = yield ScoreStep(body)
        return scored

    def _rewrite(self, facts: _Facts) -> Generator[Work | StepEvent, Any, Written]:
        """The target's step, neither scored nor tested again."""
        if facts.drafted is None:
            facts.probability = 0.0
            yield self._event("rejected", facts)
        start = self._clock()
        guess = facts.drafted if self.config.speculation else None
        written: Written = yield TargetStep(**self._terms("target"), rejected=guess)
        facts.target_ms = 1000 * (self._clock() - start)
        facts.target_tokens = len(written.token_ids)
        facts.source = "target"
        self.outcome.target_generated += facts.target_tokens
        self._last_reward = None
        return written

    def _commit(self, written: Written, facts: _Facts) -> StepEvent:
        outcome = self.outcome
        accepted = facts.source == "draft"
        if accepted:
            outcome.draft_discarded -= facts.draft_tokens
            outcome.scored_discarded -= facts.scored_tokens
        outcome.completion_tokens += len(written.token_ids)
        self._left -= len(written.token_ids)
        self._inside = self._boundary().ends_inside(written.text)
        self._blank = self._blank and not self._body(written)
        step = facts.step(written, accepted)
        outcome.steps.append(step)
        if self._tail_length:
            self._tail = (self._tail + written.text)[-self._tail_length :]
        delta, reasoning, calls = self._reading.push(written)
        final = self._ending(written) is not None
        return self._event(
            "committed",
            facts,
            step=step,
            delta=delta,
            reasoning_delta=reasoning,
            tool_calls=tuple(calls),
            final=final,
        )

    def _ending(self, kept: Written) -> FinishReason | None:
        """Why no step follows this committed one; None if one does."""
        if kept.end in ("eos", "stop") or (self._reading.single and self.outcome.calls):
            return "stop"
        spent = self._left <= 0 or len(self.outcome.steps) >= self.config.max_steps
        return "length" if spent else None

    def finish(self, reason: FinishReason) -> None:
        """Give out what was held back."""
        self._reading.finish()
        called = any(isinstance(call, ToolCall) for call in self.outcome.calls)
        self.outcome.finish_reason = "tool_calls" if reason == "stop" and called else reason

    def _terms(self, source: Source) -> dict[str, Any]:
        """What a step may take and where it ends."""
        return {
            "boundary": self._boundary(),
            "max_tokens": min(self.config.max_step_tokens, self._left),
            "closing": self._left <= self.config.max_step_tokens,
            "sampling": self._sampling[source],
        }

    def _boundary(self) -> StepBoundary:
        return StepBoundary(
            self.config.step_delimiter,
            self.config.stop,
            self._tail,
            self._reading.unbroken,
            self._inside,
            self._blank,
        )

    def _body(self, written: Written) -> str:
        return step_body(written.shown, self.config.step_delimiter)

    def _event(self, kind: Any, facts: _Facts, **more: Any) -> StepEvent:
        drafted = facts.drafted
        text = more["step"].text if "step" in more else drafted.shown if drafted else ""
        return StepEvent(
            type=kind,
            index=facts.index,
            source=facts.source,
            text=text,
            reward=facts.reward,
            threshold=self.config.threshold,
            acceptance_probability=facts.probability if kind != "proposed" else None,
            **more,
        )


@dataclass(slots=True)
class _Facts:
    """What is known of the step in the making."""

    index: int
    source: Source = "draft"
    drafted: Written | None = None
    reward: float | None = None
    probability: float = 1.0
    draft_tokens: int = 0
    target_tokens: int = 0
    scored_tokens: int = 0
    draft_ms: float = 0.0
    score_ms: float = 0.0
    target_ms: float = 0.0

    def step(self, written: Written, accepted: bool) -> Step:
        return Step(
            index=self.index,
            source=self.source,
            accepted=accepted,
            reward=self.reward,
            acceptance_probability=self.probability,
            text=written.shown,
            rejected_text=None if accepted or self.drafted is None else self.drafted.shown,
            draft_tokens=self.draft_tokens,
            target_tokens=self.target_tokens,
            scored_tokens=self.scored_tokens,
            draft_ms=self.draft_ms,
            score_ms=self.score_ms,
            target_ms=self.target_ms,
        )
