"""From tokens to columns and from logits to probabilities: what several formats need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rsd_integrations.encoding import encode_opening, encode_plain
from rsd_integrations.errors import ModelError


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities; nan if a logit is nan."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def single_token(tokenizer: Any, text: str, purpose: str) -> int:
    """The one token that a text becomes where it continues another.

    Raises:
        ModelError: it takes several or is unknown, so the model cannot have learnt it as one.
    """
    ids = encode_plain(tokenizer, text)
    unknown = getattr(tokenizer, "unk_token_id", None) in ids
    if len(ids) != 1 or unknown:
        raise ModelError(
            f"the {purpose} {text!r} is not one token of the PRM's tokenizer but "
            f"{'unknown to it' if unknown else len(ids)}.",
            hint="Choose the prm_format that this PRM was trained for, or set its options in rsd_prm.",
        )
    return ids[0]


def label_id(tokenizer: Any, label: str) -> int:
    """The last token of a label encoded alone, as reference codes resolve "+" and "-".

    Raises:
        ModelError: the vocabulary does not know it.
    """
    ids = encode_opening(tokenizer, label)
    if not ids or ids[-1] == getattr(tokenizer, "unk_token_id", None):
        raise ModelError(
            f"the PRM's vocabulary has no token for the label {label!r}.",
            hint="Choose the prm_format that this PRM was trained for.",
        )
    return ids[-1]
