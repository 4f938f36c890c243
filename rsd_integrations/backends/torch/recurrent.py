"""Runs a model with recurrent layers over slots.

A forward from a position whose states are not known begins at the last one before it whose states are, and
reads the tokens in between again. Rows of one forward are equally long, as padding would enter the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rsd_integrations.backends.torch.bursts import Burst
from rsd_integrations.backends.torch.flight import Flight
from rsd_integrations.backends.torch.forwards import Pair
from rsd_integrations.backends.torch.plan import PREFILL_CHUNK, Shape, SlotFeed, by_slot
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.states import RecurrentCache

_SPLIT = 64
"""Tokens from which the last one is read by itself, so that others that begin alike can start before it."""

_READ_AGAIN = 16
"""Tokens before guesses from which they are read by themselves; fewer are read again if a guess is wrong."""


class RecurrentRunner(SlotRunner):
    """A ``SlotRunner`` of a model with recurrent layers. A launcher may run forwards of one token a row; all
    others are called.

    Args:
        config: the model's (text) config.
        options: as of ``SlotRunner``; nothing is traced.
    """

    cache: RecurrentCache
    _cache_class = RecurrentCache

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options | {"traces": False})
        self._grouped = _single_ones_apart

    def _compute(self, head_N3: torch.Tensor, *numbers: torch.Tensor, **where: Any) -> Pair:
        self.cache.lay(head_N3)
        made = super()._compute(head_N3, *numbers, **where)
        self.cache.take(head_N3)
        return made

    def _shape(self, feeds: Sequence[SlotFeed]) -> Shape | None:
        """As of a ``SlotRunner``; None unless they are single tokens that begin where states are known."""
        if not self.launches or not self.cache.stores:
            return None
        single = all(len(feed.tokens) == 1 and self.cache.reach(feed) is feed for feed in feeds)
        return super()._shape(feeds) if single else None

    def _launched(self, feeds: Sequence[SlotFeed], shape: Shape, numbers: torch.Tensor) -> Pair:
        self.cache.begin(feeds)
        made = super()._launched(feeds, shape, numbers)
        self.cache.end(feeds)
        return made

    def _follow(self, flight: Flight) -> None:
        """Nothing runs ahead of the host, which keeps where each slot's states are."""

    def _called(self, feeds: Sequence[SlotFeed], burst: Burst | None = None) -> list[Read]:
        reached, heads = [self._reached(feed) for feed in feeds], []
        for index, feed in enumerate(reached):
            if length := _apart(feed):
                head, reached[index] = feed.cut(length)
                heads.append(head)
        self._together(heads)
        return self._together(reached)

    def _reached(self, feed: SlotFeed) -> SlotFeed:
        """The feed, begun where states are known; if that is far before, forwards first bring it nearer."""
        reached = self.cache.reach(feed)
        while len(reached.tokens) > len(feed.tokens) + PREFILL_CHUNK:
            head, reached = reached.cut(PREFILL_CHUNK)
            self._together([head])
        return reached

    def _together(self, feeds: Sequence[SlotFeed]) -> list[Read]:
        """The outputs of feeds that begin where states are known, one forward for each length."""
        results: dict[int, Read] = {}
        lengths = [len(feed.tokens) for feed in feeds]
        order = by_slot(range(len(feeds)), feeds)
        for rows in ([row for row in order if lengths[row] == length] for length in set(lengths)):
            group = [feeds[row] for row in rows]
            self.cache.begin(group)
            results |= zip(rows, super()._called(group), strict=True)
            self.cache.end(group)
        return [results[index] for index in range(len(feeds))]


def _apart(feed: SlotFeed) -> int:
    """How many tokens to read by themselves before the others, so that states are kept behind them: all but
    the last of a committed text, if it is long or other candidates wait for it; and many before guesses.
    """
    first, tokens = feed.reads[0], len(feed.tokens)
    if feed.more:
        return first if first >= _READ_AGAIN else 0
    long = tokens > (1 if feed.awaited else _SPLIT)
    return tokens - 1 if long and feed.start + tokens == feed.base else 0


def _single_ones_apart(feeds: Sequence[SlotFeed]) -> list[list[int]]:
    """Indices of feeds of one token, and of the others."""
    order = by_slot(range(len(feeds)), feeds)
    parts = ([row for row in order if (len(feeds[row].tokens) == 1) is one] for one in (True, False))
    return [part for part in parts if part]
