"""Accuracy and tuning runs in the terminal (rich)."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsd_integrations.bench.results import AccuracyReport, Check, Interval, Point, TuneReport
from rsd_integrations.bench.tune import Wording, advice, signed
from rsd_integrations.report.whole import print_text, print_whole
from rsd_integrations.report.words import many

_BOX = box.SIMPLE_HEAD
_STEPS = (
    "kept: of the draft's steps; the target rewrote the others. target idle: of the questions, those for "
    "which it wrote nothing. tokens: of an answer."
)
_FLOPS = (
    "FLOPs: sum over the questions / what the target alone spent on its own answers to them. "
    "paper: 2 x parameters a generated or scored token; total: every token that went through a "
    "model, with attention."
)
_TIME = (
    "time: wall time of the run / the target's, each run once and with as many requests at once, the "
    "target's first (prompts still cached from it make later runs faster); - where a run was interrupted."
)
_INTERVALS = (
    "Intervals: 95 % (Wilson; differences: Bonett and Price; AUC: bootstrap over questions or Newcombe, "
    "whichever is wider)."
)
_HEADINGS = ("accuracy %", "kept", "target\nidle", "FLOPs\npaper", "FLOPs\ntotal", "tokens")


def print_report(report: AccuracyReport, console: Console) -> None:
    """Both tables and the PRM's quality."""
    print_whole(_points(report.points), console)
    print_text(_differences(report.points), console)
    print_whole(_lengths(report.points), console, "accuracy % by number of events")
    print_text(_prm(report), console)
    for note in (_STEPS, _FLOPS, _INTERVALS):
        print_text(note, console, "dim")


def print_tuning(report: TuneReport, console: Console, wording: Wording) -> None:
    """The table, what the PRM knows, and what to do."""
    print_whole(_points(report.points, times=True), console)
    print_text(_answers(report), console)
    print_text(f"Answers matched by: {report.settings['match']}.", console)
    if len({(*one.versions.items(), *one.hardware.items()) for one in report.answers_made}) > 1:
        print_text("They were made by several versions or machines: see answers_made in the JSON.", console)
    for note in (_STEPS, _FLOPS, _TIME, _INTERVALS):
        print_text(note, console, "dim")
    for line in advice(report.points, report.within, int(report.settings["problems"]), wording):
        print_text(line, console, "bold")


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Every required number, met or missed."""
    table = Table("required", "", "measured", "", box=_BOX)
    for check in checks:
        verdict = Text("ok", "green") if check.passed else Text("MISSED", "bold red")
        table.add_row(check.name, check.required, check.measured or "none", verdict)
    print_whole(table, console)


def name_of(point: Point) -> str:
    """What a point is called in tables."""
    if point.kind != "rsd":
        return f"{point.kind} only"
    return f"RSD {point.threshold:g}{' *' if point.recommended else ''}"


def _points(points: Sequence[Point], *, times: bool = False) -> Table:
    table = Table(
        box=_BOX,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="* the recommended threshold" if any(point.recommended for point in points) else None,
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for heading in (*_HEADINGS, "time") if times else _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        time = [_time(point, points[-1])] if times else []
        table.add_row(
            name_of(point),
            _interval(point.accuracy),
            "-" if point.acceptance_rate is None else f"{100 * point.acceptance_rate:.1f} %",
            f"{100 * point.target_idle:.0f} %",
            f"{point.flops_share.paper:.3f}",
            f"{point.flops_share.total:.3f}",
            f"{point.mean_tokens:.0f}",
            *time,
            style="bold" if point.recommended else "",
        )
    return table


def _time(point: Point, target: Point) -> str:
    return "-" if point.seconds is None or not target.seconds else f"{point.seconds / target.seconds:.2f}"


def _lengths(points: Sequence[Point]) -> Table:
    table = Table(box=_BOX)
    table.add_column("")
    for length in points[0].by_length:
        table.add_column(f"{length.events}", justify="right")
    for point in points:
        cells = [f"{100 * length.accuracy.value:.0f}" for length in point.by_length]
        table.add_row(name_of(point), *cells, style="bold" if point.recommended else "")
    counts = [str(length.problems) for length in points[0].by_length]
    table.add_row("questions", *counts, style="dim")
    return table


def _interval(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f},{100 * interval.high:.1f}]"


def _differences(points: Sequence[Point]) -> str:
    """On the same problems, which tells more than two intervals of single ways to answer."""
    told = [f"{name_of(point)} {signed(point.against_target)}" for point in points if point.kind != "target"]
    return f"Points of accuracy against the target on the same questions: {'; '.join(told)}"


def _prm(report: AccuracyReport) -> str:
    prm = report.prm
    if prm.auc is None:
        return f"PRM AUC: none, as all {prm.steps} steps are right, or all wrong"
    counts = f"{prm.steps} draft steps up to the first wrong one ({prm.wrong_steps} wrong)"
    first = f"PRM AUC {_auc(prm.auc)} on {counts}"
    if prm.all_steps is None:
        return first
    return f"{first}; {_auc(prm.all_steps)} on all {prm.all_steps_count} ({prm.all_wrong_steps} wrong)"


def _answers(report: TuneReport) -> str:
    counts = f"{many(report.drafts, 'answer')} of the draft ({report.drafts_wrong} wrong)"
    if report.auc is None:
        return f"PRM AUC: none, as all are right, or all wrong: {counts}"
    return f"PRM AUC {_auc(report.auc)}: the lowest reward in each of {counts} against whether it is right"


def _auc(interval: Interval) -> str:
    """With a third decimal only where the interval is narrow enough for one."""
    digits = 3 if interval.high - interval.low < 0.05 else 2
    value, low, high = (f"{one:.{digits}f}" for one in (interval.value, interval.low, interval.high))
    return f"{value} [{low},{high}]"
