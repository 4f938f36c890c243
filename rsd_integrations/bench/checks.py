"""The numbers the pocket trio must reach."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_integrations.bench.results import Check, Interval, Point, PRMQuality

# Shares of whole problems are compared; 0.95 - 0.01 is not 0.94 in floating point.
_EPSILON = 1e-9


def required_numbers(points: Sequence[Point], prm: PRMQuality) -> tuple[Check, ...]:
    """Every required number with what was measured.

    Args:
        points: from draft only to target only.
        prm: the PRM's quality.
    """
    draft, target = points[0], points[-1]
    rsd = next(point for point in points if point.recommended)
    right, draft_right = target.accuracy.value, draft.accuracy.value
    behind, share = rsd.against_target.value, rsd.flops_share.paper
    worst, gap = _worst_length(rsd, target)
    return (
        Check.of("target accuracy", ">= 95 %", _percent(right), right >= 0.95 - _EPSILON),
        Check.of("draft accuracy", "50 to 80 %", _percent(draft_right), 0.5 <= draft_right <= 0.8),
        _auc(prm.auc),
        Check.of("RSD against target", ">= -1 point", _points(behind), behind >= -0.01 - _EPSILON),
        Check.of(
            "RSD at its worst length",
            ">= -5 points",
            f"{_points(gap)} at {worst} events",
            gap >= -0.05 - _EPSILON,
        ),
        Check.of("RSD FLOPs share (paper)", "<= 0.5", f"{share:.3f}", share <= 0.5),
    )


def _auc(auc: Interval | None) -> Check:
    """None where all steps are right, or all wrong: that is no order, and does not pass."""
    measured, passed = (None, False) if auc is None else (f"{auc.value:.4f}", auc.value >= 0.97)
    return Check.of("PRM AUC", ">= 0.97", measured, passed)


def _worst_length(rsd: Point, target: Point) -> tuple[int, float]:
    """The length class where RSD falls furthest behind the target, and by how much."""
    gaps = [
        (ours.events, ours.accuracy.value - theirs.accuracy.value)
        for ours, theirs in zip(rsd.by_length, target.by_length, strict=True)
    ]
    return min(gaps, key=lambda gap: gap[1])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"
