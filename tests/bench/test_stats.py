from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.bench.stats import auc, bootstrap_auc, paired_difference, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I: Wilson without continuity correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert interval.value == successes / n
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_share_and_mirrors(counts: tuple[int, int]) -> None:
    successes, n = counts
    interval, mirror = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirror.high)


@pytest.mark.parametrize("counts", [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(*counts)


scored = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 1.0]), st.booleans()), max_size=40)


@given(scored)
def test_auc_is_the_share_of_pairs_won(items: list[tuple[float, bool]]) -> None:
    pairs = [(r > w) + (r == w) / 2 for r, right in items if right for w, other in items if not other]
    assert auc(items) == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_auc_by_hand() -> None:
    assert auc([(0.1, False), (0.9, True)]) == 1.0
    assert auc([(0.9, False), (0.1, True)]) == 0.0
    assert auc([(0.5, False), (0.5, True)]) == 0.5
    assert auc([(0.1, False), (0.4, True), (0.6, False), (0.9, True)]) == 0.75
    assert auc([(0.3, True)]) is None


def noisy(groups: int, size: int, seed: int = 0) -> list[list[tuple[float, bool]]]:
    rng = random.Random(seed)
    made = []
    for _ in range(groups):
        right = rng.random() < 0.5
        made.append([(rng.gauss(1.0 if right else 0.0, 1.0), right)] * size)
    return made


def test_bootstrap_repeats_and_covers() -> None:
    interval = bootstrap_auc(noisy(300, 1), seed=3)
    assert interval == bootstrap_auc(noisy(300, 1), seed=3)
    assert interval is not None
    assert interval.low < interval.value < interval.high
    # P(X > Y) of two unit normals one apart is 0.76.
    assert interval.low < 0.7602 < interval.high
    assert 0.06 < interval.high - interval.low < 0.16


@pytest.mark.parametrize(("apart", "true"), [(1.8124, 0.9), (2.6599, 0.97), (3.2900, 0.99)])
def test_the_auc_interval_covers_with_few_wrong_answers(apart: float, true: float) -> None:
    """The percentiles alone cover 60 to 80 %."""
    rng, covered = random.Random(1), 0
    for _ in range(40):
        rewards = [(rng.gauss(0.0, 1.0), False) for _ in range(9)]
        rewards += [(rng.gauss(apart, 1.0), True) for _ in range(291)]
        interval = bootstrap_auc([[one] for one in rewards], resamples=100)
        assert interval is not None
        covered += interval.low <= true <= interval.high
    assert covered >= 38


def test_the_auc_interval_covers_where_a_prm_is_blind_to_some_mistakes() -> None:
    """The score interval alone, which takes no notice of that, covers 75 %."""
    rng, covered = random.Random(1), 0
    for _ in range(40):
        rewards = [(2.0 if rng.random() < 0.3 else 0.0, False) for _ in range(30)]
        rewards += [(rng.random(), True) for _ in range(270)]
        interval = bootstrap_auc([[one] for one in rewards], resamples=100)
        assert interval is not None
        covered += interval.low <= 0.7 <= interval.high
    assert covered >= 36


@pytest.mark.parametrize(("wrong", "right"), [(7, 23), (9, 291), (1, 1)])
def test_an_auc_without_a_fault_is_uncertain(wrong: int, right: int) -> None:
    """Newcombe's method 5 by hand: at 1, 1 - t = z sqrt(t (1 - t) (1 + N e(t)) / (m n))."""
    interval = bootstrap_auc([[(0.1, False)]] * wrong + [[(0.9, True)]] * right)
    assert interval is not None
    assert (interval.value, interval.high) == (1.0, 1.0)
    low = interval.low
    assert low < 0.9
    terms = 1 + ((wrong + right) / 2 - 1) * ((1 - low) / (2 - low) + low / (1 + low))
    assert 1 - low == pytest.approx(1.959964 * math.sqrt(low * (1 - low) * terms / (wrong * right)))
    mirror = bootstrap_auc([[(0.9, False)]] * wrong + [[(0.1, True)]] * right)
    assert mirror is not None
    assert (mirror.low, mirror.high) == (0.0, pytest.approx(1 - low))


@given(st.lists(scored, max_size=6))
def test_the_auc_interval_holds_its_value(groups: list[list[tuple[float, bool]]]) -> None:
    interval = bootstrap_auc(groups, resamples=20)
    if interval is not None:
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_bootstrap_draws_whole_problems() -> None:
    """Copies of a problem's step are no news: the interval must not shrink."""
    single, copied = bootstrap_auc(noisy(200, 1)), bootstrap_auc(noisy(200, 10))
    assert single is not None
    assert copied is not None
    assert copied.value == pytest.approx(single.value)
    assert copied.high - copied.low == pytest.approx(single.high - single.low)


def test_bootstrap_of_one_kind_is_none() -> None:
    assert bootstrap_auc([[(0.5, True)], [(0.7, True)]]) is None
    assert bootstrap_auc([]) is None


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.2, 0.1), (0.02, 0.1), (0.0, 0.05)])
def test_the_paired_interval_covers_what_it_says(gain: float, loss: float) -> None:
    """By all outcomes of 30 problems and their chances."""
    n, covered = 30, 0.0
    for won in range(n + 1):
        for lost in range(n + 1 - won):
            even = n - won - lost
            ways = math.factorial(n) / (math.factorial(won) * math.factorial(lost) * math.factorial(even))
            chance = ways * gain**won * loss**lost * (1 - gain - loss) ** even
            ours = [True] * won + [False] * lost + [True] * even
            theirs = [False] * won + [True] * lost + [True] * even
            interval = paired_difference(ours, theirs)
            covered += chance * (interval.low <= gain - loss <= interval.high)
    assert covered > 0.93


def test_paired_difference() -> None:
    ours = [True] * 90 + [True] * 2 + [False] * 8
    theirs = [True] * 90 + [False] * 2 + [True] * 5 + [False] * 3
    interval = paired_difference(ours, theirs)
    assert interval.value == pytest.approx(-0.03)
    # (3 - 6) / 102 +- 1.96 sqrt((9 / 102 - (3 / 102) ** 2) / 102)
    assert (interval.low, interval.high) == (
        pytest.approx(-0.08678, rel=1e-3),
        pytest.approx(0.02796, rel=1e-3),
    )
    same = paired_difference(ours, ours)
    assert same.value == 0.0
    assert -same.low == pytest.approx(same.high)
    assert 0.02 < same.high < 0.03
    for two in (([True], [True, False]), ([], [])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_difference(*two)
