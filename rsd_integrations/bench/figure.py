"""Accuracy and tuning runs as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd_integrations.bench.results import AccuracyReport, Point, TuneReport
from rsd_integrations.report.plot import PlotPoint, accuracy_figure
from rsd_integrations.report.words import many
from rsd_integrations.types import Role

__all__ = ["draw", "draw_points", "draw_tuning"]

_LINE = 110
"""Letters that fit in a line of the title."""


def draw(report: AccuracyReport) -> Any:
    """Accuracy against FLOPs, from draft only to target only (a matplotlib figure)."""
    title = f"RSD with the pocket trio, {report.settings['problems']} held-out questions, greedy"
    return draw_points(report.points, title)


def draw_tuning(report: TuneReport) -> Any:
    """The same for one's own models and questions."""
    questions = Path(str(report.settings["questions_from"])).name
    asked = many(int(report.settings["problems"]), "question")
    return draw_points(report.points, f"{_models(report.models)}\n{questions}, {asked}")


def _models(models: Mapping[Role, str]) -> str:
    """Their names in one line, or one a line where they are long."""
    paths = {role: Path(name) for role, name in models.items()}
    # By the end of the path: a report may be drawn on another machine than it was made on.
    if all(
        path.parts[-4:] == ("rsd_integrations", "pocket", "weights", role) for role, path in paths.items()
    ):
        return "the pocket trio"
    # A trio of one's own lies in folders named by role, which say nothing without their parents.
    called = {role: models[role] if path.name == role else path.name for role, path in paths.items()}
    parts = [f"{'PRM' if role == 'prm' else role} {name}" for role, name in called.items()]
    line = ", ".join(parts)
    return line if len(line) <= _LINE else "\n".join(parts)


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
