"""Speed of RSD beside the other ways to get an answer, on one device, in one run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from rsd_integrations.bench.share import ExactShare
from rsd_integrations.bench.speed_alone import measure_breakdown, measure_limits
from rsd_integrations.bench.speed_results import (
    Breakdown,
    Growth,
    Limit,
    Spread,
    Timing,
    shown_name,
)
from rsd_integrations.bench.speed_setting import USUAL_SHARE, Setting
from rsd_integrations.config import RSDConfig
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.report.words import many, role_name
from rsd_integrations.types import Generation

if TYPE_CHECKING:
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio

GENERATE, TARGET_ONLY, ASSISTED = "generate", "target only", "assisted generate"
COMPILED, REFERENCE = "generate, compiled", "reference's way 0.8"
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 20}
"""Drawn from all tokens, random weights would write what is no text."""
GROWTH_STEPS = (10, 20, 40, 80)
REFERENCE_STEPS = 20
FIRST = 5


@dataclass(frozen=True)
class Speeds:
    """What was measured."""

    timings: Sequence[Timing]
    growth: Sequence[Growth]
    limits: Sequence[Limit]
    breakdown: Breakdown
    left_out: dict[str, str]


@dataclass(frozen=True)
class _Ran:
    """What a run came to: tokens written, and the share of steps kept where any were drafted."""

    tokens: int
    kept: float | None = None


@dataclass
class _Contender:
    """A way to answer all prompts, and what its runs came to."""

    name: str
    run: Callable[[], _Ran]
    ours: bool = True
    acceptance: float | None = None
    guesses: bool | None = None
    seconds: list[float] = field(default_factory=list)
    ran: _Ran = _Ran(0)

    @property
    def rate(self) -> float:
        """Tokens a second, of the median."""
        return self.ran.tokens / median(self.seconds)


class SpeedBench:
    """Measures one trio.

    Args:
        pipe: our engine over the models.
        plain: the same models without it.
        setting: what is measured.
        clock: seconds.
    """

    def __init__(
        self,
        pipe: RSDPipeline,
        plain: PlainTrio,
        setting: Setting,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pipe, self._plain, self._setting, self._clock = pipe, plain, setting, clock
        self._on_run: Callable[[str], object] = lambda _: None
        self._on_result: Callable[[str], object] = lambda _: None
        self._left_out: dict[str, str] = {}

    @property
    def runs(self) -> int:
        """How often ``measure`` tells of a measurement before it starts; fewer where a yardstick fails."""
        setting = self._setting
        contenders = sum(len(list(self._contenders(batch))) for batch in setting.batches)
        compiled = len(setting.batches) if self._plain.on_gpu else 0
        growth = 2 * len(setting.growth) if setting.forced else 0
        return (contenders + compiled) * (1 + setting.repeats) + growth + 2

    def measure(
        self,
        bandwidth: float,
        on_run: Callable[[str], object] = lambda _: None,
        on_result: Callable[[str], object] = lambda _: None,
    ) -> Speeds:
        """Everything. A yardstick that fails is left out; where our engine fails, so does the measurement.

        Args:
            bandwidth: of the device's memory, bytes a second.
            on_run: told the name of each measurement before it starts.
            on_result: told each number as it comes.

        Raises:
            Exception: whatever our engine raises.
        """
        self._on_run, self._on_result, self._left_out = on_run, on_result, {}
        timings = {batch: self._side_by_side(batch) for batch in self._setting.batches}
        followed = self._setting.growth.items() if self._setting.forced else ()
        growth = [one for length, prompt in followed for one in self._growth(length, prompt)]
        on_run("each model against the memory")
        limits = measure_limits(self._pipe, self._plain, self._setting, bandwidth, self._clock)
        for limit in limits:
            on_result(
                f"{role_name(limit.role)}: {limit.milliseconds:.2f} ms a token, "
                f"{100 * limit.share:.0f} % of the bandwidth"
            )
        on_run("where the time goes")
        breakdown = measure_breakdown(self._pipe, self._setting, self._clock)
        host = f"{breakdown.host:.2f} ({100 * breakdown.host_share:.0f} %) of it the host's"
        on_result(f"a step: {breakdown.wall:.2f} ms, {host}")
        for batch, others in timings.items():
            others.extend(self._compiled(batch, others))
        return Speeds(
            [one for timing in timings.values() for one in timing], growth, limits, breakdown, self._left_out
        )

    def _side_by_side(self, batch: int) -> list[Timing]:
        contenders = self._measured(list(self._contenders(batch)), batch)
        rates = {one.name: one.rate for one in contenders}
        return [_timing(one, batch, rates) for one in contenders]

    def _compiled(self, batch: int, others: Sequence[Timing]) -> list[Timing]:
        """The target's ``generate`` compiled, after all else: whenever torch records a graph for it, what
        libraries keep is cleared for the whole process.
        """
        if not self._plain.on_gpu:
            return []
        rates = {one.name: one.tokens_per_second for one in others}
        contender = _Contender(COMPILED, self._generate(batch, compiled=True), ours=False)
        return [_timing(one, batch, rates) for one in self._measured([contender], batch)]

    def _measured(self, contenders: Sequence[_Contender], batch: int) -> list[_Contender]:
        """Those that ran, timed after a warm-up."""
        measured = [one for one in contenders if self._timed(one, batch, ": warming up") is not None]
        # In turns, so that whatever else the machine does is shared.
        for _ in range(self._setting.repeats):
            for one in list(measured):
                seconds = self._timed(one, batch)
                if seconds is None:
                    measured.remove(one)
                else:
                    one.seconds.append(seconds)
        return measured

    def _timed(self, one: _Contender, batch: int, doing: str = "") -> float | None:
        """Seconds of a run; None for a yardstick that failed."""
        label = f"{shown_name(one.name)}, {many(batch, 'request')}"
        self._on_run(label + doing)
        start = self._clock()
        try:
            one.ran = one.run()
        except Exception as error:
            if one.ours:
                raise
            self._leave_out(label, error)
            return None
        seconds = self._clock() - start
        self._on_result(f"{label}{doing}: {seconds:.3f} s, {one.ran.tokens} tokens")
        return seconds

    def _leave_out(self, label: str, error: Exception) -> None:
        self._left_out[label] = f"{type(error).__name__}: {error!s:.120}"

    def _contenders(self, batch: int) -> Iterator[_Contender]:
        setting = self._setting
        yield _Contender(GENERATE, self._generate(batch), ours=False)
        if batch == 1:
            yield _Contender(ASSISTED, self._generate(batch, assisted=True), ours=False)
        yield _Contender(TARGET_ONLY, self._target_only(batch))
        for acceptance in setting.acceptances:
            for name, guesses in ((f"RSD {acceptance:g}", True), (f"RSD {acceptance:g}, no guesses", False)):
                run = self._rsd(batch, acceptance, guesses)
                yield _Contender(name, run, acceptance=acceptance, guesses=guesses)
        for acceptance in setting.acceptances[:1] if setting.forced else ():
            run = self._rsd(batch, acceptance, True, **SAMPLED)
            yield _Contender(f"RSD {acceptance:g}, sampled", run, acceptance=acceptance)
        if setting.forced and batch == 1:
            yield _Contender(REFERENCE, self._reference, ours=False, acceptance=USUAL_SHARE)

    def _generate(self, batch: int, **how: bool) -> Callable[[], _Ran]:
        works = self._setting.works(batch)
        return lambda: _Ran(sum(self._plain.generate(work, **how) for work in works))

    def _target_only(self, batch: int) -> Callable[[], _Ran]:
        config = self._setting.config(threshold=2.0)
        return lambda: _Ran(_tokens(self._answers(batch, config, [{}] * len(self._setting.prompts))))

    def _rsd(self, batch: int, acceptance: float, guesses: bool, **fields: Any) -> Callable[[], _Ran]:
        config = self._setting.config(speculation=guesses, **fields)

        def run() -> _Ran:
            own = [{"weighting": share} for share in self._setting.shares(acceptance)]
            answers = self._answers(batch, config, own)
            steps = [step for answer in answers for step in answer.steps]
            return _Ran(_tokens(answers), sum(step.accepted for step in steps) / len(steps))

        return run

    def _answers(self, batch: int, config: RSDConfig, fields: Sequence[dict[str, Any]]) -> list[Generation]:
        return asyncio.run(self._answer(batch, config, fields))

    async def _answer(
        self, batch: int, config: RSDConfig, fields: Sequence[dict[str, Any]]
    ) -> list[Generation]:
        """The answers to all prompts, ``batch`` requests at a time."""
        free = asyncio.Semaphore(batch)

        async def one(prompt: str, own: dict[str, Any]) -> Generation:
            async with free:
                return await self._pipe.agenerate(prompt, config=config, **own)

        return await asyncio.gather(*map(one, self._setting.prompts, fields))

    def _reference(self) -> _Ran:
        shares, works = self._setting.shares(USUAL_SHARE), self._setting.works(1)
        tokens = sum(map(self._plain.reference, works, shares))
        return _Ran(tokens, sum(share.kept for share in shares) / sum(share.asked for share in shares))

    def _growth(self, length: int, prompt: str) -> list[Growth]:
        """After the first five steps, one of which is rewritten: by then all three have read the prompt.

        An answer of ten steps is the beginning of one of eighty, so only the longest is run.
        """
        longest = max(GROWTH_STEPS)
        self._on_run(f"{longest} steps, prompt of {length}")
        ours = [self._step_times(longest, prompt) for _ in range(1 + self._setting.repeats)][1:]
        theirs = self._reference_times(length, prompt)
        growth = [
            Growth(
                prompt_tokens=length,
                steps=steps,
                ours=_each_behind_the_first(ours, steps),
                reference=_each_behind_the_first(theirs, steps)
                if theirs and steps <= REFERENCE_STEPS
                else None,
            )
            for steps in GROWTH_STEPS
        ]
        for one in growth:
            beside = "" if one.reference is None else f", {one.reference:.2f} the reference's way"
            self._on_result(f"{one.steps} steps, prompt of {length}: {one.ours:.2f} ms a step{beside}")
        return growth

    def _reference_times(self, length: int, prompt: str) -> list[list[float]]:
        """Of each repeat after the one that warms up; nothing where it failed."""
        label = f"reference's way, prompt of {length}"
        self._on_run(f"{label}: {REFERENCE_STEPS} steps")
        # Its time grows with the square of the steps, so it is not followed to the end.
        work = self._setting.work([prompt], steps=REFERENCE_STEPS)
        try:
            return [
                self._plain.reference_times(work, ExactShare(USUAL_SHARE))
                for _ in range(1 + self._setting.repeats)
            ][1:]
        except Exception as error:
            self._leave_out(label, error)
            return []

    def _step_times(self, steps: int, prompt: str) -> list[float]:
        """Seconds at which each step of an answer was committed. Four of five are kept."""
        config = self._setting.config(steps=steps, weighting=ExactShare(USUAL_SHARE))
        events = self._pipe.stream(prompt, config=config)
        return [event.elapsed_ms / 1000 for event in events if event.type == "committed"]


def _timing(one: _Contender, batch: int, rates: Mapping[str, float]) -> Timing:
    """A contender's, compared with ``rates``: tokens a second by name."""
    return Timing(
        name=one.name,
        batch=batch,
        acceptance=one.acceptance,
        guesses=one.guesses,
        kept=one.ran.kept,
        seconds=_spread(one.seconds),
        tokens=one.ran.tokens,
        against_generate=one.rate / rates[GENERATE] if GENERATE in rates else None,
        against_target=one.rate / rates[TARGET_ONLY] if TARGET_ONLY in rates else None,
    )


def _tokens(answers: Sequence[Generation]) -> int:
    return sum(answer.usage.completion_tokens for answer in answers)


def _each_behind_the_first(answers: Sequence[Sequence[float]], steps: int) -> float:
    """Milliseconds a step from the sixth to the last of so many; the median over the answers."""
    return 1000 * median((times[steps - 1] - times[FIRST - 1]) / (steps - FIRST) for times in answers)


def _spread(seconds: Sequence[float]) -> Spread:
    return Spread(median=median(seconds), fastest=min(seconds), slowest=max(seconds))
