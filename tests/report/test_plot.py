from __future__ import annotations

import math
import warnings
from html import unescape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_integrations.report.lines import Line, line_figure
from rsd_integrations.report.plot import PlotPoint, accuracy_figure, save_figure
from tests.report.conftest import extent

matplotlib = pytest.importorskip("matplotlib")


def point(
    kind: Any, label: str, paper: float, total: float, accuracy: float, *, best: bool = False
) -> PlotPoint:
    return PlotPoint(kind, label, paper, total, accuracy, accuracy - 0.03, min(1.0, accuracy + 0.02), best)


ENDS = [point("draft", "draft only", 0.02, 0.05, 0.73), point("target", "target only", 1, 1, 0.96)]
CROWDED = [
    point("rsd", f"{threshold:g}", 0.2 + 0.005 * i, 0.45 + 0.01 * i, 0.93 + 0.003 * i, best=i == 4)
    for i, threshold in enumerate((0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99))
]
COSTLY = [point("rsd", f"{i / 10}", 0.9 + i / 20, 1.2 + i / 20, 0.9, best=i == 1) for i in (1, 2, 3)]


DEAR = [
    point("rsd", f"{i / 10}", 1.2 + 0.15 * i, 1.4 + 0.2 * i, 0.75 + 0.01 * i, best=i == 3) for i in range(6)
]
MANY = [
    point("rsd", f"{i / 100}", 0.25 + i / 200, 0.4 + i / 50, 0.8 + 0.003 * i, best=i == 9) for i in range(40)
]
FALLING = [point("rsd", f"{i / 10}", 0.5 + 0.1 * i, 0.6 + 0.1 * i, 0.9 - 0.05 * (i % 3)) for i in range(6)]
ALIKE = [point("rsd", f"{i / 10}", 0.3, 0.4, 0.9) for i in range(4)]
BESIDE = [point("rsd", f"{i / 10}", 0.7 + 0.02 * i, 0.8, 0.985, best=i == 1) for i in range(3)]
SWEEPS = [CROWDED, BESIDE, COSTLY, CROWDED[:1], CROWDED[4:5], DEAR, MANY, FALLING, ALIKE, []]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_labels_cover_nothing_and_lines_lead_to_them(sweep: list[PlotPoint]) -> None:
    figure = accuracy_figure([*ENDS, *sweep], "title")
    figure.canvas.draw()
    main = figure.axes[0]
    panel, legend = main.get_window_extent(), figure.legends[0].get_window_extent()
    bars = [extent(bar) for bar in main.collections]
    boxes = {text.get_text(): _text(text) for text in main.texts}
    assert len(boxes) == len(sweep)
    for one, another in combinations([*boxes.values(), legend], 2):
        assert not one.overlaps(another), boxes
    for name, box in boxes.items():
        assert panel.x0 <= box.x0 <= box.x1 <= panel.x1, name
        assert panel.y0 <= box.y0 <= box.y1 <= panel.y1, name
        assert not any(box.overlaps(bar) for bar in bars), name
    assert figure.legends[0].get_window_extent().y0 >= 0
    _leads(figure, sweep)


@given(
    st.lists(st.tuples(st.floats(0.05, 3), st.floats(0.3, 0.97)), min_size=2, max_size=9, unique=True),
    st.tuples(st.floats(0.01, 2), st.floats(0.2, 0.97)),
)
@settings(max_examples=8, deadline=None)
def test_lines_to_labels_never_cross(sweep: list[tuple[float, float]], draft: tuple[float, float]) -> None:
    points = [point("rsd", f"{place}", share, share, height) for place, (share, height) in enumerate(sweep)]
    figure = accuracy_figure([point("draft", "draft only", *draft, draft[1]), ENDS[1], *points], "title")
    ends = _leads(figure, points)
    for (one, label), (another, other) in combinations(ends, 2):
        same_side = (_turn(one, label, another) > 0) == (_turn(one, label, other) > 0)
        assert same_side or (_turn(another, other, one) > 0) == (_turn(another, other, label) > 0)


def _leads(figure: Any, sweep: list[PlotPoint]) -> list[tuple[Any, Any]]:
    """Both ends of each label's line, which are where they should be."""
    main, ends = figure.axes[0], []
    places = {f"threshold {one.label}": (one.paper, one.accuracy) for one in sweep}
    for label in main.texts:
        label.update_positions(figure.canvas.get_renderer())
        path = label.arrow_patch.get_transform().transform_path(label.arrow_patch.get_path())
        end, start = path.vertices[0], path.vertices[-1]
        place = main.transData.transform(places[label.get_text().removesuffix(" (recommended)")])
        box = _text(label)
        assert math.dist(end, (box.x0, (box.y0 + box.y1) / 2)) < 2
        assert math.dist(start, place) < 6
        ends.append((place, (box.x0, (box.y0 + box.y1) / 2)))
    return ends


def _turn(one: Any, two: Any, three: Any) -> float:
    """Above 0 where the way from one over two to three turns left."""
    return float((two[0] - one[0]) * (three[1] - one[1]) - (two[1] - one[1]) * (three[0] - one[0]))


def _text(text: Any) -> Any:
    """The extent of the words: a label's own includes its line."""
    return matplotlib.text.Text.get_window_extent(text)


def test_every_threshold_is_named_and_the_recommended_one_marked() -> None:
    figure = accuracy_figure([*ENDS, *CROWDED], "title")
    main, side = figure.axes
    texts = [text.get_text() for text in main.texts]
    assert "threshold 0.9 (recommended)" in texts
    assert {"threshold 0.3", "threshold 0.99"} <= set(texts)
    assert list(side.texts) == []
    markers = {line.get_marker() for line in main.lines}
    assert {"*", "o", "s", "D"} <= markers


@pytest.mark.parametrize("best", range(3))
def test_the_legend_has_markers_without_bars_in_one_order(best: int) -> None:
    sweep = [point("rsd", f"{i}", 0.2 + i / 10, 0.3, 0.9, best=i == best) for i in range(3)]
    (legend,) = accuracy_figure([ENDS[0], *sweep, ENDS[1]], "title").legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == ["draft only", "target only", "RSD, by threshold", "RSD, recommended"]
    assert [key.get_marker() for key in legend.legend_handles] == ["s", "D", "o", "*"]
    assert legend.findobj(matplotlib.collections.LineCollection) == []


def test_the_targets_line_lies_above_the_grid() -> None:
    figure = accuracy_figure(
        [point("draft", "draft only", 0.1, 0.1, 0.7), point("target", "", 1, 1, 0.8)], ""
    )
    figure.canvas.draw()
    main = figure.axes[0]
    assert 0.8 in [round(tick, 6) for tick in main.get_yticks()]
    row = round(figure.bbox.height - main.transData.transform((0, 0.8))[1])
    left, right = (round(x) for x in main.transData.transform([(0.2, 0), (0.8, 0)])[:, 0])
    pixels = np.asarray(figure.canvas.buffer_rgba())[row - 2 : row + 2, left:right].astype(int)
    blue = pixels[..., 2] - pixels[..., 0] > 60
    assert blue.any(axis=0).mean() > 0.3


@pytest.mark.parametrize("narrow", [0.004, 0.04])
def test_ticks_of_accuracy_differ(narrow: float) -> None:
    ends = [PlotPoint("target", "", 1, 1, 0.9, 0.9 - narrow, 0.9 + narrow)]
    figure = accuracy_figure(ends, "")
    figure.canvas.draw()
    told = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(set(told)) == len(told) > 2


@pytest.mark.parametrize(
    ("title", "lines"),
    [("W" * 300, False), ("a-b " * 60, True), ("数" * 85, False), ("one\n" + "two " * 70, True)],
)
def test_titles_of_any_length_stay_whole(title: str, lines: bool) -> None:
    figure = (
        line_figure([Line("a", "b", [(0, 1, 1, 1)])], title=title, x="x", y="y")
        if lines
        else accuracy_figure(ENDS, title)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.canvas.draw()
        box = figure._suptitle.get_window_extent()
        assert "".join(figure._suptitle.get_text().split()) == "".join(title.split())
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
        for axes in figure.axes:
            assert not box.overlaps(axes.get_window_extent())


def test_png_and_svg_are_written(tmp_path: Path) -> None:
    figure = accuracy_figure([*ENDS, *CROWDED], "A title")
    png, svg = tmp_path / "accuracy.png", tmp_path / "accuracy.svg"
    save_figure(figure, png)
    save_figure(figure, svg)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ">A title<" in svg.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["q$1_$.jsonl", "수학", "$\\frac$ 数"])
def test_any_name_may_stand_in_a_title(tmp_path: Path, name: str) -> None:
    """A pair of dollars is no formula, and letters that no font has are no warning."""
    file = tmp_path / "a.svg"
    for figure in (
        accuracy_figure([*ENDS, *CROWDED], name),
        line_figure([Line("a", "b", [(0, 1, 1, 1)])], title=name, x="x", y="y"),
    ):
        save_figure(figure, file)
        assert f">{name}<" in unescape(file.read_text(encoding="utf-8"))


def test_chinese_titles_take_a_font_that_has_the_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(_font(tmp_path / "font.ttf", "WenQuanYi Zen Hei", "数"))
    title = accuracy_figure([*ENDS, *CROWDED], "数 q")._suptitle
    assert matplotlib.rcParams["font.family"] == title.get_fontfamily()[:-1]  # The others are as they were.
    title.figure.canvas.draw()
    title.set_text("学")
    with pytest.warns(UserWarning, match="Glyph"):
        title.figure.canvas.draw()


def _font(file: Path, name: str, letter: str) -> Path:
    """A font with one letter, a square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord(letter): "square"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": name, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(file)
    return file
