"""The end and the cost of a generation in words, for every view."""

from __future__ import annotations

from collections.abc import Callable

from rsd_integrations.types import Generation, Role, RoleUsage, Usage

Remedy = Callable[[Generation], str]
"""Tells what to do about an answer that a length limit ended, in words for Python or for the command line."""


def in_python(generation: Generation) -> str:
    """Names all limits: a generation does not know its own, so the reader compares them with its counts."""
    return "see max_tokens, max_steps and the models' windows"


def ending(generation: Generation, remedy: Remedy = in_python) -> str:
    """A warning about an answer that was cut off; "" for one that came to its own end."""
    if generation.finish_reason == "cancelled":
        return "cancelled: the answer is unfinished"
    if generation.finish_reason != "length":
        return ""
    counts = (many(generation.usage.completion_tokens, "token"), many(len(generation.steps), "step"))
    limit = f"stopped at a length limit ({', '.join(counts)})"
    return f"{limit}: the answer may be unfinished ({remedy(generation)})"


def cost_lines(generation: Generation, seconds: float | None = None) -> list[tuple[str, str]]:
    """Steps kept, FLOPs and time as (name, words)."""
    lines = [("steps", _kept(generation)), ("FLOPs", _flops(generation))]
    if seconds is not None:
        lines.append(("time", f"{seconds:.2f} s" if seconds < 60 else f"{seconds / 60:.1f} min"))
    return lines


def token_rows(usage: Usage) -> list[tuple[str, RoleUsage]]:
    """Rows of a table of generated, discarded and forwarded tokens; those that a PRM scored as generated."""
    return [("draft", usage.draft), ("PRM", usage.prm), ("target", usage.target)]


def role_name(role: Role) -> str:
    """What a role is called in what people read."""
    return "PRM" if role == "prm" else role


def _kept(generation: Generation) -> str:
    rate, count = generation.acceptance_rate, len(generation.steps)
    if rate is None:
        return "none"
    if not any(step.accepted or step.rejected_text is not None for step in generation.steps):
        return f"{count}, target only"
    kept = sum(step.accepted for step in generation.steps)
    if all(step.accepted and step.reward is None for step in generation.steps):
        return f"{count}, draft only"
    at = "" if generation.threshold is None else f", threshold {generation.threshold:g}"
    return f"{kept} of {count} kept ({100 * rate:.0f} %){at}"


def many(count: int, what: str) -> str:
    """A count with its noun: "1 step", "2 steps"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _flops(generation: Generation) -> str:
    ratio = generation.usage.flops_ratio
    if ratio is None:
        return "none"
    return f"{ratio.paper:.2f}x of the target alone (paper accounting), {ratio.total:.2f}x (total)"
