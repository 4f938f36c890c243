"""Accuracy against FLOPs as a figure (matplotlib), for PNG and SVG alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["PlotPoint", "accuracy_figure", "save_figure"]

# Okabe and Ito's colours, which stay apart for colour-blind readers; shapes differ as well.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "draft": ("#E69F00", "s", "draft only"),
    "target": ("#0072B2", "D", "target only"),
    "rsd": ("#009E73", "o", "RSD, by threshold"),
    "recommended": ("#D55E00", "*", "RSD, recommended"),
}
_OFFSETS = [(0, 9), (0, -15), (14, 8), (14, -12), (-14, 8), (-14, -12), (26, 0), (-26, 0)]
_OFFSETS += [(x, y) for reach in (24, 36, 50, 66) for x in (0, reach, -reach) for y in (reach, -reach)]


Box = tuple[float, ...]
"""Left, bottom, right, top in pixels."""


@dataclass(frozen=True)
class PlotPoint:
    """One point: shares of the target's FLOPs, accuracy with its interval, all as fractions."""

    kind: Literal["draft", "rsd", "target"]
    label: str
    paper: float
    total: float
    accuracy: float
    low: float
    high: float
    recommended: bool = False

    @property
    def look(self) -> tuple[str, str, str]:
        """Colour, marker and legend entry."""
        return _LOOKS["recommended" if self.recommended else self.kind]


def accuracy_figure(points: Sequence[PlotPoint], title: str) -> Any:
    """The paper's accounting as the main panel, every forwarded token beside it.

    Returns:
        A ``matplotlib.figure.Figure``, bound to no window and no global state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    main, side = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    _panel(main, points, [point.paper for point in points], "FLOPs / target alone (paper: 2N a token)")
    _panel(side, points, [point.total for point in points], "FLOPs / target alone (every token, attention)")
    main.set_ylabel("accuracy on held-out problems, 95 % interval")
    main.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    main.legend(loc="lower right", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    # Labels go where nothing is, which only a laid out figure tells.
    figure.canvas.draw()
    _label(main, points, [point.paper for point in points])
    _label(side, points, [point.total for point in points])
    return figure


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write PNG and SVG; the SVG keeps its text as text."""
    from matplotlib import rc_context

    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rsd"}):
        for file in files:
            figure.savefig(file, dpi=160)
    return files


def _panel(axes: Any, points: Sequence[PlotPoint], shares: Sequence[float], label: str) -> None:
    sweep = sorted(
        (share, point.accuracy) for share, point in zip(shares, points, strict=True) if point.kind == "rsd"
    )
    if sweep:
        axes.plot(*zip(*sweep, strict=True), color=_LOOKS["rsd"][0], linewidth=1, alpha=0.6, zorder=1)
    target = next((point for point in points if point.kind == "target"), None)
    if target is not None:
        axes.axhline(target.accuracy, color=_LOOKS["target"][0], linewidth=0.8, linestyle=":", zorder=0)
    named: set[str] = set()
    for share, point in zip(shares, points, strict=True):
        _mark(axes, share, point, named)
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.12 * max([1.0, *shares]))
    low, high = min(point.low for point in points), max(point.high for point in points)
    axes.set_ylim(low - 0.12 * (high - low), high + 0.18 * (high - low))
    axes.grid(visible=True, color="0.92", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Any, share: float, point: PlotPoint, named: set[str]) -> None:
    colour, marker, entry = point.look
    axes.errorbar(
        share,
        point.accuracy,
        yerr=[[point.accuracy - point.low], [point.high - point.accuracy]],
        fmt=marker,
        markersize=15 if point.recommended else 7,
        color=colour,
        ecolor=colour,
        elinewidth=1,
        capsize=2.5,
        markeredgecolor="white",
        label=None if entry in named else entry,
        zorder=4 if point.recommended else 3,
    )
    named.add(entry)


def _label(axes: Any, points: Sequence[PlotPoint], shares: Sequence[float]) -> None:
    """Write each label where it covers no point and no other label."""
    places = [axes.transData.transform((share, p.accuracy)) for share, p in zip(shares, points, strict=True)]
    taken: list[Box] = [(x - 9, y - 9, x + 9, y + 9) for x, y in places]
    if axes.get_legend() is not None:
        taken.append(tuple(axes.get_legend().get_window_extent().extents))
    for point, share in zip(points, shares, strict=True):
        taken.append(_place(axes, point, share, taken))


def _place(axes: Any, point: PlotPoint, share: float, taken: Sequence[Box]) -> Box:
    """Write one label at the first free offset; where none is free, at the last one."""
    inside: Box = tuple(axes.get_window_extent().extents)
    box: Box = ()
    for offset in _OFFSETS:
        note = _write(axes, point, share, offset)
        box = tuple(note.get_window_extent().padded(1).extents)
        if offset == _OFFSETS[-1] or (_within(box, inside) and not any(_overlap(box, it) for it in taken)):
            break
        note.remove()
    return box


def _write(axes: Any, point: PlotPoint, share: float, offset: tuple[int, int]) -> Any:
    """Far labels get a thin line that leads back to their point."""
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 4}
    return axes.annotate(
        point.label,
        (share, point.accuracy),
        offset,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=9,
        color="0.15",
        fontweight="bold" if point.recommended else "normal",
        arrowprops=line if max(map(abs, offset)) > 16 else None,
        zorder=5,
    )


def _within(box: Box, outer: Box) -> bool:
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
