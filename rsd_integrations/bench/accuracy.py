"""Accuracy and cost of RSD against its draft and its target alone, on held-out pocket problems."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rsd_integrations.bench.results import LengthClass, Point, PRMQuality
from rsd_integrations.bench.runner import run_all
from rsd_integrations.bench.stats import Scored, bootstrap_auc, paired_difference, wilson
from rsd_integrations.config import RSDConfig
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket.task import Problem, check_answer, label_steps
from rsd_integrations.types import FLOPs, Generation

__all__ = ["MAX_TOKENS", "TARGET_ONLY", "Measurement", "measure"]

TARGET_ONLY = 1.1
"""Any threshold above 1."""

MAX_TOKENS = 512
"""Twice and more what the longest right answer takes; ends a model that repeats itself."""

Kind = Literal["draft", "rsd", "target"]


@dataclass(frozen=True)
class _Run:
    """All problems answered one way."""

    kind: Kind
    threshold: float
    generations: list[Generation]
    seconds: float

    @property
    def flops(self) -> FLOPs:
        return sum((generation.usage.flops for generation in self.generations), FLOPs())


@dataclass(frozen=True)
class Measurement:
    """The points from draft only to target only, and the PRM's quality."""

    points: tuple[Point, ...]
    prm: PRMQuality


def measure(
    pipe: RSDPipeline,
    problems: Sequence[Problem],
    thresholds: Sequence[float],
    *,
    seed: int = 0,
    on_run: Callable[[str], None] = lambda _: None,
    on_done: Callable[[], None] = lambda: None,
) -> Measurement:
    """Answer all problems greedily by draft, target and RSD at each threshold.

    The recommended threshold of the pipeline is measured whether it is listed or not.

    Args:
        pipe: the models.
        problems: what to answer.
        thresholds: the sweep.
        seed: of the bootstrap (decoding is greedy).
        on_run: told the name of each run before it starts.
        on_done: called after each answer.
    """
    runner = _Runner(pipe, problems, on_run, on_done)
    target = runner.run("target", TARGET_ONLY)
    draft = runner.run("draft", 0.0)
    sweep = [runner.run("rsd", threshold) for threshold in sorted({*thresholds, pipe.recommended_threshold})]
    points = [
        _point(run, problems, target, recommended=run.threshold == pipe.recommended_threshold)
        for run in (draft, *sweep, target)
    ]
    return Measurement(tuple(points), _prm_quality(problems, runner.scored_drafts(), seed))


class _Runner:
    """Runs all problems with one setting after another and says so."""

    def __init__(
        self,
        pipe: RSDPipeline,
        problems: Sequence[Problem],
        on_run: Callable[[str], None],
        on_done: Callable[[], None],
    ) -> None:
        self._pipe, self._on_run, self._on_done = pipe, on_run, on_done
        self._questions = [problem.question for problem in problems]

    def run(self, kind: Kind, threshold: float) -> _Run:
        name = f"threshold {threshold:g}" if kind == "rsd" else f"{kind} only"
        return self._run(kind, threshold, name, RSDConfig(threshold=threshold, max_tokens=MAX_TOKENS))

    def scored_drafts(self) -> list[Generation]:
        """The draft's own answers with a reward for each step: chance 1 keeps every one."""
        config = RSDConfig(weighting="constant", acceptance_rate=1.0, max_tokens=MAX_TOKENS)
        return self._run("draft", 0.0, "rewards of the draft's steps", config).generations

    def _run(self, kind: Kind, threshold: float, name: str, config: RSDConfig) -> _Run:
        self._on_run(name)
        start = time.perf_counter()
        generations = run_all(self._pipe, self._questions, config, self._on_done)
        return _Run(kind, threshold, generations, time.perf_counter() - start)


def _point(run: _Run, problems: Sequence[Problem], target: _Run, *, recommended: bool) -> Point:
    generations = run.generations
    rights = _rights(problems, generations)
    steps = [step for generation in generations for step in generation.steps]
    drafted = [step for step in steps if step.accepted or step.rejected_text is not None]
    return Point(
        kind=run.kind,
        threshold=run.threshold,
        recommended=recommended and run.kind == "rsd",
        accuracy=wilson(sum(rights), len(rights)),
        by_length=_by_length(problems, rights),
        against_target=paired_difference(rights, _rights(problems, target.generations)),
        acceptance_rate=sum(step.accepted for step in drafted) / len(drafted) if drafted else None,
        rewritten=sum(step.rejected_text is not None for step in steps) / max(1, len(steps)),
        target_idle=fmean(not generation.usage.target.generated for generation in generations),
        flops=run.flops,
        flops_share=run.flops.share_of(target.flops) or FLOPs(),
        mean_tokens=fmean(generation.usage.completion_tokens for generation in generations),
        unfinished=sum(generation.finish_reason != "stop" for generation in generations),
        seconds=run.seconds,
    )


def _rights(problems: Sequence[Problem], generations: Sequence[Generation]) -> list[bool]:
    return [
        check_answer(problem, generation.text)
        for problem, generation in zip(problems, generations, strict=True)
    ]


def _by_length(problems: Sequence[Problem], rights: Sequence[bool]) -> tuple[LengthClass, ...]:
    classes: dict[int, list[bool]] = {}
    for problem, right in zip(problems, rights, strict=True):
        classes.setdefault(problem.events, []).append(right)
    return tuple(
        LengthClass(events=events, problems=len(some), accuracy=wilson(sum(some), len(some)))
        for events, some in sorted(classes.items())
    )


def _prm_quality(problems: Sequence[Problem], generations: Sequence[Generation], seed: int) -> PRMQuality:
    every = [_labelled(problem, made) for problem, made in zip(problems, generations, strict=True)]
    counted = [_to_first_wrong(steps) for steps in every]
    return PRMQuality(
        auc=bootstrap_auc(counted, seed=seed),
        steps=sum(map(len, counted)),
        wrong_steps=_wrong(counted),
        all_steps=bootstrap_auc(every, seed=seed),
        all_steps_count=sum(map(len, every)),
        all_wrong_steps=_wrong(every),
    )


def _labelled(problem: Problem, generation: Generation) -> list[Scored]:
    labels = label_steps(problem, [step.text.strip("\n") for step in generation.steps])
    return [
        (step.reward, label)
        for step, label in zip(generation.steps, labels, strict=True)
        if step.reward is not None
    ]


def _to_first_wrong(steps: Sequence[Scored]) -> list[Scored]:
    rights = [right for _, right in steps]
    return list(steps if all(rights) else steps[: rights.index(False) + 1])


def _wrong(groups: Sequence[Sequence[Scored]]) -> int:
    return sum(not right for group in groups for _, right in group)
