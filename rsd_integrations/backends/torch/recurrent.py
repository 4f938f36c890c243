"""Recurrent layers over slots: gated delta nets (Qwen 3.5), Mamba, short convolutions (LFM), ...

What such a layer keeps of a text is one state, and no mask takes a token out of it again. So the states at a
few earlier places of each slot are kept, above all where the step in progress began. A forward that begins
elsewhere begins at the last of these places before it, and reads the tokens in between once more.

Rows of one forward are equally long, for padding would be read into the states.
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

from rsd_integrations.backends.shared.describe import ATTENDING
from rsd_integrations.backends.torch.bursts import Burst
from rsd_integrations.backends.torch.plan import Plan, SlotFeed
from rsd_integrations.backends.torch.readout import Read, caller
from rsd_integrations.backends.torch.runner import PREFILL_CHUNK, Masks, SlotRunner
from rsd_integrations.backends.torch.slots import SlotCache, SlotLayer

__all__ = ["RecurrentCache", "RecurrentRunner", "cache_bytes", "is_recurrent"]

_SPLIT = 64
"""Tokens from which the last one is read by itself, for others that begin alike to start before it."""

_SETTLED, _GUESSED = 2, 3
"""Most places that are kept of what stays, for the last token of it is fed again where its output is wanted
once more; and within a step, where guesses may prove wrong."""

States = list[torch.Tensor | None]
"""Of all recurrent layers, ``[1, ...]`` each, in one order. They are never written to."""


@dataclass(slots=True)
class _Place:
    """The states behind so many tokens. ``settled``: its request will not go back before it."""

    position: int
    states: States
    kept: bool = False
    settled: bool = False


@dataclass(slots=True)
class _Text:
    """What a slot has read, and places in it in rising order; the last is where it stands."""

    tokens: list[int] = field(default_factory=list)
    places: list[_Place] = field(default_factory=list)

    def cut(self, length: int) -> None:
        """Forget what is behind."""
        del self.tokens[length:]
        self.places = [place for place in self.places if place.position <= length]

    def before(self, position: int) -> _Place | None:
        """The last place that is not behind a position; None for the start."""
        return next((place for place in reversed(self.places) if place.position <= position), None)

    def thin_out(self) -> None:
        """Of the places that nobody may go back to keep only the one where the slot stands."""
        *kept, last = [place for place in self.places if place.kept or place is self.places[-1]]
        settled = [place for place in kept if place.settled]
        base = settled[-1].position if settled else 0
        within = [place for place in kept if place.position > base]
        self.places = [*settled[-_SETTLED:], *within[-_GUESSED:], last]


class _StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """States of one layer, of the rows of the forward that runs."""

    def states(self) -> Iterator[tuple[dict[int, Any], dict[int, bool], int]]:
        """The places of its states: (states, whether they are there, index)."""
        for index in range(self.number_of_states):
            yield self.conv_states, self.is_conv_states_initialized, index
            yield self.recurrent_states, self.is_recurrent_states_initialized, index

    def lay(self, rows: Sequence[torch.Tensor | None]) -> None:
        """Begin with these states, in the order of ``states``; without any at the start of all texts."""
        for (kept, there, index), state in zip(self.states(), rows, strict=True):
            kept[index], there[index] = state, state is not None
        for index in range(self.number_of_states):
            self.has_previous_state[index] = any(state is not None for state in rows)


class _BothLayer(_StateLayer, SlotLayer):
    """Of a layer that attends and is recurrent, side by side."""

    def __init__(self, owner: SlotCache, number_of_states: int) -> None:
        SlotLayer.__init__(self, owner)
        LinearAttentionLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *keys_and_values: Any, **states: Any) -> None:
        """Keys and values come by place, states by name."""
        if keys_and_values:
            SlotLayer.lazy_initialization(self, *keys_and_values)
        else:
            _StateLayer.lazy_initialization(self, **states)


class RecurrentCache(SlotCache):
    """A slot cache for a model of which some layers are recurrent.

    Args:
        config: the model's (text) config.
        slots: requests at once.
        capacity: positions of a slot.
    """

    def __init__(self, config: Any, slots: int, capacity: int) -> None:
        super().__init__(0, slots, capacity)
        self.layers = [self._layer(layer) for layer in DynamicCache(config=config).layers]
        self._texts = [_Text() for _ in range(slots)]

    def _layer(self, made: Any) -> Any:
        """The slots' kind of a layer of a cache that transformers makes."""
        attends = isinstance(made, DynamicLayer)
        if isinstance(made, LinearAttentionCacheLayerMixin):
            return _BothLayer(self, made.number_of_states) if attends else _StateLayer(made.number_of_states)
        return SlotLayer(self) if attends else made

    def reach(self, feed: SlotFeed) -> SlotFeed:
        """The feed from a place on of which the states are known."""
        text = self._texts[feed.slot]
        place = text.before(feed.start)
        start = place.position if place else 0
        again = text.tokens[start : feed.start]
        if not again:
            return feed
        read = feed.read % len(feed.tokens)
        return replace(feed, start=start, tokens=[*again, *feed.tokens], read=len(again) + read)

    def begin(self, feeds: Sequence[SlotFeed]) -> None:
        """Lay out the states of the equally long rows of a forward, each at a place that was reached."""
        rows = [self._states(feed) for feed in feeds]
        known = next((row for row in rows if row), None)
        laid: Iterator[torch.Tensor | None] = iter(())
        if known:
            zeros = [None if state is None else torch.zeros_like(state) for state in known]
            rows = [row or zeros for row in rows]
            laid = (_joined(states) for states in zip(*rows, strict=True))
        for layer in self._recurrent():
            layer.lay([next(laid, None) for _ in layer.states()])

    def end(self, feeds: Sequence[SlotFeed]) -> None:
        """Keep what a forward made of them."""
        made = [kept[index] for layer in self._recurrent() for kept, _, index in layer.states()]
        for row, feed in enumerate(feeds):
            text = self._texts[feed.slot]
            text.cut(feed.start)
            if text.places:
                place = text.places[-1]
                place.settled = place.settled or place.position <= feed.base
                if not place.kept and (place.settled or len(feed.tokens) > 1):
                    place.kept = True
                    # Of a row among others it would hold on to the states of all.
                    place.states = [None if state is None else state.clone() for state in place.states]
            text.tokens += feed.tokens
            states = [None if state is None else state[row : row + 1] for state in made]
            text.places.append(_Place(len(text.tokens), states))
            text.thin_out()
        for layer in self._recurrent():
            layer.lay([None for _ in layer.states()])

    def wipe(self, slot: int, start: int, end: int) -> None:
        """Zero positions ``start`` to ``end - 1`` of a slot, and forget the states behind ``start``."""
        super().wipe(slot, start, end)
        self._texts[slot].cut(start)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy positions ``start`` to ``end - 1`` from one slot to another, which are the same before."""
        super().copy(source, target, start, end)
        text, own = self._texts[source], self._texts[target]
        places = {place.position: replace(place) for place in own.places if place.position <= start}
        places |= {place.position: replace(place) for place in text.places if place.position <= end}
        self._texts[target] = _Text(text.tokens[:end], [places[position] for position in sorted(places)])

    def _recurrent(self) -> list[_StateLayer]:
        return [layer for layer in self.layers if isinstance(layer, _StateLayer)]

    def _states(self, feed: SlotFeed) -> States:
        """Of the place where a feed begins; none at the start of a text."""
        place = self._texts[feed.slot].before(feed.start)
        return place.states if place else []


class RecurrentRunner(SlotRunner):
    """A ``SlotRunner`` of a model with recurrent layers, whose forwards are called.

    Args:
        config: the model's (text) config.
        options: as of ``SlotRunner``; nothing is compiled, recorded or traced.
    """

    cache: RecurrentCache

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options | {"launcher": None, "traces": False})
        self._maskless = {kind for kind in self.attention if kind not in ATTENDING}
        self.attention = {
            kind: places for kind, places in self.attention.items() if kind not in self._maskless
        }
        self._idle = 0.0
        self._grouped = lambda feeds: [_by_slot(feeds)]

    @staticmethod
    def _new_cache(config: Any, slots: int, capacity: int) -> SlotCache:
        return RecurrentCache(config, slots, capacity)

    def _called(self, feeds: Sequence[SlotFeed], burst: Burst | None = None) -> list[Read]:
        reached = [self._reached(feed) for feed in feeds]
        # Others that begin alike start before the last token, which each has to read by itself.
        begun = [index for index, feed in enumerate(reached) if _long(feed)]
        if begun:
            self._together([replace(reached[index], tokens=reached[index].tokens[:-1]) for index in begun])
        for index in begun:
            feed = reached[index]
            reached[index] = replace(feed, start=feed.start + len(feed.tokens) - 1, tokens=feed.tokens[-1:])
        return self._together(reached)

    def _reached(self, feed: SlotFeed) -> SlotFeed:
        """The feed from where its slot's states are known; if that is far before, nearer by some forwards."""
        reached = self.cache.reach(feed)
        while len(reached.tokens) > len(feed.tokens) + PREFILL_CHUNK:
            self._together([replace(reached, tokens=reached.tokens[:PREFILL_CHUNK], read=-1, more=0)])
            reached = replace(
                reached,
                start=reached.start + PREFILL_CHUNK,
                tokens=reached.tokens[PREFILL_CHUNK:],
                read=reached.read - PREFILL_CHUNK,
            )
        return reached

    def _together(self, feeds: Sequence[SlotFeed]) -> list[Read]:
        """The outputs of feeds that begin where states are known, one forward for each length."""
        results: dict[int, Read] = {}
        lengths = [len(feed.tokens) for feed in feeds]
        for rows in ([row for row in _by_slot(feeds) if lengths[row] == length] for length in set(lengths)):
            group = [feeds[row] for row in rows]
            self.cache.begin(group)
            results |= zip(rows, super()._called(group), strict=True)
            self.cache.end(group)
        return [results[index] for index in range(len(feeds))]

    def _masks(self, plan: Plan) -> Masks:
        """As of a ``SlotRunner``; nothing is masked in layers that are recurrent."""
        if not self.attention:
            return None
        made = super()._masks(plan)
        return made | dict.fromkeys(self._maskless) if isinstance(made, dict) else made


def is_recurrent(config: Any) -> bool:
    """Whether some layers of a model are recurrent, in the way that transformers' own caches know."""
    try:
        layers = DynamicCache(config=config).layers
    except KeyError:  # A kind of layer that they do not.
        return False
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


@torch.inference_mode()
def cache_bytes(model: torch.nn.Module, config: Any, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a position's keys and values, and of the states that are kept of a text at most.

    Args:
        model: on whatever device; "meta" takes no memory.
        config: its (text) config.
        dtype: it is to compute in, whatever it does here.
    """
    cache = RecurrentCache(config, 1, 1)
    head_N3, ids_NT, key_L = (
        torch.tensor(numbers, device=model.device)  # type: ignore[arg-type]
        for numbers in ([[0, 0, 1]], [[0]], [0])
    )
    cache.plan = Plan.of(head_N3, ids_NT, key_L, capacity=1)
    caller(model)({"input_ids": ids_NT, "position_ids": ids_NT, "cache": cache, "use_cache": True})
    states = [kept[index] for layer in cache._recurrent() for kept, _, index in layer.states()]

    def size(tensors: Sequence[torch.Tensor | None]) -> int:
        made = [tensor for tensor in tensors if tensor is not None]
        # Some states are of more precision than the rest.
        kinds = [dtype if tensor.dtype == model.dtype else tensor.dtype for tensor in made]
        return sum(tensor.numel() * kind.itemsize for tensor, kind in zip(made, kinds, strict=True))

    # One of two positions is scratch.
    return size(cache.states()) // 2, (_SETTLED + _GUESSED + 1) * size(states)


def _joined(states: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Copies of rows' states, one behind the other."""
    made = [state for state in states if state is not None]
    return torch.cat(made) if made else None


def _long(feed: SlotFeed) -> bool:
    """Whether it ends with the prompt, or with another text that stays, and has read much of it."""
    last = len(feed.tokens) - 1
    return last >= _SPLIT and feed.start + last + 1 == feed.base and feed.reads == range(last, last + 1)


def _by_slot(feeds: Sequence[SlotFeed]) -> list[int]:
    return sorted(range(len(feeds)), key=lambda index: feeds[index].slot)
