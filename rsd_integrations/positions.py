"""How many positions a model was made for, by its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["positions"]


def positions(get: Callable[[str], Any]) -> int | None:
    """Positions the model was made for; None where its config names no number.

    Some rotary embeddings change with the longest row of a batch, but not within their original length,
    and a request's result must not depend on the other rows.

    Args:
        get: a field of the (text) config by name, None where it has none.
    """
    found = [get("max_position_embeddings")]
    rope = get("rope_parameters") or get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope"):
        original = "original_max_position_embeddings"
        found.append(rope.get(original) or get(original))
    if get("attn_temperature_tuning") and (floor := get("floor_scale")):
        # From there on Llama 4 scales by positions from the cache, which does not know those of single rows.
        found.append(int(floor) - 1)
    return min((int(count) for count in found if count), default=None)
