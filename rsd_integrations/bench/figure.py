"""Accuracy and tuning runs as figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd_integrations.bench.results import AccuracyReport, Point, TuneReport
from rsd_integrations.report.plot import PlotPoint, accuracy_figure

__all__ = ["draw", "draw_points", "draw_tuning"]


def draw(report: AccuracyReport) -> Any:
    """Accuracy against FLOPs, from draft only to target only (a matplotlib figure)."""
    title = f"RSD with the pocket trio, {report.settings['problems']} held-out problems, greedy"
    return draw_points(report.points, title)


def draw_tuning(report: TuneReport) -> Any:
    """The same for one's own models and questions."""
    names = ", ".join(f"{role} {Path(name).name}" for role, name in report.models.items())
    questions = Path(str(report.settings["questions_from"])).name
    title = f"{names}\n{questions}, {report.settings['problems']} problems"
    return draw_points(report.points, title)


def draw_points(points: Sequence[Point], title: str) -> Any:
    """Accuracy against FLOPs of any sweep's points."""
    return accuracy_figure([_plot_point(point) for point in points], title)


def _plot_point(point: Point) -> PlotPoint:
    return PlotPoint(
        kind=point.kind,
        label=f"{point.threshold:g}" if point.kind == "rsd" else f"{point.kind} only",
        paper=point.flops_share.paper,
        total=point.flops_share.total,
        accuracy=point.accuracy.value,
        low=point.accuracy.low,
        high=point.accuracy.high,
        recommended=point.recommended,
    )
