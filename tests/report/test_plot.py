from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations.report.plot import PlotPoint, accuracy_figure, save_figure

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
