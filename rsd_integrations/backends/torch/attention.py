"""Attention of few key heads to many query heads without repeating the keys.

transformers repeats keys and values for masked grouped-query attention, once a layer and forward (5.23 not
for single tokens, unless compiled), which at long contexts is much memory traffic. Here the query heads of
a group become rows of their key head instead, which is the same sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["GroupedQueries", "grouped_attention"]

_NAME = "rsd_grouped_sdpa"
_FIELD = "_attn_implementation_internal"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: as "sdpa", which it leaves all but the grouped, masked case to.

    Args:
        module: the attention layer.
        query: ``[N, heads, T, size]``.
        key: ``[N, key heads, L, size]``.
        value: likewise.
        attention_mask: ``[N, 1, T, L]``, True where a token attends.
        options: dropout, scaling, ...

    Returns:
        ``[N, T, heads, size]``, and no weights.
    """
    rows, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    more = any(options.get(name) is not None for name in ("position_bias", "softcap"))
    if groups == 1 or more or attention_mask is None or attention_mask.shape[1] != 1:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return result
    folded = query.reshape(rows, key.shape[1], groups * tokens, size)
    # One token's mask is that of its whole group as it is.
    mask = attention_mask if tokens == 1 else attention_mask.repeat(1, 1, groups, 1)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=options.get("scaling"))
    return output.reshape(rows, heads, tokens, value.shape[-1]).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, grouped_attention)
# Another thread may run the same model while its config names this: it gets the masks of "sdpa".
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


class GroupedQueries:
    """Lets a model with sdpa attention use it, for as long as a ``with`` block lasts.

    Its config may be somebody else's too, so it is as it was behind the block.

    Args:
        config: the model's (text) config.
    """

    def __init__(self, config: Any) -> None:
        heads = getattr(config, "num_attention_heads", 1)
        grouped = (getattr(config, "num_key_value_heads", None) or heads) != heads
        # Where the config's property keeps it: setting the property costs more than a small model's layer.
        fields = vars(config)
        self._fields = fields if grouped and fields.get(_FIELD) == "sdpa" else None

    def __enter__(self) -> None:
        if self._fields is not None:
            self._fields[_FIELD] = _NAME

    def __exit__(self, *exc: object) -> None:
        if self._fields is not None:
            self._fields[_FIELD] = "sdpa"
