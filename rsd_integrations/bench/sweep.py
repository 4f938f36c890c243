"""All questions answered by draft alone, target alone, and RSD at each threshold of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from rsd_integrations.bench.questions import Question
from rsd_integrations.bench.results import LengthClass, Point
from rsd_integrations.bench.runner import run_all
from rsd_integrations.bench.saved import SavedAnswers
from rsd_integrations.bench.stats import paired_difference, wilson
from rsd_integrations.config import RSDConfig
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import FLOPs, Generation

TARGET_ONLY = 1.1
"""Any threshold above 1: no reward reaches it."""

_ALONE: dict[str, Any] = {"draft_candidates": 1}
"""With several candidates the PRM would choose, so it would not be the draft alone."""

Kind = Literal["draft", "rsd", "target"]


@dataclass(frozen=True)
class Watch:
    """Who is told about progress.

    ``on_start``: gets the number of runs, before the first.
    ``on_run``: gets the name of each run before it starts, and how many answers it still has to make.
    ``on_done``: called after each of them.
    """

    on_run: Callable[[str, int], None] = lambda name, count: None
    on_done: Callable[[], None] = lambda: None
    on_start: Callable[[int], None] = lambda runs: None


@dataclass(frozen=True)
class Sweep:
    """The points from draft only to target only, and what the PRM says about the draft's own answers.

    ``scored``: the draft's answers, with a reward for each step; ``scored_right``: whether they are right.
    ``rights``: by the name of the run, whether its answer to each task is right.
    """

    points: tuple[Point, ...]
    scored: list[Generation]
    scored_right: list[bool]
    rights: dict[str, list[bool]]


def sweep(
    pipe: RSDPipeline,
    tasks: Sequence[Question],
    thresholds: Sequence[float],
    config: RSDConfig,
    *,
    default: bool = True,
    watch: Watch | None = None,
    answers: SavedAnswers | None = None,
) -> Sweep:
    """Answer all questions each way.

    Args:
        pipe: the models.
        tasks: what to answer.
        thresholds: the sweep.
        config: how to decode, but for the threshold and the weighting.
        default: the PRM's default threshold is measured, listed or not.
        watch: told about progress.
        answers: where answers are saved; those that are there already are not made again.
    """
    recommended = pipe.recommended_threshold
    measured = {*map(float, thresholds), *([recommended] if default else [])}
    watch = watch or Watch()
    watch.on_start(len(measured) + 3)  # Target, draft, and the rewards of the draft's steps.
    runner = _Runner(pipe, tasks, config, watch, answers)
    target = runner.run("target", TARGET_ONLY)
    draft = runner.run("draft", 0.0)
    middle = [runner.run("rsd", threshold) for threshold in sorted(measured)]
    runs = (draft, *middle, target)
    points = [_point(run, tasks, target, recommended=run.threshold == recommended) for run in runs]
    scored = runner.scored_drafts()
    return Sweep(tuple(points), scored, runner.rights(scored), {run.name: run.rights for run in runs})


@dataclass(frozen=True)
class _Run:
    """All questions answered one way. ``seconds``: None where some were answered before."""

    name: str
    kind: Kind
    threshold: float
    generations: list[Generation]
    rights: list[bool]
    seconds: float | None

    @property
    def flops(self) -> FLOPs:
        return sum((generation.usage.flops for generation in self.generations), FLOPs())


class _Runner:
    """Runs all questions with one setting after another, and reports progress."""

    def __init__(
        self,
        pipe: RSDPipeline,
        tasks: Sequence[Question],
        config: RSDConfig,
        watch: Watch,
        answers: SavedAnswers | None,
    ) -> None:
        self._pipe, self._tasks, self._config = pipe, tasks, config
        self._watch, self._answers = watch, answers

    def run(self, kind: Kind, threshold: float) -> _Run:
        name = f"threshold {threshold}" if kind == "rsd" else f"{kind} only"
        config = self._config.override(threshold=threshold, weighting="step")
        if kind == "draft":
            config = config.override(**_ALONE)
        generations, seconds = self._run(name, config)
        return _Run(name, kind, threshold, generations, self.rights(generations), seconds)

    def rights(self, generations: Sequence[Generation]) -> list[bool]:
        """Whether each is right."""
        return [task.right(one.text) for task, one in zip(self._tasks, generations, strict=True)]

    def scored_drafts(self) -> list[Generation]:
        """The draft's own answers with a reward for each step: at acceptance rate 1 all are kept."""
        config = self._config.override(weighting="constant", acceptance_rate=1.0, **_ALONE)
        return self._run("rewards of the draft's steps", config)[0]

    def _run(self, name: str, config: RSDConfig) -> tuple[list[Generation], float | None]:
        made = dict(self._answers.of(name)) if self._answers else {}
        left = [place for place in range(len(self._tasks)) if place not in made]
        self._watch.on_run(name, len(left))

        def done(place: int, generation: Generation) -> None:
            made[place] = generation
            if self._answers:
                self._answers.add(name, place, generation)
            self._watch.on_done()

        start, whole = time.perf_counter(), not made
        run_all(self._pipe, {place: self._tasks[place].prompt for place in left}, config, done)
        seconds = time.perf_counter() - start if whole else None
        if self._answers:
            if seconds is not None:
                self._answers.ended(name, seconds)
            seconds = self._answers.seconds(name)
        return [made[place] for place in range(len(self._tasks))], seconds


def _point(run: _Run, tasks: Sequence[Question], target: _Run, *, recommended: bool) -> Point:
    generations, rights = run.generations, run.rights
    steps = [step for generation in generations for step in generation.steps]
    drafted = [step for step in steps if step.accepted or step.rejected_text is not None]
    return Point(
        kind=run.kind,
        threshold=run.threshold,
        recommended=recommended and run.kind == "rsd",
        accuracy=wilson(sum(rights), len(rights)),
        by_length=_by_length(tasks, rights),
        against_target=paired_difference(rights, target.rights),
        acceptance_rate=sum(step.accepted for step in drafted) / len(drafted) if drafted else None,
        rewritten=sum(step.rejected_text is not None for step in steps) / max(1, len(steps)),
        target_idle=fmean(not generation.usage.target.generated for generation in generations),
        flops=run.flops,
        flops_share=run.flops.share_of(target.flops) or FLOPs(),
        mean_tokens=fmean(generation.usage.completion_tokens for generation in generations),
        unfinished=sum(generation.finish_reason != "stop" for generation in generations),
        seconds=run.seconds,
    )


def _by_length(tasks: Sequence[Question], rights: Sequence[bool]) -> tuple[LengthClass, ...]:
    classes: dict[int, list[bool]] = {}
    for task, right in zip(tasks, rights, strict=True):
        if task.length is not None:
            classes.setdefault(task.length, []).append(right)
    return tuple(
        LengthClass(events=length, problems=len(some), accuracy=wilson(sum(some), len(some)))
        for length, some in sorted(classes.items())
    )
