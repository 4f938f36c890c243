"""How many positions a model was made for, by its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_ORIGINAL = "original_max_position_embeddings"


def positions(get: Callable[[str], Any]) -> int | None:
    """Positions the model was made for; None where its config names no number.

    Some rotary embeddings change with the longest row of a batch, but not within their original length,
    and a request's result must not depend on the other rows.

    Args:
        get: a field of the (text) config by name, None where it has none.
    """
    most = get("max_position_embeddings")
    found = [most]
    ropes = get("rope_parameters") or get("rope_scaling") or {}
    # Some models have one for each kind of layer.
    for rope in (ropes, *(each for each in ropes.values() if isinstance(each, Mapping))):
        kind = rope.get("rope_type", rope.get("type"))
        original = rope.get(_ORIGINAL) or get(_ORIGINAL)
        if kind in ("dynamic", "longrope"):
            found.append(original)
        elif kind == "yarn" and most:
            # Added by hand, as model cards tell to, it leaves the config's own number as it was.
            found[0] = max(most, (original or most) * (rope.get("factor") or 1))
    if get("attn_temperature_tuning") and (floor := get("floor_scale")):
        # From there on Llama 4 scales by positions from the cache, which does not know those of single rows.
        found.append(int(floor) - 1)
    return min((int(count) for count in found if count), default=None)
