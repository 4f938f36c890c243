"""Accuracy against FLOPs as a figure (matplotlib), for PNG and SVG alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from rsd_integrations.report.answer import writable

__all__ = ["Line", "PlotPoint", "accuracy_figure", "line_figure", "save_figure"]

# Okabe and Ito's colours, which stay apart for colour-blind readers; shapes differ as well.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "draft": ("#E69F00", "s", "draft only"),
    "target": ("#0072B2", "D", "target only"),
    "rsd": ("#009E73", "o", "RSD, by threshold"),
    "recommended": ("#D55E00", "*", "RSD, recommended"),
}
_ROW = 14.0
"""Distance from one threshold's label to the next, in typographic points."""
_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *(
        "WenQuanYi Micro Hei",
        "WenQuanYi Zen Hei",
        "Droid Sans Fallback",
        "Microsoft YaHei",
        "SimHei",
        "SimSun",
    ),
    *("PingFang SC", "PingFang HK", "Hiragino Sans GB", "Heiti TC", "STHeiti", "Arial Unicode MS"),
    *("Yu Gothic", "Hiragino Sans", "Malgun Gothic", "Apple SD Gothic Neo", "NanumGothic"),
)
"""Fonts of Chinese, Japanese and Korean, as systems name theirs: matplotlib's own has no such letters."""


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
    paper, total = [point.paper for point in points], [point.total for point in points]
    _panel(main, points, paper, "FLOPs / target alone (paper accounting)")
    _panel(side, points, total, "FLOPs / target alone (total)")
    main.set_ylabel("accuracy, 95 % interval")
    main.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    handles, entries = main.get_legend_handles_labels()
    figure.legend(handles, entries, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(writable(title), fontsize=11, **_as_named())
    for axes, shares in ((main, paper), (side, total)):
        _label_ends(axes, points, shares)
    # Rows of labels are measured in typographic points, which only a laid out figure can place.
    with _unwarned():
        figure.canvas.draw()
    figure.set_layout_engine("none")  # Laying out anew would change nothing and take as long as drawing.
    _label_thresholds(main, points, paper)
    return figure


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write PNG and SVG; the SVG keeps its text as text."""
    from matplotlib import rc_context

    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rsd"}), _unwarned():
        for file in files:
            figure.savefig(file, dpi=160)
    return files


def _as_named() -> dict[str, Any]:
    """How a text with users' names is set: dollars as they stand, letters in whichever font has them."""
    from matplotlib import font_manager, rcParams

    there = set(font_manager.get_font_names())
    return {
        "parse_math": False,
        "family": [*rcParams["font.family"], *(one for one in _FONTS if one in there)],
    }


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without matplotlib's warnings of letters that no font has: the boxes that it draws say enough."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing|Matplotlib currently does not")
        yield


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
    axes.set_xlim(0, 1.15 * max([1.0, *shares]))
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
        markersize=11 if point.recommended else 7,
        color=colour,
        ecolor=colour,
        elinewidth=1,
        capsize=2.5,
        markeredgecolor="white",
        label=None if entry in named else entry,
        zorder=4 if point.recommended else 3,
    )
    named.add(entry)


def _label_ends(axes: Any, points: Sequence[PlotPoint], shares: Sequence[float]) -> None:
    """Name draft only and target only above their error bars."""
    for point, share in zip(points, shares, strict=True):
        if point.kind == "draft":
            _write(axes, point.label, (share, point.high), (-4, 4), ha="left", va="bottom")
        elif point.kind == "target":
            _write(axes, point.label, (share, point.high), (0, 4), ha="center", va="bottom")


def _label_thresholds(axes: Any, points: Sequence[PlotPoint], shares: Sequence[float]) -> None:
    """List the thresholds below the crowd of their points, each with a thin line to its point.

    The points of a sweep lie too close for labels beside them. Rows follow the cost, so that lines
    do not cross.
    """
    sweep = sorted(
        ((share, point) for share, point in zip(shares, points, strict=True) if point.kind == "rsd"),
        key=lambda pair: -pair[0],
    )
    if not sweep:
        return
    left, right = axes.get_xlim()
    # To the right where there is room, else to the left.
    column = sweep[0][0] + 0.06 * (right - left)
    if column > left + 0.6 * (right - left):
        column = sweep[-1][0] - 0.2 * (right - left)
    box, dots = axes.get_window_extent(), axes.get_figure().dpi
    row = _ROW * dots / 72 / box.height
    low = axes.transAxes.inverted().transform(axes.transData.transform((0, min(p.low for _, p in sweep))))[1]
    top = max(low - row, row * len(sweep))
    for number, (share, point) in enumerate(sweep):
        _lead(axes, point, share, (column, top - number * row))


def _lead(axes: Any, point: PlotPoint, share: float, place: tuple[float, float]) -> None:
    """A label at (data x, axes y) with a thin line back to its point."""
    axes.annotate(
        f"threshold {point.label}" + (" (recommended)" if point.recommended else ""),
        (share, point.accuracy),
        place,
        textcoords=axes.get_xaxis_transform(),
        ha="left",
        va="center",
        fontsize=9,
        color="0.15",
        fontweight="bold" if point.recommended else "normal",
        arrowprops={"arrowstyle": "-", "color": "0.65", "linewidth": 0.6, "relpos": (0, 0.5), "shrinkB": 3},
        zorder=2,
    )


def _write(axes: Any, text: str, place: tuple[float, float], offset: tuple[int, int], **align: str) -> None:
    axes.annotate(
        text, place, offset, textcoords="offset points", fontsize=9, color="0.15", zorder=5, **align
    )


@dataclass(frozen=True)
class Line:
    """A named line through (x, y) points. Lines of a group share a colour."""

    label: str
    group: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def line_figure(
    lines: Sequence[Line], *, title: str, x: str, y: str, levels: Mapping[str, float] | None = None
) -> Any:
    """Lines over one axis, with horizontal levels to compare them with.

    Returns:
        A ``matplotlib.figure.Figure``, bound to no window and no global state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = [look[0] for look in _LOOKS.values()]
    groups = list(dict.fromkeys(line.group for line in lines))
    for line in lines:
        xs, ys = zip(*line.points, strict=True) if line.points else ((), ())
        axes.plot(
            xs,
            ys,
            color=colours[groups.index(line.group) % len(colours)],
            marker="o",
            linestyle="--" if line.dashed else "-",
            label=line.label,
        )
    for label, level in (levels or {}).items():
        axes.axhline(level, color="#666666", linewidth=0.8)
        # Outside, where no line passes. Wrapped, they take little of its width.
        words = fill(label, 9)
        axes.annotate(words, (1.01, level), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(writable(title), **_as_named())
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#dddddd")
    axes.legend(frameon=False, fontsize=9, ncols=2)
    return figure
