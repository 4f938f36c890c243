"""Steps and generations as plain data for callbacks, traces and response metadata."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from rsd_integrations.types import Generation, Step

_log = logging.getLogger(__name__)

ACCEPTED, REJECTED = "rsd_step_accepted", "rsd_step_rejected"
"""Names of the events."""


def step_event(step: Step, threshold: float | None) -> tuple[str, dict[str, Any]]:
    """An event's name and data, of JSON types only."""
    data = step.model_dump(mode="json", exclude={"accepted"}) | {"threshold": threshold}
    return (ACCEPTED if step.accepted else REJECTED), data


def summarise(generation: Generation) -> dict[str, Any]:
    """What a response's metadata says of how it was made, of JSON types only."""
    usage = generation.usage
    return {
        "acceptance_rate": generation.acceptance_rate,
        "threshold": generation.threshold,
        "seed": generation.seed,
        "steps": len(generation.steps),
        "accepted": [step.accepted for step in generation.steps],
        "rewards": [step.reward for step in generation.steps],
        "flops_ratio": usage.flops_ratio.model_dump() if usage.flops_ratio else None,
        "draft_tokens": usage.draft.generated,
        "target_tokens": usage.target.generated,
        "prm_tokens": usage.prm.generated,
    }


def notify(listeners: Iterable[Callable[[Step], object] | None], step: Step) -> None:
    """Tell listeners of a step (None is no listener); one that fails is logged and spoils nothing."""
    for listener in filter(None, listeners):
        try:
            listener(step)
        except Exception:
            _log.warning("%r failed on step %d", listener, step.index, exc_info=True)
