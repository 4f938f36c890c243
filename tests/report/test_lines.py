from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest

from rsd_integrations.report.lines import Level, Line, line_figure
from tests.report.conftest import extent

matplotlib = pytest.importorskip("matplotlib")

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95)
SLOW, FAST = "with speculation", "without speculation"


def lines(groups: int, shares: tuple[float, ...] = SHARES, *, spread: float = 0.2) -> list[Line]:
    return [
        Line(
            f"{group} requests at once", kind, [(x, y, y - spread, y + spread) for x in shares], hollow=hollow
        )
        for group in range(1, groups + 1)
        for kind, hollow, y in ((SLOW, False, 2 + group / 8), (FAST, True, 1 + group / 8))
    ]


def levels(*heights: float) -> list[Level]:
    own = [Level("generate", height, f"{place} requests at once") for place, height in enumerate(heights, 1)]
    return [Level("target only", 1.0), *own]


def drawn(*given: Any) -> Any:
    figure = line_figure(*given[:1], title="A title", x="x", y="y", levels=given[1] if given[1:] else ())
    figure.canvas.draw()
    return figure


def by_label(figure: Any) -> dict[str, Any]:
    return {bars.get_label(): bars for bars in figure.axes[0].containers}


@pytest.mark.parametrize("groups", [1, 5, 12])
def test_no_two_groups_look_alike(groups: int) -> None:
    figure = drawn(lines(groups))
    looks = {
        name: (bars[0].get_color(), bars[0].get_marker())
        for name, bars in by_label(figure).items()
        if SLOW in name
    }
    assert len(set(looks.values())) == len(looks) == groups
    if groups <= 7:
        assert len({colour for colour, _ in looks.values()}) == groups


def test_what_is_left_out_is_hollow_and_dashed() -> None:
    bars = by_label(drawn(lines(2)))
    for group in ("1 requests at once", "2 requests at once"):
        full, hollow = bars[f"{group}, {SLOW}"][0], bars[f"{group}, {FAST}"][0]
        assert full.get_color() == hollow.get_color() == full.get_markerfacecolor()
        assert hollow.get_markerfacecolor() == "white"
        assert (full.get_linestyle(), hollow.get_linestyle()) == ("-", "--")


@pytest.mark.parametrize("groups", [1, 3, 5, 8])
def test_the_legend_names_all_beside_the_panel(groups: int) -> None:
    figure = drawn(lines(groups), levels(*[0.5] * groups))
    (legend,) = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [f"{n} requests at once" for n in range(1, groups + 1)] + [
        SLOW,
        FAST,
        "target only",
        "generate",
    ]
    boxes = [text.get_window_extent() for text in legend.get_texts()]
    assert not any(one.overlaps(another) for one, another in combinations(boxes, 2))
    panel = figure.axes[0].get_window_extent()
    for box in boxes:
        assert panel.x1 < box.x0 < box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height


@pytest.mark.parametrize("shares", [(0.8,), (1.0,), (0.01,), (0.5, 0.95), (0.79, 0.81), (0.0, 1.0)])
@pytest.mark.parametrize("heights", [(), (5.0,), (0.1,)])
def test_every_marker_and_bar_is_whole(shares: tuple[float, ...], heights: tuple[float, ...]) -> None:
    figure = drawn(lines(1, shares), levels(*heights))
    (axes,) = figure.axes
    panel = axes.get_window_extent()
    for bars in by_label(figure).values():
        for box in (bars[0].get_window_extent(), *map(extent, bars[2])):
            assert panel.x0 <= box.x0 <= box.x1 <= panel.x1
            assert panel.y0 <= box.y0 <= box.y1 <= panel.y1
    assert axes.get_ylim()[1] > max([2.325, *heights])
    low, high = axes.get_xlim()
    assert high - low > 0.15
    told = [text.get_text() for text in axes.get_xticklabels() if panel.x0 <= text.get_window_extent().x1]
    inside = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert f"{100 * inside[0]:.4g} %" in told
    assert all(-0.001 <= tick <= 1.001 for tick in inside)


def test_bars_lie_side_by_side_while_points_stay_what_they_are() -> None:
    figure = drawn(lines(5, (0.8,)))
    places = []
    for bars in by_label(figure).values():
        ((_, y),) = bars[0].get_xydata()
        ((_, low), (x, high)) = bars[2][0].get_segments()[0]
        assert (x, low, high) == pytest.approx((0.8, y - 0.2, y + 0.2))
        places.append(extent(bars[2][0]).x0)
    assert all(right - left > 1 for left, right in pairwise(places))
    assert places[-1] - places[0] < 20


def test_a_single_run_has_no_bar() -> None:
    assert [bars[2] for bars in by_label(drawn(lines(1, spread=0))).values()] == [(), ()]


def test_levels_in_one_place_stay_apart() -> None:
    """Target only and the target's `generate` are nearly one where the model is large."""
    figure = drawn(lines(2), levels(1.0, 1.01))
    (axes,) = figure.axes
    level, *own = (line for line in axes.lines if line.get_label() in ("target only", "generate"))
    assert [line.get_linestyle() for line in (level, *own)] == ["-", ":", ":"]
    assert len({line.get_color() for line in (level, *own)}) == 3
    assert len({line.get_marker() for line in (level, *own)}) == 3
    assert list(axes.texts) == []


def test_a_level_of_a_group_without_lines_has_a_look_of_its_own() -> None:
    figure = drawn(lines(1), levels(0.5, 0.6))
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told[:2] == ["1 requests at once", "2 requests at once"]


def test_nothing_measured_is_an_empty_panel() -> None:
    assert drawn([Line("a", "b", [])]).axes[0].containers == []
