"""Who holds which slot, and what the free ones still know.

A prefix cache: a slot that is given back keeps the keys and values of what the model has read there. The next
request that begins alike (the next turn of a chat, another question on the same documents, another sample)
starts behind that. Keys and values of a prefix depend on nothing behind it, so they are the ones that the
request would compute itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rsd_integrations.backends.torch.slots import SlotCache

LEAST_SHARED = 16
"""Tokens from which a common beginning is worth a copy."""

Seen = Callable[[], Sequence[int]]


@dataclass(slots=True)
class _Slot:
    """One slot.

    ``seen``: of a slot that somebody holds, tells what the model has read there by now; None: it is free.
    ``kept``: of a free slot, what it still knows. ``filled``: how many positions may hold other than zeros.
    ``spoilt``: what is in it may not be sound. ``used``: when it was given back, 0: long ago.
    """

    seen: Seen | None = None
    kept: Sequence[int] = ()
    filled: int = 0
    spoilt: bool = False
    used: int = 0

    @property
    def known(self) -> Sequence[int]:
        """Tokens whose keys and values are here and sound."""
        if self.spoilt:
            return ()
        return self.kept if self.seen is None else self.seen()


class SlotPool:
    """The slots of one cache.

    Args:
        cache: whose rows they are.
        keeps: whether free slots keep what was read.
    """

    def __init__(self, cache: SlotCache, *, keeps: bool = True) -> None:
        self._cache = cache
        self.keeps = keeps
        self._slots = [_Slot() for _ in range(cache.slots)]
        self._clock = 0

    @property
    def free(self) -> int:
        """Slots nobody holds."""
        return len(self._free())

    def claim(self, tokens: Sequence[int] = (), seen: Seen | None = None) -> tuple[int, int]:
        """The lowest free slot, as neighbours are cheaper to read, and how many of ``tokens`` it knows.

        Args:
            tokens: those that the model will have to read there.
            seen: called to learn what it has read there by now; other requests may start with a copy.
        """
        index = self._free()[0]
        source, length = self._longest(tokens)
        if source != index or not self._most_of(index, length):
            self._move_out(index, source)
        slot = self._slots[index]
        if source is not None and source != index:
            self._overwrite(index, source, length)
            self._outdate(source, length)
        self._cache.wipe(index, length, slot.filled)
        slot.filled, slot.kept, slot.seen = length, (), seen or tuple
        return index, length

    def known(self, tokens: Sequence[int]) -> int:
        """How many of the tokens a slot claimed now would know."""
        return self._longest(tokens)[1]

    def release(self, index: int, seen: Sequence[int] = ()) -> None:
        """Give a slot back, clean but for what the model has read.

        Args:
            index: the slot.
            seen: what was read there; nothing else is left in it.
        """
        slot = self._slots[index]
        slot.kept = list(seen) if self.keeps and not slot.spoilt else ()
        # A NaN left behind would spread, masked or not.
        self._cache.wipe(index, len(slot.kept), slot.filled)
        self._clock += 1
        slot.filled, slot.seen, slot.spoilt, slot.used = len(slot.kept), None, False, self._clock

    def forget(self) -> None:
        """Have no other request use what was read until now."""
        for slot in self._slots:
            slot.kept = ()
            slot.spoilt = slot.seen is not None

    def fill(self, index: int, length: int) -> None:
        """Note that a slot was written up to a length."""
        self._slots[index].filled = max(self._slots[index].filled, length)

    def copy(self, source: int, index: int, start: int, end: int) -> None:
        """Copy positions ``start`` to ``end - 1`` from another slot."""
        self.fill(index, end)  # First: it may fail halfway.
        self._cache.copy(source, index, start, end)

    def spoil(self, index: int) -> None:
        """Note that what is in a slot may not be sound: no other request is to use it."""
        self._slots[index].spoilt = True

    def _free(self) -> list[int]:
        return [index for index, slot in enumerate(self._slots) if slot.seen is None]

    def _longest(self, tokens: Sequence[int]) -> tuple[int | None, int]:
        """The slot that knows most of the tokens' beginning, and how much; (None, 0) if too little."""
        if not self.keeps or len(tokens) < LEAST_SHARED:
            return None, 0
        wanted = list(tokens)
        lengths = [
            (self._cache.usable(index, shared(slot.known, wanted)), -index)
            for index, slot in enumerate(self._slots)
        ]
        length, place = max(lengths)
        return (-place, length) if length >= LEAST_SHARED else (None, 0)

    def _move_out(self, index: int, source: int | None) -> None:
        """Move what a free slot knows to the least recently used free one, if that was used before it."""
        slot = self._slots[index]
        others = [other for other in self._free() if other not in (index, source)]
        if not slot.kept or not others:
            return
        oldest = min(others, key=lambda other: self._slots[other].used)
        taken = self._slots[oldest]
        if taken.kept and taken.used > slot.used:
            return
        length = len(slot.kept)
        self._overwrite(oldest, index, length)
        self._cache.wipe(oldest, length, taken.filled)
        taken.kept, taken.filled, taken.used = slot.kept, length, slot.used

    def _overwrite(self, index: int, source: int, length: int) -> None:
        """Copy so much from another slot. What was there is forgotten, also if it fails halfway."""
        self._slots[index].kept = ()
        self.copy(source, index, 0, length)

    def _outdate(self, source: int, length: int) -> None:
        """Have what now goes on in a copy be the first to be forgotten where it was."""
        slot = self._slots[source]
        if slot.seen is None and self._most_of(source, length):
            slot.used = 0

    def _most_of(self, index: int, length: int) -> bool:
        """Whether so many tokens are most of what a free slot knows: the same chat, a turn later."""
        return 4 * length >= 3 * len(self._slots[index].kept)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning of two lists. By bisection: slices of lists compare fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
