"""Shares of kept steps without luck."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.bench.share import ExactShare, exact_shares

SHARES = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


def kept(weighting: ExactShare, steps: int) -> list[bool]:
    given = [weighting(0.1) for _ in range(steps)]
    assert set(given) <= {0.0, 1.0}
    assert (weighting.asked, weighting.kept) == (steps, sum(given))
    return [one == 1.0 for one in given]


@pytest.mark.parametrize(
    ("share", "steps", "rewritten"),
    [
        (0.8, 10, [2, 7]),
        (0.5, 6, [1, 3, 5]),
        (0.95, 100, [10, 30, 50, 70, 90]),
        (0.7, 10, [1, 5, 8]),
        (1.0, 9, []),
        (0.0, 3, [0, 1, 2]),
    ],
)
def test_the_pattern_of_one_answer(share: float, steps: int, rewritten: list[int]) -> None:
    found = kept(ExactShare(share), steps)
    assert [place for place, one in enumerate(found) if not one] == rewritten


@given(SHARES, st.integers(1, 60))
def test_one_answer_keeps_its_share_rounded(share: float, steps: int) -> None:
    assert sum(kept(ExactShare(share), steps)) == floor(Fraction(str(share)) * steps + Fraction(1, 2))


@given(SHARES, st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_all_answers_together_and_each_alone(share: float, lengths: list[int]) -> None:
    exact = Fraction(str(share))
    counts = [
        sum(kept(weighting, steps))
        for weighting, steps in zip(exact_shares(share, lengths), lengths, strict=True)
    ]
    assert abs(sum(counts) - exact * sum(lengths)) <= Fraction(1, 2)
    for count, steps in zip(counts, lengths, strict=True):
        assert floor(exact * steps) <= count <= ceil(exact * steps)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95])
def test_requests_side_by_side_are_not_rewritten_in_lockstep(share: float) -> None:
    """At each step as many of sixteen are kept as of all, give or take one."""
    patterns = [kept(weighting, 20) for weighting in exact_shares(share, [20] * 16)]
    for step in zip(*patterns, strict=True):
        assert abs(sum(step) - 16 * share) <= 1
    assert sum(map(sum, patterns)) == round(320 * share)


def test_one_prompt_alone_begins_in_the_middle_of_the_pattern() -> None:
    (alone,) = exact_shares(0.8, [10])
    assert kept(alone, 10) == kept(ExactShare(0.8), 10)
