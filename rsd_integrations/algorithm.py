"""Reward-Guided Speculative Decoding itself (Liao et al., arXiv 2501.19324, Algorithms 1 and 2).

A generator without I/O (a ``Story``): it yields the work it needs done (``DraftStep``, ``ScoreStep``,
``TargetStep``, or several as ``Together``) and is sent the result; it yields ``Kept`` and ``StepEvent`` and
is sent nothing. Whatever drives it decides where the work runs, and which requests share a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rsd_integrations.config import RSDConfig
from rsd_integrations.output import Output
from rsd_integrations.protocols import (
    DraftStep,
    Kept,
    Sampling,
    ScoreStep,
    TargetStep,
    Together,
    WindowFull,
    Work,
    Written,
)
from rsd_integrations.reading import Outcome, Reading
from rsd_integrations.rewards import reward_of
from rsd_integrations.text.calls import CallReader
from rsd_integrations.text.segment import StepBoundary, step_body
from rsd_integrations.text.thoughts import ReasoningTags
from rsd_integrations.types import (
    Candidate,
    FinishReason,
    Source,
    Step,
    StepEvent,
    ToolCall,
)
from rsd_integrations.weighting import acceptance_probability

Story = Generator[Work | Kept | StepEvent, Any, "Outcome"]


class Cancelled(Exception):
    """Thrown into the generator to end the answer where it stands."""


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
        seed: of the streams of random numbers (for each draft candidate, target and acceptance).
        max_tokens: the answer's budget, already cut to the window.
        tags: the thinking markup of a reasoning model.
        output: what the answer may be besides text.
        reader: reads calls, where there are tools.
        clock: gives seconds, for the steps' timings.

    Raises:
        RewardError: a reward is NaN or outside [0, 1], or the weighting gave no probability.
    """
    reading = Reading(config, tags, output or Output(), reader)
    teller = _Teller(config, seed, max_tokens, reading, clock, tags=tags)
    try:
        yield from teller.tell()
    except Cancelled:
        teller.finish("cancelled")
    except WindowFull:
        teller.finish("length")
    return teller.outcome


class _Teller:
    """The state of one answer: what is committed and what is left to spend."""

    def __init__(
        self,
        config: RSDConfig,
        seed: int,
        max_tokens: int,
        reading: Reading,
        clock: Callable[[], float],
        *,
        tags: ReasoningTags | None,
    ) -> None:
        self.config = config
        self._reading = reading
        self.outcome = reading.outcome
        self._weigh = config.acceptance()
        self._clock = clock
        self._left = max_tokens
        self._tail = ""
        self._thoughts = tags if config.stop else None
        markers = (tags.opening, tags.closing) if self._thoughts and tags else ()
        reach = reading.unbroken.reach if reading.unbroken else 0
        self._tail_length = max([reach, *(len(string) - 1 for string in (*config.stop, *markers))])
        self._inside = False
        self._blank = True  # At most white space is committed: there is no step to score yet.
        self._last_reward: float | None = None
        self._accept = random.Random(f"{seed}/accept").random
        self._target = _sampling(config, f"{seed}/target")
        self._draft_sampling = [
            _sampling(config, f"{seed}/draft/{place}" if place else f"{seed}/draft")
            for place in range(config.rows)
        ]

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
            yield Kept(facts.source, kept, self._body(kept), facts.best)
            yield self._commit(kept, facts)
            if reason := self._ending(kept):
                return self.finish(reason)

    def _draft(self, facts: _Facts) -> Generator[Work | Kept | StepEvent, Any, Written | None]:
        """Algorithm 2: the draft's step (the best of several) if it is accepted, else None."""
        start = self._clock()
        terms = self._terms()
        drafts = {place: DraftStep(**terms, sampling=one) for place, one in enumerate(self._draft_sampling)}
        facts.candidates = yield from _together(drafts, alone=len(drafts) == 1)
        for written in facts.candidates:
            if isinstance(written, WindowFull):
                raise written
        facts.draft_ms = 1000 * (self._clock() - start)
        written = facts.candidates[0]
        if written.end == "limit" and not written.token_ids:
            return written
        facts.draft_tokens = sum(len(candidate.token_ids) for candidate in facts.candidates)
        self.outcome.draft_generated += facts.draft_tokens
        # Counted as discarded until it is committed: a cancel may come at any yield.
        self.outcome.draft_discarded += facts.draft_tokens
        yield self._event("proposed", facts)
        if self.config.mode == "rsd":
            yield from self._judge(facts)
        accepted = self._accept() < facts.probability
        yield self._event("accepted" if accepted else "rejected", facts)
        return facts.drafted if accepted else None

    def _judge(self, facts: _Facts) -> Generator[Work | StepEvent, Any, None]:
        """Ask for the rewards and weigh the best. A step that the PRM has no room for is not accepted."""
        start = self._clock()
        yield from self._score(facts)
        facts.score_ms = 1000 * (self._clock() - start)
        # The first one with the highest reward; candidates without a reward come last.
        order = [-1.0 if reward is None else reward for reward in facts.rewards]
        facts.best = order.index(max(order))
        if facts.reward is None:
            facts.probability = 0.0
            return
        self._last_reward = facts.reward
        facts.probability = acceptance_probability(self._weigh, facts.reward)
        yield self._event("scored", facts)

    def _score(self, facts: _Facts) -> Generator[Work, Any, None]:
        """Have each distinct text scored once. An empty one adds nothing, so the last reward holds for it."""
        bodies = [self._body(written) for written in facts.candidates]
        known: dict[str, float | None] = {}
        if self._blank:
            known[""] = 0.0
        elif self._last_reward is not None:
            known[""] = self._last_reward
        asked = [body for body in dict.fromkeys(bodies) if body not in known]
        pieces = {bodies.index(body): ScoreStep(body) for body in asked}
        scores = yield from _together(pieces, alone=len(bodies) == 1)
        tokens: dict[str, int] = {}
        for body, scored in zip(asked, scores, strict=True):
            known[body], tokens[body] = reward_of(scored, facts.index, body)
        facts.rewards = [known[body] for body in bodies]
        facts.scored = [tokens.get(body, 0) for body in bodies]
        facts.scored_tokens = sum(tokens.values())
        self.outcome.scored += facts.scored_tokens
        self.outcome.scored_discarded += facts.scored_tokens

    def _rewrite(self, facts: _Facts) -> Generator[Work | StepEvent, Any, Written]:
        """The target's step, which is kept without being scored."""
        if not facts.candidates:
            facts.probability = 0.0
            yield self._event("rejected", facts)
        start = self._clock()
        guess = facts.drafted if self.config.speculation and facts.candidates else None
        written: Written = yield TargetStep(**self._terms(), sampling=self._target, rejected=guess)
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
            outcome.draft_discarded -= len(facts.drafted.token_ids)
            outcome.scored_discarded -= facts.scored[facts.best] if facts.scored else 0
        outcome.completion_tokens += len(written.token_ids)
        self._left -= len(written.token_ids)
        boundary = self._boundary()
        self._inside = boundary.ends_inside(written.text)
        self._thoughts = boundary.thoughts_behind(written.text)
        self._blank = self._blank and not self._body(written)
        step = facts.step(written, accepted)
        outcome.steps.append(step)
        self._tail = boundary.tail_behind(written.text, self._tail_length)
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
        """Release what was held back, and note why the answer ended."""
        self._reading.finish()
        called = any(isinstance(call, ToolCall) for call in self.outcome.calls)
        self.outcome.finish_reason = "tool_calls" if reason == "stop" and called else reason

    def _terms(self) -> dict[str, Any]:
        """How many tokens a step may take and where it ends."""
        last = len(self.outcome.steps) + 1 >= self.config.max_steps
        return {
            "boundary": self._boundary(),
            "max_tokens": min(self.config.max_step_tokens, self._left),
            "closing": self._left <= self.config.max_step_tokens or last,
        }

    def _boundary(self) -> StepBoundary:
        return StepBoundary(
            tuple(self.config.step_delimiter),
            tuple(self.config.stop),
            self._tail,
            self._reading.unbroken,
            self._inside,
            self._blank,
            self._thoughts,
        )

    def _body(self, written: Written) -> str:
        return step_body(written.shown, tuple(self.config.step_delimiter))

    def _event(self, kind: Any, facts: _Facts, **more: Any) -> StepEvent:
        text = more["step"].text if "step" in more else facts.drafted.shown if facts.candidates else ""
        if kind in ("proposed", "scored"):
            more["candidates"] = facts.told()
        return StepEvent(
            type=kind,
            index=facts.index,
            source=facts.source,
            text=text,
            reward=facts.reward,
            threshold=self.config.threshold_in_force,
            acceptance_probability=facts.probability if kind != "proposed" else None,
            **more,
        )


@dataclass(slots=True)
class _Facts:
    """What is known of the step in the making."""

    index: int
    source: Source = "draft"
    candidates: list[Written] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    best: int = 0
    probability: float = 1.0
    draft_tokens: int = 0
    target_tokens: int = 0
    scored_tokens: int = 0
    scored: list[int] = field(default_factory=list)
    draft_ms: float = 0.0
    score_ms: float = 0.0
    target_ms: float = 0.0

    @property
    def drafted(self) -> Written:
        """The draft's step: the best candidate, the first until rewards are known."""
        return self.candidates[self.best]

    @property
    def reward(self) -> float | None:
        """The reward of the draft's step."""
        return self.rewards[self.best] if self.rewards else None

    def told(self) -> tuple[Candidate, ...]:
        """All candidates, where there are several."""
        if len(self.candidates) < 2:
            return ()
        rewards = self.rewards or [None] * len(self.candidates)
        return tuple(
            Candidate(text=written.shown, reward=reward)
            for written, reward in zip(self.candidates, rewards, strict=True)
        )

    def step(self, written: Written, accepted: bool) -> Step:
        return Step(
            index=self.index,
            source=self.source,
            accepted=accepted,
            reward=self.reward,
            acceptance_probability=self.probability,
            text=written.shown,
            rejected_text=None if accepted or not self.candidates else self.drafted.shown,
            candidates=self.told(),
            draft_tokens=self.draft_tokens,
            target_tokens=self.target_tokens,
            scored_tokens=self.scored_tokens,
            draft_ms=self.draft_ms,
            score_ms=self.score_ms,
            target_ms=self.target_ms,
        )


def _sampling(config: RSDConfig, stream: str) -> Sampling:
    """Sampling with a random stream of its own for each model and candidate, whatever the others draw."""
    return Sampling(
        config.temperature,
        config.top_p,
        config.top_k,
        random.Random(stream).random,
        config.min_p,
        config.repetition_penalty,
    )


def _together(pieces: Mapping[int, DraftStep | ScoreStep], *, alone: bool) -> Generator[Work, Any, list[Any]]:
    """The results of work for candidates, ``WindowFull`` for one that does not fit.

    Args:
        pieces: the work, by candidate.
        alone: whether there is but one candidate, as in the paper.
    """
    if not pieces:
        return []
    if not alone:
        results: list[Any] = yield Together(tuple(pieces.values()), tuple(pieces))
        return results
    try:
        result = yield pieces[0]
    except WindowFull as full:
        return [full]
    return [result]
