"""The cost of a generation in words, for every view."""

from __future__ import annotations

from rsd_integrations.types import Generation

__all__ = ["ENDINGS", "cost_lines"]

ENDINGS = {
    "length": "stopped at a length limit: the answer may be unfinished (see --max-tokens)",
    "cancelled": "cancelled: the answer is unfinished",
}
"""What to say of an answer that did not come to its own end."""


def cost_lines(generation: Generation, seconds: float | None = None) -> list[tuple[str, str]]:
    """Acceptance, FLOPs and time as (name, words)."""
    lines = [("accepted", _acceptance(generation)), ("FLOPs", _flops(generation))]
    if seconds is not None:
        lines.append(("time", f"{seconds:.2f} s" if seconds < 60 else f"{seconds / 60:.1f} min"))
    return lines


def _acceptance(generation: Generation) -> str:
    rate = generation.acceptance_rate
    if rate is None:
        return "no steps"
    if not any(step.accepted or step.rejected_text is not None for step in generation.steps):
        return f"target only, {len(generation.steps)} steps"
    kept = sum(step.accepted for step in generation.steps)
    if all(step.accepted and step.reward is None for step in generation.steps):
        return f"draft only, {kept} steps"
    at = "" if generation.threshold is None else f", threshold {generation.threshold:g}"
    return f"{kept} of {len(generation.steps)} steps ({rate:.0%}){at}"


def _flops(generation: Generation) -> str:
    ratio = generation.usage.flops_ratio
    if ratio is None:
        return "none"
    return f"{ratio.paper:.2f}x of the target alone (paper accounting), {ratio.total:.2f}x (total)"
