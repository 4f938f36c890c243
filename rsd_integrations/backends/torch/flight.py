"""Forwards on their way: launched, but not waited for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rsd_integrations.backends.torch.plan import Shape, SlotFeed
from rsd_integrations.backends.torch.readout import Read


class Fetch:
    """A copy to the host that is ordered now and waited for later.

    Args:
        source: a tensor on any device; what is launched after this may overwrite it.
    """

    def __init__(self, source: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if source.is_cuda:
            self._copy = torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=True)
            self._copy.copy_(source, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(source.device))
        else:
            self._copy = source.to("cpu", copy=True)

    def wait(self) -> list[Any]:
        """The numbers."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[Any] = self._copy.tolist()
        return numbers


@dataclass(slots=True)
class Flight:
    """A forward of some feeds.

    ``kept``: its outputs on the device, ``[N, C, ...]``. ``fetch``: those for the host. ``rows``: the row of
    each feed. ``columns``: which were read, None: all.
    """

    kept: torch.Tensor
    fetch: Fetch
    shape: Shape
    feeds: Sequence[SlotFeed]
    rows: Sequence[int]
    columns: Sequence[int] | None = None
    own: int = 0
    """Tokens of each feed behind the first that were fed as they were drawn (``Burst``)."""
    ahead: bool = False
    """Whether it runs ahead of the host: it feeds the tokens that its forerunner found likeliest."""

    def outputs(self, *, followed: bool = False) -> list[Read]:
        """What each feed wanted. Waits for the device.

        Args:
            followed: whether a flight runs ahead of these outputs.
        """
        fetched_NC = self.fetch.wait()
        made = []
        for row, feed in zip(self.rows, self.feeds, strict=True):
            first = feed.reads[0] if self.columns is None else self.columns.index(feed.reads[0])
            places = slice(first, first + 1 + feed.more + self.own)
            fetched = fetched_NC[row][places]
            made.append(Read(self.kept[row, places], fetched, self.own, self.ahead, followed))
        return made

    def next_feeds(self) -> list[SlotFeed] | None:
        """The feeds of the flight behind this one, of tokens yet unknown; None where it does not fit."""
        if self.shape.tokens > 1 or any(feed.start + 2 > self.shape.span for feed in self.feeds):
            return None
        return [SlotFeed(feed.slot, feed.start + 1, [0]) for feed in self.feeds]

    def carries(self, feeds: Sequence[SlotFeed]) -> dict[int, int]:
        """Which of these feeds (``early`` ones only) it has fed already: their index -> its own feed's."""
        own = {(feed.slot, feed.start): place for place, feed in enumerate(self.feeds)}
        return {
            index: own[feed.slot, feed.start]
            for index, feed in enumerate(feeds)
            if feed.early and len(feed.tokens) == 1 and (feed.slot, feed.start) in own
        }
