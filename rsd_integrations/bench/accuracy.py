"""Accuracy and cost of RSD against its draft and its target alone, on held-out pocket problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rsd_integrations.bench.checks import required_numbers
from rsd_integrations.bench.environment import made, weights_sha256
from rsd_integrations.bench.questions import Question
from rsd_integrations.bench.results import AccuracyReport, PRMQuality
from rsd_integrations.bench.stats import Scored, bootstrap_auc
from rsd_integrations.bench.sweep import Watch, sweep
from rsd_integrations.config import RSDConfig
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket.task import Problem, check_answer, label_steps
from rsd_integrations.protocols import NONE
from rsd_integrations.types import Generation

MAX_TOKENS = 512
"""At least twice what the longest right answer takes; ends the answer of a model that repeats itself."""


def measure(
    pipe: RSDPipeline,
    problems: Sequence[Problem],
    thresholds: Sequence[float],
    *,
    command: str = "",
    folders: Mapping[str, Path] = NONE,
    settings: Mapping[str, bool | int | float | str] = NONE,
    seed: int = 0,
    watch: Watch | None = None,
) -> AccuracyReport:
    """Answer all problems greedily by draft, target and RSD at each threshold.

    The recommended threshold of the pipeline is measured whether it is listed or not.

    Args:
        pipe: the models.
        problems: what to answer.
        thresholds: the sweep.
        command: the command line that asks for it.
        folders: where each model's weights lie.
        settings: what the command line says of all this.
        seed: of the bootstrap (decoding is greedy).
        watch: told about progress.
    """
    tasks = [_question(problem) for problem in problems]
    swept = sweep(pipe, tasks, thresholds, RSDConfig(max_tokens=MAX_TOKENS), watch=watch)
    prm = _prm_quality(problems, swept.scored, seed)
    return AccuracyReport(
        **made(command),
        weights_sha256=weights_sha256(folders),
        settings={**settings, "decoding": "greedy", "max_tokens": MAX_TOKENS},
        recommended_threshold=pipe.recommended_threshold,
        points=swept.points,
        prm=prm,
        checks=required_numbers(swept.points, prm),
    )


def _question(problem: Problem) -> Question:
    def match(text: str, known: str) -> bool:
        return check_answer(problem, text)

    return Question(problem.question, str(problem.answer), match, problem.events)


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
