"""The few statistics the benchmarks need, in plain Python."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from rsd_integrations.bench.results import Interval

Z95 = 1.959963984540054
Scored = tuple[float, bool]
"""A reward and whether the step is right."""


def wilson(successes: int, n: int, z: float = Z95) -> Interval:
    """A share of ``n`` with its Wilson score interval, which stays sound near 0 and 1.

    Raises:
        ValueError: there is nothing to count.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is no share")
    share = successes / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    # At 0 and n the bound equals the share; rounding must not put it on the wrong side.
    low, high = min(share, (centre - spread) / scale), max(share, (centre + spread) / scale)
    return Interval(value=share, low=max(0.0, low), high=min(1.0, high))


def auc(scored: Iterable[Scored]) -> float | None:
    """The chance that a right step has a higher reward than a wrong one, ties counting half.

    None where all steps are right, or all wrong.
    """
    ordered = sorted(scored)
    return _weighted_auc(ordered, [1] * len(ordered))


def _weighted_auc(ordered: Sequence[Scored], weights: Sequence[int]) -> float | None:
    """``auc`` of items sorted by reward, each counted ``weights[i]`` times."""
    won = 0.0
    wrong_below = wrong_tied = right_tied = rights = 0
    previous: float | None = None
    for (reward, right), weight in zip(ordered, weights, strict=True):
        if reward != previous:
            won += right_tied * (wrong_below + wrong_tied / 2)
            wrong_below, rights = wrong_below + wrong_tied, rights + right_tied
            wrong_tied, right_tied, previous = 0, 0, reward
        if right:
            right_tied += weight
        else:
            wrong_tied += weight
    won += right_tied * (wrong_below + wrong_tied / 2)
    pairs = (rights + right_tied) * (wrong_below + wrong_tied)
    return won / pairs if pairs else None


def bootstrap_auc(
    groups: Sequence[Sequence[Scored]], *, resamples: int = 1000, seed: int = 0
) -> Interval | None:
    """The AUC over all groups with its 95 % interval: the bootstrap's percentiles or ``_score_auc``,
    whichever is farther out on each side. With few wrong steps, or few out of order, the bootstrap draws
    the same order again and again; where the wrong ones vary more than the right, the other is too narrow.

    Whole groups (problems) are drawn and counted, because the steps of one problem depend on each other:
    drawing single steps would make the interval too narrow.
    """
    items = sorted((reward, right, number) for number, group in enumerate(groups) for reward, right in group)
    ordered = [(reward, right) for reward, right, _ in items]
    value = auc(ordered)
    if value is None:
        return None
    rng = random.Random(seed)
    drawn = []
    for _ in range(resamples):
        times = Counter(rng.choices(range(len(groups)), k=len(groups)))
        resampled = _weighted_auc(ordered, [times[number] for _, _, number in items])
        if resampled is not None:
            drawn.append(resampled)
    drawn.sort()
    low, high = drawn[int(0.025 * len(drawn))], drawn[min(len(drawn) - 1, int(0.975 * len(drawn)))]
    wrong, right = (sum(any(ok is kind for _, ok in group) for group in groups) for kind in (False, True))
    wide = _score_auc(value, wrong, right)
    return Interval(value=value, low=min(low, wide.low), high=max(high, wide.high))


def _score_auc(value: float, wrong: int, right: int) -> Interval:
    """An AUC of so many wrong and right ones with its 95 % score interval, which stays sound near 0 and 1:
    Newcombe's method 5 (Statistics in Medicine 25, 2006).
    """

    def within(true: float) -> bool:
        more = ((wrong + right) / 2 - 1) * ((1 - true) / (2 - true) + true / (1 + true))
        return abs(true - value) <= Z95 * math.sqrt(true * (1 - true) * (1 + more) / (wrong * right))

    def farthest(outside: float) -> float:
        inside = value
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if within(middle) else (inside, middle)
        return inside

    return Interval(value=value, low=farthest(0.0), high=farthest(1.0))


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> Interval:
    """Our share minus theirs on the same problems, with its 95 % interval.

    The interval is Bonett and Price's (J. Educ. Behav. Stat. 37, 2012): one win more is counted for
    each side, so that a few problems on which both agree do not make the interval nil.

    Raises:
        ValueError: the two are not about the same, non-empty problems.
    """
    n = len(ours)
    if n != len(theirs) or n == 0:
        raise ValueError(f"{n} and {len(theirs)} answers cannot be paired")
    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    gain, loss = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = gain - loss
    spread = Z95 * math.sqrt((gain + loss - centre**2) / (n + 2))
    return Interval(value=(won - lost) / n, low=max(-1.0, centre - spread), high=min(1.0, centre + spread))
