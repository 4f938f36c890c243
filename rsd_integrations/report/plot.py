"""Accuracy against FLOPs as a figure (matplotlib), for PNG and SVG alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from rsd_integrations.adapters.extras import require
from rsd_integrations.report.answer import writable

# Okabe and Ito's colours, which stay apart for colour-blind readers; shapes differ as well.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "draft": ("#E69F00", "s", "draft only"),
    "target": ("#0072B2", "D", "target only"),
    "rsd": ("#009E73", "o", "RSD, by threshold"),
    "recommended": ("#D55E00", "*", "RSD, recommended"),
}
_ROW = 14.0
"""Distance from one threshold's label to the next, in typographic points."""
_GAP = 0.06
"""From the dearest point to the labels, as a share of the panel's width."""
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
    figure = blank(10, 4.8)
    main, side = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    paper, total = [point.paper for point in points], [point.total for point in points]
    _panel(main, points, paper, "FLOPs / target alone (paper accounting)")
    _panel(side, points, total, "FLOPs / target alone (total)")
    main.set_ylabel("accuracy, 95 % interval")
    main.yaxis.set_major_formatter(percent)
    handles, entries = main.get_legend_handles_labels()
    # The marker alone: with the bar a key shows two stray caps.
    keys = {entry: handle[0] for entry, handle in zip(entries, handles, strict=True)}
    keys = {entry: keys[entry] for *_, entry in _LOOKS.values() if entry in keys}
    figure.legend(keys.values(), keys, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    head(figure, title)
    # Rows of labels are measured in typographic points, which only a laid out figure can place.
    _lay_out(figure, main, rows=sum(point.kind == "rsd" for point in points))
    _label_thresholds(main, points, paper)
    return figure


def _lay_out(figure: Any, axes: Any, rows: int) -> None:
    """Place everything, in a figure high enough for so many rows of labels."""
    with _unwarned():
        figure.canvas.draw()
        missing = (rows + 0.5) * _ROW / 72 - axes.get_window_extent().height / figure.dpi
        if missing > 0:
            figure.set_figheight(figure.get_figheight() + missing)
            figure.canvas.draw()
    figure.set_layout_engine("none")  # Laying out anew would change nothing and take as long as drawing.


def save_figure(figure: Any, file: Path) -> None:
    """Write a PNG or an SVG, as its suffix says; the SVG keeps its text as text."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rsd"}), _unwarned():
        figure.savefig(file, dpi=160)


def blank(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        ModuleNotFoundError: the extra ``report`` is not installed.
    """
    require("matplotlib", "report")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def head(figure: Any, title: str) -> None:
    """The title, wrapped, and set smaller where its letters are wide."""
    width = round(11 * figure.get_figwidth())
    lines = [fill(line, width, break_on_hyphens=False) for line in writable(title).splitlines()]
    text = figure.suptitle("\n".join(lines), fontsize=11, **_as_named())
    with _unwarned():
        share = text.get_window_extent().width / figure.bbox.width
    if share > 0.98:
        text.set_fontsize(11 * 0.98 / share)


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
        axes.axhline(target.accuracy, color=_LOOKS["target"][0], linewidth=1, linestyle=":", zorder=1)
    for share, point in zip(shares, points, strict=True):
        _mark(axes, share, point)
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.15 * max([1.0, *shares]))
    low, high = min(point.low for point in points), max(point.high for point in points)
    axes.set_ylim(low - 0.12 * (high - low), high + 0.08 * (high - low))
    axes.set_axisbelow(True)  # Else the grid hides the target's line.
    axes.grid(visible=True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Any, share: float, point: PlotPoint) -> None:
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
        label=entry,
        zorder=4 if point.recommended else 3,
    )


def percent(share: float, _: float = 0) -> str:
    """The words of a tick."""
    return f"{100 * share:.4g} %"


def _label_thresholds(axes: Any, points: Sequence[PlotPoint], shares: Sequence[float]) -> None:
    """List the thresholds below the crowd of their points, each with a thin line to its point.

    The points of a sweep lie too close for labels beside them.
    """
    # From the dearest; of points in one place, from the last.
    pairs = sorted(zip(shares, points, strict=True), key=lambda pair: pair[0])[::-1]
    sweep = [(share, point) for share, point in pairs if point.kind == "rsd"]
    if not sweep:
        return
    labels = [_lead(axes, point, share) for share, point in sweep]
    box, to_axes = axes.get_window_extent(), axes.transData + axes.transAxes.inverted()

    def height(accuracy: float) -> float:
        return float(to_axes.transform((0, accuracy))[1])

    row = _ROW * axes.get_figure().dpi / 72 / box.height
    top = max(height(min(point.accuracy for _, point in sweep)) - row, row * len(sweep))
    bottom = top - row * len(sweep)
    ends = [(share, height(point.low), height(point.high)) for share, point in pairs if point.kind != "rsd"]
    beside = [share for share, low, high in ends if high > bottom and low < top + row]
    column = _column(axes, sweep[0][0], beside, max(map(_width, labels)) / box.width)
    places = to_axes.transform([(share, point.accuracy) for share, point in sweep])
    _hang(labels, places, column, [top - number * row for number in range(len(sweep))])


def _hang(labels: Sequence[Any], places: Any, column: float, rows: Sequence[float]) -> None:
    """Give each label its row, so that no two lines to their points cross.

    From the top, a row takes the point that all others lie below, seen from the row.

    Args:
        labels: to be placed.
        places: their points, as shares of the panel.
        column: where labels begin, as data.
        rows: their heights, as shares of the panel, from the top.
    """
    left = list(zip(labels, places.tolist(), strict=True))
    beside = labels[0].axes.transLimits.transform((column, 0))[0]
    for row in rows:
        slopes = [(y - row) / (beside - x) for _, (x, y) in left]
        label, _ = left.pop(slopes.index(max(slopes)))
        label.xyann = (column, row)


def _column(axes: Any, dearest: float, beside: Sequence[float], width: float) -> float:
    """Where labels begin, to the right of all points and clear of the bars beside; makes room for them.

    Args:
        axes: a panel that begins at 0.
        dearest: share of the dearest labelled point.
        beside: shares of bars as high as the labels.
        width: of the labels, as a share of the panel's.
    """
    right, taken = axes.get_xlim()[1], _GAP + width + 0.02
    for share in sorted(beside):
        if dearest < share < dearest + taken * max(right, dearest / (1 - taken)):
            dearest = share
    right = max(right, dearest / (1 - taken))
    axes.set_xlim(0, right)
    return float(dearest + _GAP * right)


def _width(label: Any) -> float:
    """Of the words alone: an annotation's own extent includes its line."""
    from matplotlib.text import Text

    return float(Text.get_window_extent(label).width)


def _lead(axes: Any, point: PlotPoint, share: float) -> Any:
    """A label, to be placed at (data x, axes y), with a thin line back to its point."""
    return axes.annotate(
        f"threshold {point.label}" + (" (recommended)" if point.recommended else ""),
        (share, point.accuracy),
        (0, 0),
        textcoords=axes.get_xaxis_transform(),
        ha="left",
        va="center",
        fontsize=9,
        color="0.15",
        fontweight="bold" if point.recommended else "normal",
        # Grid and target's line do not run through the words.
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        # Without a patch to be cut off at, which would be above its row, the line ends at the words.
        arrowprops={
            **{"arrowstyle": "-", "color": "0.65", "linewidth": 0.6},
            **{"relpos": (0, 0.5), "patchA": None, "shrinkA": 1, "shrinkB": 3},
        },
        zorder=2,
    )
