"""Which threshold suits these models on these questions: a sweep, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rsd_integrations.bench.questions import Question
from rsd_integrations.bench.results import Interval, Item, Point
from rsd_integrations.bench.runner import run_all
from rsd_integrations.bench.saved import SavedAnswers
from rsd_integrations.bench.stats import bootstrap_auc
from rsd_integrations.bench.sweep import TARGET_ONLY, Sweep, Watch, sweep
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError, PromptLengthError
from rsd_integrations.limits import call_config, check_takes
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.prompts import check_prompt
from rsd_integrations.report.words import many

__all__ = ["Tuning", "Wording", "advice", "cheapest", "signed", "tune"]

_WARM_UP = {"max_steps": 4, "max_step_tokens": 16}
"""Limits of each answer that is written before times are taken."""

_EPSILON = 1e-9

_TELLING = 30
"""Questions from which how many more are needed can be told."""

_POWER = 2
"""Times as many as make the interval just narrow enough, so that it tells four times out of five, not two."""

_MANY_CUT = 0.25
"""Share of the target's answers from which on those that a limit cut off leave nothing to compare with."""

_TASKS = "Give questions as [Question(text, known_answer, match), ...]; see rsd_integrations.bench.questions."


@dataclass(frozen=True)
class Tuning:
    """What was measured. Fields as of ``TuneReport``."""

    within: float
    points: tuple[Point, ...]
    auc: Interval | None
    drafts: int
    drafts_wrong: int
    items: tuple[Item, ...]


def tune(
    pipe: RSDPipeline,
    tasks: Sequence[Question],
    thresholds: Sequence[float],
    config: RSDConfig | None = None,
    *,
    within: float = 0.01,
    watch: Watch | None = None,
    answers: SavedAnswers | None = None,
) -> Tuning:
    """Answer all questions by draft, target and RSD at each threshold; find the cheapest that is good enough.

    Args:
        pipe: the models.
        tasks: the questions.
        thresholds: the sweep; the PRM's default is measured, too, unless a single one is to be confirmed.
        config: how to decode, but for the threshold and the weighting; None: ``RSDConfig()``. Its seed is
            also the bootstrap's; each question gets a seed made of it and its place.
        within: accuracy that may be lost to the target, as a share of the questions: 0.01 is one point.
        watch: told about progress.
        answers: where answers are saved; those that are there already are not made again.

    Raises:
        ConfigError: an argument is not what it must be, or there is no question.
        PromptError: a question is empty, or does not fit (PromptLengthError); raised before any is answered.
        RSDError: a model failed; the answers saved so far stay.
    """
    config = call_config(config, {})
    tasks, thresholds = _checked_tasks(tasks), _checked_thresholds(thresholds)
    _check_within(within)
    _check_lengths(pipe, tasks, config)
    _warm_up(pipe, tasks, config)
    confirms = len(set(thresholds)) == 1
    swept = sweep(pipe, tasks, thresholds, config, default=not confirms, watch=watch, answers=answers)
    best = None if _too_many_cut(swept.points[-1], len(tasks)) else cheapest(swept.points, within)
    points = tuple(point.model_copy(update={"recommended": point is best}) for point in swept.points)
    lowest = _lowest_rewards(swept)
    return Tuning(
        within,
        points,
        bootstrap_auc([[one] for one in lowest], seed=config.seed or 0),
        len(lowest),
        sum(not right for _, right in lowest),
        _items(tasks, swept),
    )


def _checked_tasks(tasks: Any) -> list[Question]:
    found = list(tasks) if isinstance(tasks, Iterable) else []
    if not found or isinstance(tasks, str):
        raise ConfigError(f"tasks={tasks!r:.100} are no questions.", hint=_TASKS)
    for number, task in enumerate(found, 1):
        if not isinstance(task, Question):
            raise ConfigError(f"question {number} is no Question but {task!r:.100}.", hint=_TASKS)
        if not isinstance(task.known, str):
            raise ConfigError(
                f"known={task.known!r:.100} of question {number} is no text.",
                hint="Write it as a text: '26'.",
            )
        what = f"match={task.match!r:.100} of question {number}"
        check_takes(
            task.match, "", task.known, what=what, hint="It gets an answer's text and the known answer."
        )
    return found


def _checked_thresholds(thresholds: Any) -> list[float]:
    try:
        found = [math.nan] if isinstance(thresholds, str) else list(map(float, thresholds))
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(math.isfinite(one) and one >= 0 for one in found):
        raise ConfigError(
            f"thresholds={thresholds!r:.100} are no numbers from 0 on.", hint="Give several, as [0.5, 0.9]."
        )
    return found


def _check_within(within: Any) -> None:
    if isinstance(within, bool) or not isinstance(within, int | float) or not 0 <= within < 1:
        raise ConfigError(
            f"within={within!r} is no share of the questions.",
            hint="Give a number from 0 on and below 1: 0.01 is one point.",
        )


def _items(tasks: Sequence[Question], swept: Sweep) -> tuple[Item, ...]:
    return tuple(
        Item(
            entry=task.entry,
            known=task.known,
            right={name: rights[place] for name, rights in swept.rights.items()},
        )
        for place, task in enumerate(tasks)
    )


def cheapest(points: Sequence[Point], within: float) -> Point | None:
    """RSD's cheapest point (total FLOPs) that loses no more than this to the target, if there is one.

    There is none where the target (the last point) is never right: then every point is as good as the target.
    """
    if not points[-1].accuracy.value:
        return None
    enough = [point for point in points if point.kind == "rsd" and _good_enough(point, within)]
    return min(enough, key=lambda point: (point.flops.total, point.threshold), default=None)


def _good_enough(point: Point, within: float) -> bool:
    return point.against_target.value >= -within - _EPSILON


@dataclass(frozen=True)
class Wording:
    """What differs between advice to those who call ``tune`` and to those who type ``rsd tune``.

    ``limits``: the settings that cut answers off. ``confirm``: how a threshold is tried on other questions,
    as the end of a sentence.
    """

    limits: str = "max_tokens (or max_steps)"
    confirm: Callable[[float], str] = "confirm it there, with thresholds=[{}] alone.".format


def _too_many_cut(target: Point, questions: int) -> bool:
    return target.unfinished >= _MANY_CUT * questions


def advice(
    points: Sequence[Point], within: float, questions: int, wording: Wording | None = None
) -> list[str]:
    """What to do, in sentences.

    Args:
        points: from draft only to target only.
        within: accuracy that may be lost to the target.
        questions: how many were answered.
        wording: None: for Python.
    """
    wording = wording or Wording()
    draft, target = points[0], points[-1]
    best = next((point for point in points if point.recommended), None)
    cut = _cut_off(target, best, questions, wording.limits)
    if not target.accuracy.value:
        return [
            *cut,
            "The target alone is right on none: look at its answers, and at how they are matched.",
        ]
    if _too_many_cut(target, questions):
        return cut
    allowed = f"{100 * within:g} point{'' if within == 0.01 else 's'}"
    lines = _none(points, allowed, within) if best is None else _taken(best, target, allowed)
    if _good_enough(draft, within):
        lines.append(
            f"The draft alone is good enough, too, for {_cost(draft, target)}: these questions do not need "
            f"the target ({signed(draft.against_target)} points)."
        )
    chosen = sum(point.kind == "rsd" for point in points) > 1
    if best is not None:
        confirm = wording.confirm(best.threshold) if chosen else None
        lines += _doubts(best, within, questions, allowed, confirm)
    return [*cut, *lines]


def _none(points: Sequence[Point], allowed: str, within: float) -> list[str]:
    closest = max((one for one in points if one.kind == "rsd"), key=lambda one: one.accuracy.value)
    lines = [
        f"No threshold is within {allowed} of the target. The closest is {closest.threshold:g}: "
        f"{_against(closest)}. Raise the thresholds, or take another PRM or draft."
    ]
    if closest.against_target.high >= -within:
        lines.append("So few questions cannot tell for sure: measure on more.")
    return lines


def _taken(best: Point, target: Point, allowed: str) -> list[str]:
    lines = [
        f"Threshold {best.threshold:g} is the cheapest within {allowed} of the target: {_against(best)}, for "
        f"{_cost(best, target)}."
    ]
    faster = best.seconds < target.seconds if best.seconds and target.seconds else None
    if best.flops_share.total < 1:
        if faster is False:
            lines.append(
                "It took no less time than the target alone: what it saves in FLOPs it does not save in time."
            )
    elif faster:
        lines.append("It costs more FLOPs than the target alone, and less time.")
    else:
        lines.append("It costs more than the target alone: RSD does not pay here.")
    return lines


def _cut_off(target: Point, best: Point | None, questions: int, limits: str) -> list[str]:
    """Answers that no setting of the threshold can make right."""
    cut = {"the target's": target.unfinished}
    if best is not None:
        cut[f"threshold {best.threshold:g}'s"] = best.unfinished
    told = " and ".join(f"{count} of {whose}" for whose, count in cut.items() if count)
    if not told:
        return []
    return [f"A limit cut off {told} {many(questions, 'answer')}: measure again with a higher {limits}."]


def _doubts(best: Point, within: float, questions: int, allowed: str, confirm: str | None) -> list[str]:
    """What the interval leaves open. Of several thresholds one may be the best by luck.

    Args:
        best: the recommended point.
        within: accuracy that may be lost to the target.
        questions: how many were answered.
        allowed: ``within`` in words.
        confirm: how to try it on others, where these questions decided among several thresholds.
    """
    lost = best.against_target
    if lost.low >= -within - _EPSILON:
        return []
    worst = -100 * lost.low
    # Not from the share itself: the interval lies around a point nearer to 0.
    margin, spread = (lost.low + lost.high) / 2 + within, (lost.high - lost.low) / 2
    lines = [
        f"It was chosen by these questions and may lose up to {worst:.1f} points on others: {confirm}"
        if confirm
        else f"It may lose up to {worst:.1f} points: measure on more."
    ]
    if margin > _EPSILON and questions >= _TELLING:
        needed = _rounded_up(_POWER * questions * (spread / margin) ** 2)
        lines.append(
            f"If the true difference is as measured, it takes about {needed:,} questions to show that it is "
            f"within {allowed}."
        )
    return lines


def _rounded_up(count: float) -> int:
    """To two digits: more would claim too much."""
    unit: int = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit


def _against(point: Point) -> str:
    return f"{100 * point.accuracy.value:.1f} %, {signed(point.against_target)} points against the target"


def signed(difference: Interval) -> str:
    """A difference of accuracies with its interval, in points. Without a blank in the interval, where
    terminals would break it (rich breaks lines at no-break spaces, too).
    """
    value, low, high = (100 * one for one in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} [{low:+.1f},{high:+.1f}]"


def _cost(point: Point, target: Point) -> str:
    cost = f"{point.flops_share.total:.2f} of its FLOPs (total)"
    if point.seconds is None or not target.seconds:
        return cost
    return f"{cost} and {point.seconds / target.seconds:.2f} of its time"


def _check_lengths(pipe: RSDPipeline, tasks: Sequence[Question], config: RSDConfig) -> None:
    """Find a question that does not fit before hours go into the others."""
    backend = pipe.backend
    for number, task in enumerate(tasks, 1):
        prompt = check_prompt(task.prompt)
        for model in (backend.draft, backend.target):
            needed = model.count(prompt, variables=config.chat_template_kwargs) + (config.max_tokens or 1)
            if needed > model.info.window:
                raise PromptLengthError(
                    f"question {number} ({str(task.prompt)!r:.80}) takes {needed} tokens with its answer, "
                    f"and {model.info.name!r} has a window of {model.info.window}.",
                    hint="Lower max_tokens, or leave the question out.",
                )


def _warm_up(pipe: RSDPipeline, tasks: Sequence[Question], config: RSDConfig) -> None:
    """So that what is made at first use (graphs, traces, connections) is in no run's time."""
    short = config.override(**{name: min(most, getattr(config, name)) for name, most in _WARM_UP.items()})
    prompts = {place: task.prompt for place, task in enumerate(tasks[: pipe.backend.max_batch_size])}
    for how in ({"threshold": TARGET_ONLY}, {"weighting": "constant", "acceptance_rate": 0.5}):
        run_all(pipe, prompts, short.override(**how))


def _lowest_rewards(swept: Sweep) -> list[tuple[float, bool]]:
    """The lowest reward of each of the draft's answers that has any, and whether the answer is right."""
    found = []
    for generation, right in zip(swept.scored, swept.scored_right, strict=True):
        rewards = [step.reward for step in generation.steps if step.reward is not None]
        if rewards:
            found.append((min(rewards), right))
    return found
