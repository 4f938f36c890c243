"""Where one forward reads and writes: ragged feeds of several requests as a few whole numbers.

The numbers go to the device in one copy, and all that a model needs (ids, positions, places to write,
masks) is made of them there. So a forward of one shape is the same work whatever the numbers are, and
can be recorded once and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch

Place = int | torch.Tensor
"""A slot or a position. As a tensor it is a variable of a trace."""

PREFILL_CHUNK = 512
"""Most tokens of one request in one forward. Texts half as long or more have less than twice that together,
so that whoever writes does not wait for all who read; shorter ones have no limit.
"""

_SPAN = 256
"""Least positions that a rounded shape reads."""

_MOST_TOKENS = 64
"""Most tokens of a row in a rounded shape."""

MOST_TOGETHER = 256
"""Most tokens of a rounded shape. A GPU computes this many in about the time of one, the time of reading the
weights; beyond, the arithmetic takes longer than launching it.
"""

_LAUNCH = 150_000_000
"""Parameters x tokens that take a CPU about as long as launching one more forward."""

_LEAST_LAUNCH, _MOST_LAUNCH = 24, 64
"""Bounds of ``launch_tokens``: a CPU computes the least while it reads the weights once more; beyond the
most, attention counts too."""


@dataclass(frozen=True, slots=True)
class SlotFeed:
    """Tokens for one slot, at positions from ``start`` on. Wanted are the output at index ``read`` and
    ``more`` outputs behind it. ``early``: the token is the likeliest one behind what the slot was fed before,
    so a forward that ran ahead may have fed it already. ``base``: how many tokens of the text are committed.
    ``awaited``: the request's other candidates go on from what is read here.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    read: int = -1
    more: int = 0
    early: bool = False
    base: int = 0
    awaited: bool = False

    @property
    def reads(self) -> range:
        """The indices of the outputs that are wanted."""
        first = self.read % len(self.tokens)
        return range(first, first + 1 + self.more)

    def cut(self, length: int) -> tuple[SlotFeed, SlotFeed]:
        """Its first tokens, to be read by themselves, and the others, among which is all that is wanted."""
        head = replace(self, tokens=self.tokens[:length], read=-1, more=0)
        start, read = self.start + length, self.reads[0] - length
        return head, replace(self, start=start, tokens=self.tokens[length:], read=read)


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be known of a forward before its numbers.

    Args:
        rows: N.
        tokens: T, most of a row.
        span: L, positions that are read: at least as many as the longest row has then.
        block: the first slot, where the rows are neighbouring slots.
        line: the first position, where there is only one row.
        runs: (first slot, number) of each run of neighbouring slots, in the rows' order.
    """

    rows: int
    tokens: int
    span: int
    block: int | None = None
    line: int | None = None
    runs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def exact(cls, feeds: Sequence[SlotFeed], *, idle: float = 0.0) -> Shape:
        """The shape of just these feeds.

        Args:
            feeds: in the order of their slots.
            idle: to each row of one token, so many idle ones may be added to make a block of the first slots.
        """
        runs = _runs([feed.slot for feed in feeds])
        rows, block = len(feeds), runs[0][0] if len(runs) == 1 else None
        tokens = max(len(feed.tokens) for feed in feeds)
        if block is None and tokens == 1 and sum(runs[-1]) <= (1 + idle) * rows:
            rows, block = sum(runs[-1]), 0
        return cls(
            rows=rows,
            tokens=tokens,
            span=max(feed.start + len(feed.tokens) for feed in feeds),
            runs=runs,
            block=block,
            line=feeds[0].start if len(feeds) == 1 else None,
        )

    @classmethod
    def rounded(cls, feeds: Sequence[SlotFeed], *, slots: int, capacity: int) -> Shape | None:
        """One of a few shapes: powers of two, spans also half-way between. None for large forwards.

        The rows are the first slots where that takes no more rows.
        """
        exact = cls.exact(feeds)
        rows, tokens = min(_power(exact.rows), slots), _power(exact.tokens)
        if tokens > _MOST_TOKENS or rows * tokens > max(MOST_TOGETHER, slots):
            return None
        first = min(_power(max(feed.slot for feed in feeds) + 1), slots) == rows
        return cls(rows, tokens, min(_rounded_span(exact.span), capacity), 0 if first else None)


def _runs(slots: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(first, number) of each run of neighbours."""
    made: list[list[int]] = []
    for slot in slots:
        if made and slot == sum(made[-1]):
            made[-1][1] += 1
        else:
            made.append([slot, 1])
    return tuple((first, count) for first, count in made)


def _power(number: int) -> int:
    """The least power of two that is not below."""
    return 1 << (number - 1).bit_length()


def _rounded_span(span: int) -> int:
    power = max(_power(span), _SPAN)
    return 3 * power // 4 if power > _SPAN and span <= 3 * power // 4 else power


def launch_tokens(parameters: int) -> int:
    """Tokens that a CPU computes in the time that launching one more forward takes."""
    return min(_MOST_LAUNCH, max(_LEAST_LAUNCH, _LAUNCH // max(1, parameters)))


def grouped(feeds: Sequence[SlotFeed], *, merged: int = 0) -> list[list[int]]:
    """Groups of feeds, by index, for one forward each: of lengths that round up to one power of two, so that
    padding at most doubles them, and of more lengths where another forward costs more than padding.

    Args:
        feeds: of any lengths.
        merged: groups become one as long as, padded, they have no more tokens than this together.
    """
    by_length: dict[int, list[int]] = {}
    for index, feed in enumerate(feeds):
        by_length.setdefault(_power(len(feed.tokens)), []).append(index)
    groups: list[list[int]] = []
    for length, group in sorted(by_length.items()):
        both = groups[-1] + group if groups else group
        if groups and len(both) * length <= merged:
            groups[-1] = both
        else:
            groups.append(group)
    return [by_slot(group, feeds) for group in groups]


def cheapest(feeds: Sequence[SlotFeed], launch: int) -> list[list[int]]:
    """Groups of feeds, by index, for one forward each, so that all forwards together are as cheap as can be.
    A forward costs its rows times its longest row, to which the others are padded, plus launching it.

    Args:
        feeds: of any lengths.
        launch: the cost of launching a forward, in tokens.
    """
    by_length: dict[int, list[int]] = {}
    for index, feed in enumerate(feeds):
        by_length.setdefault(len(feed.tokens), []).append(index)
    lengths = sorted(by_length)
    rows = [0, *accumulate(len(by_length[length]) for length in lengths)]
    # best[n]: the least cost of the n shortest lengths, and where their last forward begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for end, length in enumerate(lengths, start=1):
        best.append(
            min((best[begin][0] + (rows[end] - rows[begin]) * length + launch, begin) for begin in range(end))
        )
    groups, end = [], len(lengths)
    while end:
        begin = best[end][1]
        groups.append([index for length in lengths[begin:end] for index in by_length[length]])
        end = begin
    return [by_slot(group, feeds) for group in reversed(groups)]


def by_slot(group: Sequence[int], feeds: Sequence[SlotFeed]) -> list[int]:
    """Indices of feeds in the order of their slots."""
    return sorted(group, key=lambda index: feeds[index].slot)


def pack(feeds: Sequence[SlotFeed], shape: Shape) -> tuple[torch.Tensor, list[int]]:
    """The numbers of a forward, ``[N * (3 + T)]``, and the row of each feed.

    They are slot, start and length of each row, then the tokens of each row. Padding rows have length 0.
    """
    # In a block that begins with the first slot, idle slots are rows too.
    in_block = shape.block == 0
    rows = [feed.slot for feed in feeds] if in_block else list(range(len(feeds)))
    spare = feeds[0].slot
    heads = [[row if in_block else spare, 0, 0] for row in range(shape.rows)]
    ids = [[0] * shape.tokens for _ in range(shape.rows)]
    for row, feed in zip(rows, feeds, strict=True):
        heads[row] = [feed.slot, feed.start, len(feed.tokens)]
        ids[row][: len(feed.tokens)] = feed.tokens
    numbers = [number for part in (*heads, *ids) for number in part]
    return torch.tensor(numbers, device="cpu"), rows


def unpack(numbers: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """The heads ``[N, 3]`` and the ids ``[N, T]``."""
    end = 3 * shape.rows
    return numbers[:end].view(shape.rows, 3), numbers[end:].view(shape.rows, shape.tokens)


@dataclass(slots=True)
class Plan:
    """Where one forward of N rows with T tokens reads and writes. L: positions it reads.

    ``rows_N``: slots. ``write_NT``: positions to write, the scratch column for padding.
    ``position_NT``: positions of the tokens, 0 for padding. ``key_L``: 0 to L - 1. ``block``: neighbouring
    slots that hold all rows, others in between included, where keys are not gathered. ``line``: the positions
    of a lone row.
    """

    rows_N: torch.Tensor
    write_NT: torch.Tensor
    position_NT: torch.Tensor
    key_L: torch.Tensor
    block: slice | None
    line: slice | None
    _moved: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        head_N3: torch.Tensor,
        ids_NT: torch.Tensor,
        key_L: torch.Tensor,
        *,
        capacity: int,
        block: Place | None = None,
        line: Place | None = None,
        breadth: int | None = None,
    ) -> Plan:
        """Lay out unpacked numbers.

        Args:
            head_N3: of ``unpack``.
            ids_NT: likewise.
            key_L: 0 to L - 1, on the device.
            capacity: positions of a slot.
            block: the first slot, where keys are not gathered.
            line: the first position, where there is only one row.
            breadth: how many slots the block has; by default as many as there are rows.
        """
        rows, tokens = ids_NT.shape
        column_T = torch.arange(tokens, device=ids_NT.device)
        real_NT = column_T < head_N3[:, 2:]
        position_NT = head_N3[:, 1:2] + column_T
        return cls(
            rows_N=head_N3[:, 0],
            write_NT=position_NT.where(real_NT, capacity),
            position_NT=position_NT.where(real_NT, 0),
            key_L=key_L,
            block=None if block is None else slice(block, block + (breadth or rows)),
            line=None if line is None else slice(line, line + tokens),
        )

    @property
    def span(self) -> int:
        """L."""
        return self.key_L.shape[0]

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """``rows_N`` and ``write_NT`` on a layer's device: a model may be spread over several."""
        if device == self.rows_N.device:
            return self.rows_N, self.write_NT
        if device not in self._moved:
            self._moved[device] = (self.rows_N.to(device), self.write_NT.to(device))
        return self._moved[device]


def masks(plan: Plan, window: int | None, chunk: int | None = None) -> torch.Tensor:
    """Who may see whom, ``[N, 1, T, L]``, True where a token attends.

    Args:
        window: of sliding attention: a token sees that many positions, itself included.
        chunk: of chunked attention: a token sees its own chunk up to itself.
    """
    key_L, position_NT1 = plan.key_L, plan.position_NT[:, :, None]
    mask_NTL = key_L <= position_NT1
    if window is not None:
        mask_NTL &= key_L > position_NT1 - window
    if chunk is not None:
        mask_NTL &= key_L // chunk == position_NT1 // chunk
    return mask_NTL[:, None]
