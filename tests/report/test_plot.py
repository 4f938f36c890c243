from __future__ import annotations

from html import unescape
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations.report.plot import Line, PlotPoint, accuracy_figure, line_figure, save_figure

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


@pytest.mark.parametrize("sweep", [CROWDED, COSTLY, CROWDED[:1]])
def test_no_label_covers_another_or_leaves_the_figure(sweep: list[PlotPoint]) -> None:
    figure = accuracy_figure([*ENDS, *sweep], "title")
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
        boxes.append(("legend", figure.legends[0].get_window_extent()))
        for (name, box), (other, another) in combinations(boxes, 2):
            # A label's extent includes its line; the text alone must be free.
            assert not _text(axes, name, box).overlaps(_text(axes, other, another)), (name, other)
        for name, box in boxes:
            text = _text(axes, name, box)
            assert text.x0 >= 0, name
            assert text.x1 <= figure.bbox.width, name
            assert name == "legend" or text.y0 >= axes.get_window_extent().y0, name


def _text(axes: Any, name: str, box: Any) -> Any:
    for text in axes.texts:
        if text.get_text() == name:
            return matplotlib.text.Text.get_window_extent(text)
    return box


def test_every_threshold_is_named_and_the_recommended_one_marked() -> None:
    main, side = accuracy_figure([*ENDS, *CROWDED], "title").axes
    texts = [text.get_text() for text in main.texts]
    assert "threshold 0.9 (recommended)" in texts
    assert {"draft only", "target only", "threshold 0.3", "threshold 0.99"} <= set(texts)
    assert [text.get_text() for text in side.texts] == ["draft only", "target only"]
    markers = {line.get_marker() for line in main.lines}
    assert {"*", "o", "s", "D"} <= markers


def test_png_and_svg_are_written(tmp_path: Path) -> None:
    files = save_figure(accuracy_figure([*ENDS, *CROWDED], "A title"), tmp_path, "accuracy")
    assert [file.name for file in files] == ["accuracy.png", "accuracy.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert ">A title<" in files[1].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["q$1_$.jsonl", "$^$", "数学题.jsonl", "수학", "$\\frac$ 数"])
def test_any_name_may_stand_in_a_title(tmp_path: Path, name: str) -> None:
    """A pair of dollars is no formula, and letters that no font has are no warning."""
    svg = save_figure(accuracy_figure([*ENDS, *CROWDED], name), tmp_path, "tune")[1]
    lines = save_figure(line_figure([Line("a", "a", [(0, 1)])], title=name, x="x", y="y"), tmp_path, "speed")
    for file in (svg, lines[1]):
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
