"""Shares of kept steps without luck: exact in each answer, and over all answers of a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor

_HALF = Fraction(1, 2)


class ExactShare:
    """A weighting that keeps a share of an answer's steps, spread evenly, whatever their rewards.

    The paper's constant weighting keeps each step by chance: the same work on average, but a short
    measurement at 0.8 may keep 7 of 10 or all. This one keeps ``floor(share * n + phase)`` of the first n
    steps, whatever n. It counts, so each answer needs one of its own.

    Args:
        share: of the steps, in [0, 1]; taken as the decimal number it is written as.
        phase: where its pattern begins, in [0, 1); at 1/2 the number kept is ``share * n``, rounded.
    """

    def __init__(self, share: float, phase: Fraction = _HALF) -> None:
        self._share, self._phase = Fraction(str(share)), phase
        self.asked = 0

    def __call__(self, reward: float) -> float:
        """1.0 for a step that is kept, else 0.0."""
        before = self.kept
        self.asked += 1
        return float(self.kept > before)

    @property
    def kept(self) -> int:
        """Steps kept of those asked about."""
        return floor(self._share * self.asked + self._phase)


def exact_shares(share: float, lengths: Sequence[int]) -> list[ExactShare]:
    """A weighting for each answer. Together they keep ``share`` of all steps, to the nearest whole step.

    Phases are spread over the answers, so that requests side by side are not all rewritten at the same
    step: that would spare the target forwards which chance does not spare it.

    Args:
        share: of the steps, in [0, 1].
        lengths: steps of each answer, as far as they are known beforehand; where an answer turns out
            longer or shorter, its own share is still exact.
    """
    exact, carried, shares = Fraction(str(share)), _HALF, []
    for place, length in enumerate(lengths):
        whole = exact * length
        kept = floor(whole + carried)
        carried += whole - kept
        # From this phase on, an answer of this length keeps one step more.
        edge = 1 - whole % 1
        low, high = (edge, Fraction(1)) if kept > floor(whole) else (Fraction(0), edge)
        shares.append(ExactShare(share, low + (high - low) * Fraction(2 * place + 1, 2 * len(lengths))))
    return shares
