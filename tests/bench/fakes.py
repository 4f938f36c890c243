"""An engine and yardsticks that write nothing, remember what was asked, and spend time on a fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from rsd_integrations.config import RSDConfig
from rsd_integrations.types import Generation, Role, Step, StepEvent, Usage

STEP_TOKENS = 4
COSTS = {"draft": 1.0, "prm": 2.0, "target": 7.0, "guessing": 3.0, "host": 0.5}
"""Seconds of a step. A target that takes guesses needs less for it."""


class Clock:
    """Time that passes only where it is spent."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class FakeRunner:
    """A model's forwards, which cost what they are told to."""

    clock: Clock
    runs_ahead: bool = True

    def forward(self, seconds: float) -> None:
        self.clock.spend(seconds)


@dataclass
class FakePipe:
    """The engine: steps cost what ``COSTS`` says, and are kept as the weighting says.

    Args:
        clock: where time is spent.
        steps: of an answer.
        slowness: factor on the costs of each answer in turn; 1 when they are used up.
        fail: raises in the middle of an answer.
    """

    clock: Clock
    steps: int = 10
    slowness: Iterable[float] = ()
    fail: Callable[[RSDConfig], object] = lambda config: None
    asked: list[tuple[str, RSDConfig]] = field(default_factory=list)
    most: int = 0
    """Requests that were at work at once."""

    def __post_init__(self) -> None:
        self._slowness, self._live = iter(self.slowness), 0
        models = {role: SimpleNamespace(runner=FakeRunner(self.clock)) for role in ("draft", "prm", "target")}
        self.backend = SimpleNamespace(**models)

    async def agenerate(self, prompt: str, config: RSDConfig, **fields: Any) -> Generation:
        self._live += 1
        self.most = max(self.most, self._live)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._live -= 1
        return self.generate(prompt, config.override(**fields))

    def generate(self, prompt: str, config: RSDConfig) -> Generation:
        *_, last = self.stream(prompt, config)
        assert last.generation is not None
        return last.generation

    def stream(self, prompt: str, config: RSDConfig) -> Iterator[StepEvent]:
        self.asked.append((prompt, config))
        slow, start, steps = next(self._slowness, 1.0), self.clock.now, []
        for index in range(min(self.steps, config.max_steps)):
            self.fail(config)
            step = self._step(index, config, slow)
            steps.append(step)
            elapsed = 1000 * (self.clock.now - start)
            yield StepEvent(type="committed", index=index, step=step, elapsed_ms=elapsed)
        usage = Usage(completion_tokens=STEP_TOKENS * len(steps))
        made = Generation(
            text="", steps=tuple(steps), usage=usage, finish_reason="stop", seed=0, threshold=None
        )
        yield StepEvent(type="finished", index=len(steps), generation=made)

    def _step(self, index: int, config: RSDConfig, slow: float) -> Step:
        def forward(role: Role, cost: str) -> None:
            getattr(self.backend, role).runner.forward(slow * COSTS[cost])

        accepted = config.mode == "draft"
        if config.mode != "target":
            forward("draft", "draft")
        if config.mode == "rsd":
            forward("prm", "prm")
            accepted = config.acceptance()(0.5) == 1.0
        if not accepted:
            forward("target", "guessing" if config.speculation else "target")
        self.clock.spend(slow * COSTS["host"])
        return Step(
            index=index,
            source="draft" if accepted else "target",
            accepted=accepted,
            reward=0.5 if config.mode == "rsd" else None,
            acceptance_probability=float(accepted),
            text="",
            draft_tokens=STEP_TOKENS * (config.mode != "target"),
            target_tokens=STEP_TOKENS * (not accepted),
        )


@dataclass
class FakePlain:
    """The yardsticks: each run takes the next of its seconds, 1 when they are used up."""

    clock: Clock
    on_gpu: bool = False
    seconds: dict[str, list[float]] = field(default_factory=dict)
    fail: dict[str, int] = field(default_factory=dict)
    """By name, from which run on it fails."""
    runs: list[tuple[str, Any]] = field(default_factory=list)

    def _run(self, name: str, work: Any) -> float:
        self.runs.append((name, work))
        number = sum(one == name for one, _ in self.runs)
        if number > self.fail.get(name, 10**9):
            raise OSError(f"no {name} here")
        seconds = self.seconds.get(name, [])
        spent = seconds[number - 1] if number <= len(seconds) else 1.0
        self.clock.spend(spent)
        return spent

    def generate(self, work: Any, *, assisted: bool = False, compiled: bool = False) -> int:
        self._run("assisted" if assisted else "compiled" if compiled else "generate", work)
        return len(work.prompts) * work.max_tokens

    def reference(self, work: Any, weighting: Callable[[float], float]) -> int:
        self._run("reference", work)
        return len(self._weighed(work, weighting)) * work.step_tokens

    def reference_times(self, work: Any, weighting: Callable[[float], float]) -> list[float]:
        spent = self._run("reference times", work)
        return [spent * place for place, _ in enumerate(self._weighed(work, weighting), 1)]

    @staticmethod
    def _weighed(work: Any, weighting: Callable[[float], float]) -> list[float]:
        return [weighting(0.5) for _ in range(work.max_tokens // work.step_tokens)]

    def bytes_per_token(self, role: str) -> int:
        return {"draft": 10, "target": 70, "prm": 20}[role]
