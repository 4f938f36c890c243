"""States of recurrent layers over slots: gated delta nets (Qwen 3.5), Mamba, short convolutions (LFM), ...

What such a layer keeps of a text is one state, and no mask takes a token out of it again. So copies of the
states at a few earlier places of each slot are kept, above all where the step in progress began.

The current state of a slot lies in one of two rows, by turns: a forward of one token reads one and writes the
other, so that it can be run again, as recording it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from rsd_integrations.backends.torch.plan import PREFILL_CHUNK, Plan, SlotFeed
from rsd_integrations.backends.torch.readout import caller
from rsd_integrations.backends.torch.slots import SlotCache, SlotLayer

_PROMPT, _STEPS, _GUESSED = 3, 2, 1
"""Most places that are kept: in the prompt, for others that may begin alike; at committed steps, as a last
token is fed again when its output is wanted once more; in the step in progress, for guesses that prove wrong.
"""


@dataclass(slots=True)
class _Place:
    """Copies of the states behind ``position`` tokens, ``[...]`` each; nobody writes to them.

    ``settled``: its request will not roll back to before it.
    """

    position: int
    states: list[torch.Tensor]
    settled: bool = False


@dataclass(slots=True)
class _Text:
    """What a slot has read, and where its states are known. ``prompt``: how much was committed at first;
    ``held``: for each half of the slot, the position whose states it has; ``places``: in rising order.
    """

    tokens: list[int] = field(default_factory=list)
    prompt: int = 0
    held: dict[int, int] = field(default_factory=dict)
    places: list[_Place] = field(default_factory=list)

    def cut(self, length: int) -> None:
        """Forget what lies behind ``length``."""
        del self.tokens[length:]
        self.held = {half: position for half, position in self.held.items() if position <= length}
        self.places = [place for place in self.places if place.position <= length]

    def before(self, position: int) -> int:
        """The last position, not behind this one, whose states are known."""
        known = (0, *self.held.values(), *(place.position for place in self.places))
        return max(one for one in known if one <= position)

    def place(self, position: int) -> _Place | None:
        """The place there, if one is kept."""
        return next((place for place in self.places if place.position == position), None)

    def thin_out(self) -> None:
        """Keep only the places that somebody may go back to."""
        first = [place for place in self.places if place.position < self.prompt]
        steps = [place for place in self.places[len(first) :] if place.settled]
        base = steps[-1].position if steps else self.prompt
        within = [place for place in self.places if place.position > base]
        self.places = [*first[-_PROMPT:], *steps[-_STEPS:], *within[-_GUESSED:]]


class _StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """States of one layer, of the rows of the forward that runs."""

    def states(self) -> Iterator[tuple[dict[int, Any], dict[int, bool], int]]:
        """The places of its states: (states, whether they are there, index)."""
        for index in range(self.number_of_states):
            yield self.conv_states, self.is_conv_states_initialized, index
            yield self.recurrent_states, self.is_recurrent_states_initialized, index

    def lay(self, states: Iterator[torch.Tensor] | None) -> None:
        """Set its states to the next of these, in the order of ``states``; None before the first forward."""
        for kept, there, index in self.states():
            kept[index] = next(states) if states and there[index] else None
            there[index] = kept[index] is not None
        for index in range(self.number_of_states):
            self.has_previous_state[index] = states is not None


class _BothLayer(_StateLayer, SlotLayer):
    """Keys, values and states of a layer that attends and is recurrent, side by side."""

    def __init__(self, owner: SlotCache, number_of_states: int) -> None:
        SlotLayer.__init__(self, owner)
        LinearAttentionLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *keys_and_values: Any, **states: Any) -> None:
        """Keys and values come as positional arguments, states by name."""
        if keys_and_values:
            SlotLayer.lazy_initialization(self, *keys_and_values)
        else:
            _StateLayer.lazy_initialization(self, **states)


class RecurrentCache(SlotCache):
    """A slot cache for a model of which some layers are recurrent. Arguments as of a ``SlotCache``."""

    def __init__(self, config: Any, slots: int, capacity: int) -> None:
        super().__init__(config, slots, capacity)
        self._texts = [_Text() for _ in range(slots)]
        self.stores: list[torch.Tensor] = []
        """States of all recurrent layers in one order, ``[2 * slots + 1, ...]``: two halves of each slot and
        scratch. Empty before the first forward."""

    def _made_for(self, config: Any) -> list[Any]:
        return [self._layer(layer) for layer in DynamicCache(config=config).layers]

    def _layer(self, made: Any) -> Any:
        """The slots' kind of a layer of a cache that transformers makes."""
        attends = isinstance(made, DynamicLayer)
        if isinstance(made, LinearAttentionCacheLayerMixin):
            return _BothLayer(self, made.number_of_states) if attends else _StateLayer(made.number_of_states)
        return SlotLayer(self) if attends else made

    def reach(self, feed: SlotFeed) -> SlotFeed:
        """The feed from where the states are known; itself if that is where it begins."""
        text = self._texts[feed.slot]
        start = text.before(feed.start)
        if start == feed.start:
            return feed
        again, read = text.tokens[start : feed.start], feed.read % len(feed.tokens)
        return replace(feed, start=start, tokens=[*again, *feed.tokens], read=len(again) + read)

    def begin(self, feeds: Sequence[SlotFeed]) -> None:
        """Make ready for a forward of these feeds, each from where its slot's states are known."""
        for feed in feeds:
            text, start = self._texts[feed.slot], feed.start
            text.prompt = text.prompt or feed.base
            place = text.place(start)
            if self.stores and text.held.get(start % 2) != start:
                self._put(feed.slot, start, place)
                text.held[start % 2] = start
            if start and not place and (start <= feed.base or len(feed.tokens) > 1):
                states = [store[2 * feed.slot + start % 2].clone() for store in self.stores]
                place = _Place(start, states)
                text.places = sorted([*text.places, place], key=lambda place: place.position)
            if place:
                place.settled = place.settled or start <= feed.base
            # That half is written to, however the forward ends.
            text.held.pop((start + len(feed.tokens)) % 2, None)

    def end(self, feeds: Sequence[SlotFeed]) -> None:
        """Note what a forward has read."""
        for feed in feeds:
            text = self._texts[feed.slot]
            text.cut(feed.start)
            text.tokens += feed.tokens
            text.held[len(text.tokens) % 2] = len(text.tokens)
            text.thin_out()

    def lay(self, head_N3: torch.Tensor) -> None:
        """Give the layers the states where the rows of a forward begin.

        Args:
            head_N3: of ``unpack``.
        """
        read_N = 2 * head_N3[:, 0] + head_N3[:, 1] % 2
        laid = (store.index_select(0, read_N.to(store.device)) for store in self.stores)
        for layer in self._recurrent():
            layer.lay(laid if self.stores else None)

    def take(self, head_N3: torch.Tensor) -> None:
        """Keep the states that the layers made of them; of padding rows none.

        Args:
            head_N3: of ``unpack``.
        """
        made = [
            kept[index]
            for layer in self._recurrent()
            for kept, there, index in layer.states()
            if there[index]
        ]
        if not self.stores:
            self.stores = [state.new_zeros(2 * self.slots + 1, *state.shape[1:]) for state in made]
        half_N = 2 * head_N3[:, 0] + (head_N3[:, 1] + head_N3[:, 2]) % 2
        write_N = half_N.where(head_N3[:, 2] > 0, 2 * self.slots)
        for store, states in zip(self.stores, made, strict=True):
            store.index_copy_(0, write_N.to(store.device), states)

    @torch.inference_mode()
    def _put(self, slot: int, position: int, place: _Place | None) -> None:
        """Lay the states of a place, or of the start of a text, where a forward from there reads them."""
        for index, store in enumerate(self.stores):
            row = store[2 * slot + position % 2]
            if place:
                row.copy_(place.states[index])
            else:
                row.zero_()

    def wipe(self, slot: int, start: int, end: int) -> None:
        """Zero positions ``start`` to ``end - 1`` of a slot, and forget the states behind ``start``."""
        super().wipe(slot, start, end)
        self._texts[slot].cut(start)
        self._texts[slot].prompt = 0

    def usable(self, slot: int, length: int) -> int:
        """Up to the last place whose states are known."""
        return self._texts[slot].before(length)

    def to_be_usable(self, length: int, base: int) -> int:
        """States are kept before the last committed token, which is read by itself, and between chunks."""
        return base - 1 if length >= base - 1 else length // PREFILL_CHUNK * PREFILL_CHUNK

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy positions ``start`` to ``end - 1`` from one slot to another, equal to it before ``start``."""
        super().copy(source, target, start, end)
        text, own = self._texts[source], self._texts[target]
        own.cut(start)
        places = {place.position: place for place in own.places}
        for half, position in text.held.items():
            states = [store[2 * source + half].clone() for store in self.stores]
            places[position] = _Place(position, states)
        places |= {place.position: replace(place) for place in text.places}
        known = [places[position] for position in sorted(places) if position <= end]
        self._texts[target] = made = _Text(text.tokens[:end], own.prompt, own.held, known)
        made.thin_out()

    def _recurrent(self) -> list[_StateLayer]:
        return [layer for layer in self.layers if isinstance(layer, _StateLayer)]


def is_recurrent(config: Any) -> bool:
    """Whether some layers of a model are recurrent, in the way that transformers' own caches know."""
    try:
        layers = DynamicCache(config=config).layers
    except KeyError:  # A kind of layer that they do not know.
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


@torch.inference_mode()
def cache_bytes(model: torch.nn.Module, config: Any, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a position's keys and values, and of the states that are kept of a text at most.

    Args:
        model: on whatever device; "meta" takes no memory.
        config: its (text) config.
        dtype: the one it is to compute in, whatever its own is here.
    """
    cache = RecurrentCache(config, 1, 1)
    head_N3, ids_NT, key_L = (
        torch.tensor(numbers, device=model.device)  # type: ignore[arg-type]
        for numbers in ([[0, 0, 1]], [[0]], [0])
    )
    cache.plan = Plan.of(head_N3, ids_NT, key_L, capacity=1)
    caller(model)({"input_ids": ids_NT, "position_ids": ids_NT, "cache": cache, "use_cache": True})
    cache.take(head_N3)

    def size(tensors: Sequence[torch.Tensor]) -> int:
        # Some states are of more precision than the rest.
        kinds = [dtype if tensor.dtype == model.dtype else tensor.dtype for tensor in tensors]
        return sum(tensor[0].numel() * kind.itemsize for tensor, kind in zip(tensors, kinds, strict=True))

    # One of two positions is scratch.
    return size(cache.states()) // 2, (2 + _PROMPT + _STEPS + _GUESSED) * size(cache.stores)
