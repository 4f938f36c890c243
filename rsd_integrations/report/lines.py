"""Lines over a share as a figure (matplotlib), with levels to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rsd_integrations.report.plot import blank, head, percent

_GROUPS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito's colours but for yellow, which is weak on white: one for each group of lines."""
_SHAPES = "os^DvPX*"
"""One more than colours, so that together they repeat late."""
_GREY = "0.35"


@dataclass(frozen=True)
class Line:
    """A line through points of (share, height, lowest, highest). Lines of a group share colour and shape."""

    group: str
    kind: str
    points: Sequence[tuple[float, float, float, float]]
    hollow: bool = False


@dataclass(frozen=True)
class Level:
    """A height to compare lines with: those of one group, or all."""

    label: str
    height: float
    group: str | None = None


def line_figure(lines: Sequence[Line], *, title: str, x: str, y: str, levels: Sequence[Level] = ()) -> Any:
    """Lines over a share, shown in per cent, with horizontal levels to compare them with.

    Returns:
        A ``matplotlib.figure.Figure``, bound to no window and no global state.
    """
    figure = blank(9, 4.8)
    axes = figure.subplots()
    lines = [line for line in lines if line.points]
    looks = _group_looks(lines, levels)
    step = min(6.0, 12 / max(len(lines), 1))
    for number, line in enumerate(lines):
        _draw_line(axes, line, looks[line.group], aside=step * (number - (len(lines) - 1) / 2))
    for level in levels:
        _draw_level(axes, level, None if level.group is None else looks[level.group])
    _limit(axes, lines, levels)
    axes.set(xlabel=x, ylabel=y)
    axes.xaxis.set_major_formatter(percent)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=_keys(lines, levels, looks), loc="outside right upper", frameon=False, fontsize=9)
    head(figure, title)
    return figure


def _group_looks(lines: Sequence[Line], levels: Sequence[Level]) -> dict[str, dict[str, Any]]:
    """Colour and shape of each group, in the order of their coming."""
    groups = [*(line.group for line in lines), *(level.group for level in levels)]
    names = dict.fromkeys(group for group in groups if group is not None)
    return {
        name: {"color": _GROUPS[place % len(_GROUPS)], "marker": _SHAPES[place % len(_SHAPES)]}
        for place, name in enumerate(names)
    }


def _draw_line(axes: Any, line: Line, look: dict[str, Any], aside: float) -> None:
    """A line with its bars, so many typographic points aside: at one share they would hide one another."""
    from matplotlib.transforms import ScaledTranslation

    points = sorted(line.points)
    xs, ys, lows, highs = zip(*points, strict=True)
    bars = [
        [y - low for y, low in zip(ys, lows, strict=True)],
        [h - y for y, h in zip(ys, highs, strict=True)],
    ]
    axes.errorbar(
        xs,
        ys,
        yerr=bars if any(map(any, bars)) else None,
        elinewidth=0.8,
        transform=axes.transData + ScaledTranslation(aside / 72, 0, axes.get_figure().dpi_scale_trans),
        label=f"{line.group}, {line.kind}",
        **_style(line, look),
    )


def _style(line: Line, look: dict[str, Any]) -> dict[str, Any]:
    filling = {"markerfacecolor": "white"} if line.hollow else {}
    return {**look, "markersize": 6, "linestyle": "--" if line.hollow else "-", "linewidth": 1.3, **filling}


def _draw_level(axes: Any, level: Level, look: dict[str, Any] | None) -> None:
    """Across the panel. A group's is dotted, with the group's shape at its end."""
    style: dict[str, Any] = {"color": _GREY, "linewidth": 1.2}
    if look:
        end = {"markevery": [1], "markersize": 5, "clip_on": False}
        style = {**look, "linestyle": ":", "linewidth": 1.6, **end}
    axes.plot((0, 1), (level.height,) * 2, transform=axes.get_yaxis_transform(), label=level.label, **style)


def _limit(axes: Any, lines: Sequence[Line], levels: Sequence[Level]) -> None:
    """Both axes, with room around the outermost points, also where there is one share only."""
    shares = [point[0] for line in lines for point in line.points] or [0.0, 1.0]
    low, high = min(shares), max(shares)
    aside = max(0.05, (0.3 - (high - low)) / 2)
    axes.set_xlim(max(-0.03, min(low - aside, 0.7)), min(1.03, max(high + aside, 0.3)))
    heights = [point[3] for line in lines for point in line.points] + [level.height for level in levels]
    axes.set_ylim(0, 1.1 * max(heights, default=1.0))


def _keys(lines: Sequence[Line], levels: Sequence[Level], looks: dict[str, dict[str, Any]]) -> list[Any]:
    """Legend entries: groups by colour and shape, then what filling and dashes say, then levels."""
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], **look, linestyle="", label=group) for group, look in looks.items()]
    kinds = {line.kind: _style(line, {"color": _GREY, "marker": "o"}) for line in lines}
    keys += [Line2D([], [], **style, label=kind) for kind, style in kinds.items()]
    heights = {level.label: "-" if level.group is None else ":" for level in levels}
    return keys + [
        Line2D([], [], color=_GREY, linestyle=dots, label=label) for label, dots in heights.items()
    ]
