"""Attention over slots without copies of their keys.

Grouped-query attention: with a mask, transformers repeats keys and values for all query heads, once a layer
and forward (5.23 not for single tokens, unless compiled), which at long contexts is much memory traffic. Here
the query heads of a group become rows of their key head instead, which gives the same result.

Scattered slots: gathering their keys costs a CPU more than attending to them, so each run of neighbouring
slots is attended to where it lies.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rsd_integrations.backends.shared.describe import attending_layers
from rsd_integrations.backends.torch import efficient

_NAME, _EFFICIENT = "rsd_slot_sdpa", "rsd_slot_efficient"
_FIELD = "_attn_implementation_internal"

_KINDS = 4
"""Masks of one forward whose biases are kept: a model has one for each kind of its layers."""


class _Now(threading.local):
    """What belongs to the forward that this thread runs."""

    runs: Sequence[tuple[int, int]] = ()
    made: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] | None = None
    """What is added to the scores, by the mask's id, repeats and type; with the mask, so that no other gets
    its id. None outside of our forwards: others may go through here, too."""

    def bias(self, mask: torch.Tensor, repeats: int, dtype: torch.dtype) -> torch.Tensor:
        """As of ``efficient.bias``, once for all layers."""
        if self.made is None:
            return efficient.bias(mask, repeats, dtype)
        key = id(mask), repeats, dtype
        if key not in self.made:
            if len(self.made) == _KINDS:  # Of a model on several devices each layer is given a copy.
                del self.made[next(iter(self.made))]
            self.made[key] = mask, efficient.bias(mask, repeats, dtype)
        return self.made[key][1]


_now = _Now()

_users: Counter[int] = Counter()
"""Forwards at work with each config, by its fields' id: pipelines may share models."""

_users_lock = threading.Lock()


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    by_name: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function for transformers, equal to "sdpa", to which it leaves all that is not masked, or
    neither grouped nor ``by_name``. Takes scattered slots, too.

    Args:
        module: the attention layer.
        query: ``[N, heads, T, size]``.
        key: ``[N, key heads, L, size]``; of all slots from the first row's to the last one's where they are
            attended to in runs.
        value: likewise.
        attention_mask: ``[N, 1, T, L]``, True where a token attends.
        by_name: whether masked attention is done by the kernel of ``efficient``.
        options: dropout, scaling, ...

    Returns:
        ``[N, T, heads, size]``, and no weights.
    """
    if key.shape[0] != query.shape[0]:
        done, first, made = 0, _now.runs[0][0], []
        for slot, count in _now.runs:
            row_N, slot_N = slice(done, done + count), slice(slot - first, slot - first + count)
            mask = None if attention_mask is None else attention_mask[row_N]
            run = (query[row_N], key[slot_N], value[slot_N], mask)
            made.append(slot_attention(module, *run, by_name=by_name, **options)[0])
            done += count
        return torch.cat(made), None
    rows, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    more = any(options.get(name) is not None for name in ("position_bias", "softcap"))
    mask = attention_mask
    if more or mask is None or mask.shape[1] != 1:
        mask = None
    by_name = by_name and mask is not None and efficient.fits(query, key, value, mask)
    if mask is None or (groups == 1 and not by_name):
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return result
    folded = query.reshape(rows, key.shape[1], groups * tokens, size)
    # One token's mask fits its whole group as it is.
    repeats, scale = groups if tokens > 1 else 1, options.get("scaling")
    if by_name:
        # Compiled code computes what is the same only once by itself, and knows no thread's locals.
        bias = efficient.bias if torch.compiler.is_compiling() else _now.bias
        output = efficient.attend(folded, key, value, bias(mask, repeats, query.dtype), scale)
    else:
        mask = mask if repeats == 1 else mask.repeat(1, 1, repeats, 1)
        output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return output.reshape(rows, heads, tokens, value.shape[-1]).transpose(1, 2).contiguous(), None


def _by_name(*given: Any, **options: Any) -> tuple[torch.Tensor, None]:
    return slot_attention(*given, by_name=True, **options)


ALL_ATTENTION_FUNCTIONS.register(_NAME, slot_attention)
ALL_ATTENTION_FUNCTIONS.register(_EFFICIENT, _by_name)
# Another thread may run the same model while its config names this: it gets the masks of "sdpa".
for _name in (_NAME, _EFFICIENT):
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


class SlotAttention:
    """Lets a model with sdpa attention use ``slot_attention`` for a forward.

    Others may use its config too, so that is restored after the forward; and they may set it meanwhile.

    Args:
        config: the model's (text) config.
        device: of the model.
        dtype: of its computations.
    """

    def __init__(
        self, config: Any, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        grouped = any(
            getattr(layer, "num_key_value_heads", None) not in (None, 0, layer.num_attention_heads)
            for layer in attending_layers(config)
        )
        by_name = device is not None and dtype is not None and efficient.preferred(device, dtype)
        self._name = _EFFICIENT if by_name else _NAME
        self._always = by_name or grouped
        # Where the config's property keeps the name: to set that costs more than a small model's layer.
        self._fields = vars(config)

    @property
    def takes_runs(self) -> bool:
        """Whether the model's attention can be this one."""
        return bool(self._fields.get(_FIELD) in ("sdpa", _NAME, _EFFICIENT))

    @property
    def adds_mask(self) -> bool:
        """Whether the model's attention adds its mask to the scores."""
        return bool(self._fields.get(_FIELD) == "eager")

    @contextmanager
    def over(self, runs: Sequence[tuple[int, int]] = ()) -> Iterator[None]:
        """Use it for as long as the block lasts.

        Args:
            runs: (first slot, number) of each run of neighbouring slots; none where keys come row by row.
        """
        if not (self.takes_runs and (runs or self._always)):
            yield
            return
        with _users_lock:
            _users[id(self._fields)] += 1
            self._fields[_FIELD], _now.runs, _now.made = self._name, runs, {}
        try:
            yield
        finally:
            with _users_lock:
                _now.runs, _now.made = (), None
                _users[id(self._fields)] -= 1
                if not _users[id(self._fields)]:
                    del _users[id(self._fields)]
                    if self._fields[_FIELD] in (_NAME, _EFFICIENT):  # Unless a user set it meanwhile.
                        self._fields[_FIELD] = "sdpa"


def meant_attention(config: Any) -> str | None:
    """The attention that a config names, whoever's forward may be at work."""
    named: str | None = getattr(config, "_attn_implementation", None)
    return "sdpa" if named in (_NAME, _EFFICIENT) else named


@torch.inference_mode()
def slides(body: torch.nn.Module, config: Any) -> bool:
    """Whether a model goes by the window that its config names, which may be left from another family.

    Args:
        body: the decoder.
        config: its own, not a copy.
    """
    device = next(body.parameters()).device
    ids_1T = torch.arange(1, 9, device=device)[None]
    named, window = body(input_ids=ids_1T, use_cache=False)[0], config.sliding_window
    config.sliding_window = 2
    try:
        narrow = body(input_ids=ids_1T, use_cache=False)[0]
    finally:
        config.sliding_window = window
    return not torch.equal(named, narrow)
