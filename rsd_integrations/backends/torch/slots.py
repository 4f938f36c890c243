"""KV caches in slots: many requests in one model, each with its own length and its own rollback.

A slot is one row of preallocated keys and values. A request's length is kept by its session; what
lies behind that length in its row is stale and masked out, so rolling back costs nothing. Each
forward names its rows and positions in a ``Plan`` (``plan.py``) which all layers read.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from rsd_integrations.backends.torch.plan import Plan, Shape


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, ``[slots, heads, capacity + 1, head size]``.

    A head's positions lie side by side, as attention reads them. The last position is scratch: padding writes
    there and nobody reads it.
    """

    is_sliding = False

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate on the device where the model computes this layer."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_zeros(self._owner.slots, states.shape[1], self._owner.capacity + 1, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[N, heads, T, size]`` states, return those of all positions, ``[N, heads, L, size]``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        plan = self._owner.plan
        rows_N, write_NT = plan.on(self.keys.device)
        for kept, states in ((self.keys, key_states), (self.values, value_states)):
            if plan.line:
                # A lone row is written as a slice, which costs a fraction of scattered places.
                kept[plan.block, :, plan.line] = states
            else:
                kept[rows_N[:, None], :, write_NT] = states.transpose(1, 2)
        return self._rows(self.keys, plan, rows_N), self._rows(self.values, plan, rows_N)

    @staticmethod
    def _rows(states: torch.Tensor, plan: Plan, rows_N: torch.Tensor) -> torch.Tensor:
        # Neighbouring slots are a view; scattered ones are gathered, for which an index takes twice as long.
        reached = states[:, :, : plan.span]
        return reached[plan.block] if plan.block else reached.index_select(0, rows_N)

    def get_seq_length(self) -> int:
        """Positions and masks are always given, so this is never what a model goes by."""
        return 0

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Length and offset of the keys that ``update`` returns."""
        return self._owner.plan.span, 0

    def get_max_length(self) -> int:
        """Positions a slot holds."""
        return self._owner.capacity

    get_max_cache_shape = get_max_length


class SlotCache(Cache):  # type: ignore[misc]
    """A cache of ``slots`` rows of ``capacity`` positions.

    Args:
        config: the model's (text) config.
        slots: requests at once.
        capacity: positions of a slot.
    """

    def __init__(self, config: Any, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self.plan: Plan
        """Of the forward that runs; set before each."""
        super().__init__(layers=self._made_for(config))

    def _made_for(self, config: Any) -> list[Any]:
        """The layers of a model's cache."""
        return [SlotLayer(self) for _ in range(int(config.num_hidden_layers))]

    def close(self) -> None:
        """Give the memory back: the cache and its layers refer to each other."""
        self.layers.clear()

    @torch.inference_mode()
    def wipe(self, slot: int, start: int, end: int) -> None:
        """Zero positions ``start`` to ``end - 1`` of a slot."""
        for layer in self._filled() if start < end else ():
            layer.keys[slot, :, start:end].zero_()
            layer.values[slot, :, start:end].zero_()

    @torch.inference_mode()
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy positions ``start`` to ``end - 1`` from one slot to another."""
        for states in self.states():
            states[target, :, start:end] = states[source, :, start:end]

    def usable(self, slot: int, length: int) -> int:
        """Of the first ``length`` tokens that a slot has read, how many a copy of it would know."""
        return length

    def to_be_usable(self, length: int, base: int) -> int:
        """The same of tokens that a slot has yet to read, of a text with ``base`` committed ones."""
        return length

    def states(self) -> list[torch.Tensor]:
        """Keys and values of the layers that have some by now, as of ``SlotLayer``."""
        return [states for layer in self._filled() for states in (layer.keys, layer.values)]

    def _filled(self) -> list[SlotLayer]:
        """Layers that attend and have run."""
        return [layer for layer in self.layers if isinstance(layer, SlotLayer) and layer.is_initialized]

    @property
    def bytes(self) -> int:
        """Memory allocated by now."""
        return sum(states.numel() * states.element_size() for states in self.states())

    def bytes_read(self, shape: Shape) -> int:
        """Bytes that a layer reads in a forward, on average."""
        positions = max(1, len(self._filled())) * self.slots * (self.capacity + 1)
        return shape.rows * shape.span * self.bytes // positions
