"""The numbers of a forward, and the few shapes that forwards are rounded to."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log2

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.backends.torch.plan import (
    MOST_TOGETHER,
    Plan,
    Shape,
    SlotFeed,
    cheapest,
    grouped,
    launch_tokens,
    masks,
    pack,
    unpack,
)

SLOTS, CAPACITY = 6, 1000


@st.composite
def feeds(draw: st.DrawFn, longest: int = 90) -> list[SlotFeed]:
    """Of some of the slots, in the order in which a runner sorts them."""
    made = []
    for slot in sorted(draw(st.sets(st.integers(0, SLOTS - 1), min_size=1))):
        tokens = draw(st.lists(st.integers(1, 99), min_size=1, max_size=longest))
        made.append(SlotFeed(slot, draw(st.integers(0, CAPACITY - len(tokens))), tokens))
    return made


def plan_of(given_feeds: list[SlotFeed], shape: Shape) -> tuple[Plan, torch.Tensor, list[int]]:
    numbers, rows = pack(given_feeds, shape)
    head_N3, ids_NT = unpack(numbers, shape)
    plan = Plan.of(
        head_N3,
        ids_NT,
        torch.arange(shape.span),
        capacity=CAPACITY,
        block=shape.block,
        line=shape.line,
    )
    return plan, ids_NT, rows


@given(feeds())
def test_every_token_is_written_once_where_its_feed_says_and_nothing_else_is(made: list[SlotFeed]) -> None:
    rounded = Shape.rounded(made, slots=SLOTS, capacity=CAPACITY)
    with_idle = [Shape.exact(made, idle=idle) for idle in (0.5, 9.0)]
    for shape in filter(None, (Shape.exact(made), *with_idle, rounded)):
        plan, ids_NT, rows = plan_of(made, shape)
        assert ids_NT.shape == plan.write_NT.shape == (shape.rows, shape.tokens)
        wanted = {
            (feed.slot, feed.start + place): token for feed in made for place, token in enumerate(feed.tokens)
        }
        slots, places = plan.rows_N.tolist(), plan.write_NT.tolist()
        written = {
            (slots[row], places[row][column]): int(ids_NT[row, column])
            for row in range(shape.rows)
            for column in range(shape.tokens)
            if places[row][column] != CAPACITY
        }
        assert written == wanted
        for row, feed in zip(rows, made, strict=True):
            assert slots[row] == feed.slot
            assert plan.position_NT[row, : len(feed.tokens)].tolist() == places[row][: len(feed.tokens)]
        assert int(plan.position_NT.max()) < shape.span <= CAPACITY
        if plan.block is not None:
            # Rows of a block are its slots in order, those that only fill up too.
            named = [slots[row] for row in rows]
            assert named == [range(SLOTS)[plan.block][row] for row in rows]


@given(feeds(longest=12))
def test_a_shape_is_rounded_up_by_less_than_double(made: list[SlotFeed]) -> None:
    exact, rounded = Shape.exact(made), Shape.rounded(made, slots=SLOTS, capacity=CAPACITY)
    assert rounded is not None
    assert exact.rows <= rounded.rows < 2 * exact.rows
    assert exact.tokens <= rounded.tokens < 2 * exact.tokens
    assert exact.span <= rounded.span <= max(256, 1.5 * exact.span)
    assert rounded.line is None


@given(feeds(longest=2), st.sampled_from([0.0, 0.5, 2.0]))
def test_idle_rows_make_a_block_where_they_are_few(made: list[SlotFeed], idle: float) -> None:
    shape, plain = Shape.exact(made, idle=idle), Shape.exact(made)
    assert plain.rows == len(made) <= shape.rows <= (1 + idle) * len(made)
    assert [slot for first, count in shape.runs for slot in range(first, first + count)] == [
        feed.slot for feed in made
    ]
    if shape != plain:
        assert (shape.block, shape.tokens, plain.block) == (0, 1, None)
    elif plain.block is None and plain.tokens == 1:
        assert made[-1].slot + 1 > (1 + idle) * len(made)


def test_there_are_few_shapes() -> None:
    """Each takes time to record and memory."""
    shapes = {
        Shape.rounded([SlotFeed(slot, start, [1])], slots=1, capacity=4096)
        for slot in (0,)
        for start in range(4095)
    }
    assert len(shapes) <= 9


@pytest.mark.parametrize(
    ("rows", "tokens", "fits"), [(1, 64, True), (1, 65, False), (4, 64, True), (5, 64, False)]
)
def test_large_forwards_are_not_rounded(rows: int, tokens: int, fits: bool) -> None:
    made = [SlotFeed(slot, 0, [1] * tokens) for slot in range(rows)]
    assert (Shape.rounded(made, slots=8, capacity=CAPACITY) is not None) == fits


@given(feeds(), st.sampled_from([0, MOST_TOGETHER]))
def test_groups_are_all_feeds_and_small_ones_are_merged(made: list[SlotFeed], merged: int) -> None:
    groups = grouped(made, merged=merged)
    assert sorted(index for group in groups for index in group) == list(range(len(made)))
    for group in groups:
        lengths = [len(made[index].tokens) for index in group]
        assert [made[index].slot for index in group] == sorted(made[index].slot for index in group)
        filled_up = 2 ** ceil(log2(len(group))) * 2 ** ceil(log2(max(lengths)))
        assert max(lengths) < 2 * min(lengths) or filled_up <= merged
    if all(len(feed.tokens) <= 32 for feed in made):
        assert len(groups) == 1 or not merged


def partitions(members: list[int]) -> Iterator[list[list[int]]]:
    """All ways to part them."""
    if not members:
        yield []
        return
    first, *others = members
    for rest in partitions(others):
        yield [[first], *rest]
        for place, group in enumerate(rest):
            yield [*rest[:place], [first, *group], *rest[place + 1 :]]


@given(feeds(), st.integers(0, 64))
def test_no_other_groups_are_cheaper_on_a_cpu(made: list[SlotFeed], launch: int) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(launch + len(group) * max(len(made[one].tokens) for one in group) for group in groups)

    made = made[:6]
    groups = cheapest(made, launch)
    assert sorted(index for group in groups for index in group) == list(range(len(made)))
    for group in groups:
        assert [made[index].slot for index in group] == sorted(made[index].slot for index in group)
    assert cost(groups) == min(map(cost, partitions(list(range(len(made))))))


def test_long_feeds_are_not_merged() -> None:
    made = [SlotFeed(0, 0, [1]), *[SlotFeed(slot, 0, [1] * 60) for slot in range(1, 5)]]
    assert grouped(made, merged=MOST_TOGETHER) == [[0], [1, 2, 3, 4]]
    assert grouped(made[:4], merged=MOST_TOGETHER) == [[0, 1, 2, 3]]
    assert grouped(made[:4]) == [[0], [1, 2, 3]]


def test_a_cpu_fills_up_little_rather_than_run_once_more() -> None:
    """One row of nine tokens and two of one are 16 tokens of padding together."""
    made = [SlotFeed(0, 0, [1] * 9), SlotFeed(1, 0, [1]), SlotFeed(2, 0, [1])]
    assert cheapest(made, 17) == [[0, 1, 2]]
    assert cheapest(made, 15) == [[1, 2], [0]]
    assert [launch_tokens(size) for size in (0, 1_000, 4_000_000, 10**9)] == [64, 64, 37, 24]


def test_one_token_each_is_rounded_for_any_number_of_slots() -> None:
    made = [SlotFeed(slot, 0, [1]) for slot in range(300)]
    shape = Shape.rounded(made, slots=300, capacity=CAPACITY)
    assert shape == Shape(300, 1, 256, block=0)


@pytest.mark.parametrize(("window", "chunk"), [(None, None), (1, None), (3, None), (None, 4)])
def test_masks_read_literally(window: int | None, chunk: int | None) -> None:
    made = [SlotFeed(0, 0, [1, 2, 3]), SlotFeed(1, 6, [4])]
    mask = masks(plan_of(made, Shape.exact(made))[0], window, chunk)
    assert mask.shape == (2, 1, 3, 7)
    for row, positions in enumerate(([0, 1, 2], [6])):
        for place, query in enumerate(positions):
            for key in range(7):
                seen = key <= query
                seen &= window is None or query - key < window
                seen &= chunk is None or key // chunk == query // chunk
                assert bool(mask[row, 0, place, key]) == seen
