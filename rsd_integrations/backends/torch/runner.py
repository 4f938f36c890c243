"""Runs a model over slots: batches ragged feeds, keeps a failure to its own row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from rsd_integrations.backends.shared.describe import ATTENDING, AttentionKinds, attention_kinds
from rsd_integrations.backends.torch.attention import SlotAttention
from rsd_integrations.backends.torch.bursts import MOST_WORK, Burst
from rsd_integrations.backends.torch.failures import Embedded, failure
from rsd_integrations.backends.torch.flight import Fetch, Flight
from rsd_integrations.backends.torch.forwards import Compute, Launcher, Pair
from rsd_integrations.backends.torch.plan import (
    MOST_TOGETHER,
    Place,
    Plan,
    Shape,
    SlotFeed,
    cheapest,
    grouped,
    launch_tokens,
    masks,
    pack,
    unpack,
)
from rsd_integrations.backends.torch.pool import Seen, SlotPool
from rsd_integrations.backends.torch.products import OneDNN
from rsd_integrations.backends.torch.readout import Read, Readout
from rsd_integrations.backends.torch.recording import LOCK, NotRecordable, Recorded
from rsd_integrations.backends.torch.slots import SlotCache
from rsd_integrations.backends.torch.threads import cpu_threads
from rsd_integrations.backends.torch.traced import Call, Traced
from rsd_integrations.backends.torch.weights import Weights
from rsd_integrations.errors import DeviceMemoryError

_IDLE = 0.5
"""Most idle rows for each real one that a CPU rather computes than gather keys or attend in many runs."""

_GATHERED = 1 << 20
"""Bytes of a layer's keys and values that a CPU gathers as fast as it attends to them in runs."""

Masks = torch.Tensor | dict[str, torch.Tensor | None] | None
"""One for all layers, or one for each kind of layer; None where nothing is masked."""


class SlotRunner:
    """One model with its slot cache.

    Args:
        config: the model's (text) config.
        readout: calls the model.
        device: where the input ids go.
        dtype: of the model's computations.
        slots: requests at once.
        capacity: positions of a slot.
        parameters: how many a token passes through; tells small forwards from large ones.
        launcher: makes a launcher of the model's forward; None: forwards are called.
        model: whose weights these forwards compute with; None where nobody changes them.
        traces: whether forwards that are called often may be traced; needs the model.
        attention: as of ``attention_kinds``, which is the default.
        prefix_caching: whether requests that begin like an earlier one start behind what is cached of it.
        embedded: the tokens that may be fed; by default any.
    """

    _cache_class: type[SlotCache] = SlotCache

    def __init__(
        self,
        config: Any,
        readout: Readout,
        *,
        device: torch.device,
        dtype: torch.dtype,
        slots: int,
        capacity: int,
        parameters: int = 0,
        launcher: Callable[[Compute], Launcher] | None = None,
        model: torch.nn.Module | None = None,
        traces: bool = False,
        prefix_caching: bool = False,
        attention: AttentionKinds | None = None,
        embedded: Embedded | None = None,
    ) -> None:
        self._attend = SlotAttention(config, device, dtype)
        self._readout = readout
        self._embedded = embedded or Embedded("", None)
        self._parameters = parameters
        self._device = device
        kinds = attention or attention_kinds(config)
        self.attention = {kind: sizes for kind, sizes in kinds.items() if kind in ATTENDING}
        self._unmasked = dict.fromkeys(kinds.keys() - self.attention.keys())
        """Kinds of layers that do not attend, for which nothing is masked."""
        self._dtype = dtype
        self._key_L = torch.arange(capacity, device=device)
        self.cache = self._cache_class(config, slots, capacity)
        self.pool = SlotPool(self.cache, keeps=prefix_caching)
        self.capacity = capacity
        self._make_launcher = launcher
        self._weights = None if model is None else Weights(model)
        self._traces = model if traces and device.type == "cpu" else None
        self._start()
        self._onednn = OneDNN(self._compute, device, dtype, parameters)
        self._flight: Flight | None = None
        self.most_gathered = _GATHERED if device.type == "cpu" and self._attend.takes_runs else math.inf
        """Bytes of a layer up to which keys in scattered slots are gathered; beyond, they are attended to in
        runs of neighbours. A GPU always gathers: many small launches would take longer than the copies."""
        # Which feeds share a forward. Compiled on a CPU, those of one token are fast: they stay apart.
        self._grouped: Callable[[Sequence[SlotFeed]], list[list[int]]] = partial(
            grouped, merged=MOST_TOGETHER if device.type == "cuda" else 0
        )
        if device.type == "cpu" and launcher is None:
            self._grouped = partial(cheapest, launch=launch_tokens(parameters))
        self.runs_ahead = True
        """Whether forwards may be launched before their tokens are known, where that is possible."""

    def _start(self) -> None:
        """Make the launcher and the traces, anew if the weights were replaced."""
        self._launcher = None if self._make_launcher is None else self._make_launcher(self._compute)
        self._call: Call = self._compute
        if self._traces is not None:
            self._call = Traced(self._compute, self._traces, self.cache, self._key_L)

    def claim(self, tokens: Sequence[int] = (), seen: Seen | None = None) -> tuple[int, int]:
        """A slot, as of ``SlotPool.claim``. What was read with weights that changed since is forgotten."""
        changed, replaced = (False, False) if self._weights is None else self._weights.look()
        if changed:
            self._flight = None
            self.pool.forget()
        if replaced:
            self._start()
        return self.pool.claim(tokens, seen)

    @property
    def launches(self) -> bool:
        """Whether some forwards are compiled or recorded."""
        return self._launcher is not None

    def call_only(self) -> None:
        """From now on call the model for every forward."""
        self._launcher, self._make_launcher, self._flight = None, None, None

    def close(self) -> None:
        """Give the memory back at once: runner, launcher, traces and cache refer to each other."""
        # Without LOCK: its holder may wait for this, as the garbage collector closes what nobody holds.
        self.cache.close()
        vars(self).clear()

    def release(self, slot: int, seen: Sequence[int] = ()) -> None:
        """Give a slot back to the pool.

        Args:
            slot: one that was claimed.
            seen: tokens that were read there.
        """
        self._flight = None  # If followed, it would write to the slot once more.
        self.pool.release(slot, seen)

    def bursts(self, rows: int) -> bool:
        """Whether a burst may write several tokens for so many rows: not where each takes much longer than
        the Python in between, for all other requests wait meanwhile.
        """
        return isinstance(self._call, Traced) and 0 < self._parameters * rows < MOST_WORK

    @property
    def exact(self) -> bool:
        """Whether it computes so precisely (float32, float64) that rounding makes little difference."""
        quantized = self._weights is not None and self._weights.quantized
        return self._dtype in (torch.float32, torch.float64) and not quantized

    @torch.inference_mode()
    def plain(self, tokens: Sequence[int]) -> torch.Tensor:
        """The output at the last token by the model's ordinary forward, no slots involved."""
        inputs = {"input_ids": torch.tensor([list(tokens)], device=self._device), "use_cache": False}
        return self._readout(inputs, torch.tensor([len(tokens) - 1], device=self._device))[0][0, 0].float()

    @torch.inference_mode()
    def run(
        self, feeds: Sequence[SlotFeed], *, ahead: bool = False, burst: Burst | None = None
    ) -> list[Read | Exception]:
        """The wanted outputs of each feed, or what failed it. Feeds of any length.

        Where memory does not suffice for all outputs of a feed, only the first of them is given.

        Args:
            feeds: what to run.
            ahead: the likeliest token will be fed next for each of them, unless a step ends there. A forward
                of these tokens is launched before the host has seen which they are.
            burst: likewise, for several tokens; on a CPU one launch of a small model writes them all.
        """
        if not feeds:
            return []
        ahead = ahead and self.runs_ahead
        results = self._landed(feeds, ahead)
        rest = [index for index in range(len(feeds)) if index not in results]
        groups = self._grouped([feeds[index] for index in rest])
        ahead = ahead and not results and len(groups) == 1
        for group in ([rest[place] for place in group] for group in groups):
            made = self._isolated([feeds[index] for index in group], ahead, burst)
            results |= zip(group, made, strict=True)
        for index, result in results.items():
            if isinstance(result, Exception) or not result.sound:
                self.pool.spoil(feeds[index].slot)
        return [results[index] for index in range(len(feeds))]

    def _landed(self, feeds: Sequence[SlotFeed], ahead: bool) -> dict[int, Read | Exception]:
        """By index, the outputs of those that a forward has fed ahead of the host. Where it has fed all of
        them, another may follow it.
        """
        flight, self._flight = self._flight, None
        carried = {} if flight is None else flight.carries(feeds)
        if flight is None or not carried:
            return {}
        if ahead and len(carried) == len(feeds):
            self._flight = self._follow(flight)
        outputs = flight.outputs(followed=self._flight is not None)
        return {index: outputs[place] for index, place in carried.items()}

    def _isolated(self, feeds: list[SlotFeed], ahead: bool, burst: Burst | None) -> list[Read | Exception]:
        """Run one batch; if it fails, run its rows alone so that only the culprit fails."""
        try:
            return list(self.forward(feeds, ahead=ahead, burst=burst))
        except Exception as error:
            failed = failure(error)
        # After the except block, so that the failed forward's tensors are gone.
        if isinstance(failed, DeviceMemoryError) and torch.cuda.is_available():
            with LOCK:
                torch.cuda.empty_cache()
        if len(feeds) > 1:
            return [self._alone(feed) for feed in feeds]
        return [self._in_halves(feeds[0]) if isinstance(failed, DeviceMemoryError) else failed]

    def _alone(self, feed: SlotFeed) -> Read | Exception:
        """A row of a batch that failed, by calling the model: replays of one shape share their outputs."""
        try:
            self._embedded.check([feed])
            return self._called([feed])[0]
        except Exception as error:
            failed = failure(error)
        return self._in_halves(feed) if isinstance(failed, DeviceMemoryError) else failed

    def _in_halves(self, feed: SlotFeed) -> Read | Exception:
        """A row that ran out of memory, again in two halves and without its guesses."""
        read = feed.reads[0]
        tokens = feed.tokens[: len(feed.tokens) - feed.more]
        middle = len(tokens) // 2
        parts = [
            SlotFeed(feed.slot, feed.start, tokens[:middle], min(read, middle - 1)),
            SlotFeed(feed.slot, feed.start + middle, tokens[middle:], max(read - middle, 0)),
        ]
        try:
            outputs = [self._called([part])[0] for part in parts if part.tokens]
        except Exception as error:
            return failure(error)
        return outputs[0] if read < middle else outputs[-1]

    def forward(
        self, feeds: Sequence[SlotFeed], *, ahead: bool = False, burst: Burst | None = None
    ) -> list[Read]:
        """One forward of a batch, or a burst; perhaps the next one is launched too, but not waited for."""
        self._embedded.check(feeds)
        shape = self._shape(feeds)
        if shape is None:
            return self._called(feeds, burst)
        numbers, rows = pack(feeds, shape)
        self._fill(feeds)
        try:
            kept, fetched = self._launched(feeds, shape, numbers)
        except NotRecordable as problem:
            problem.warn()
            self.call_only()
            return self._called(feeds)
        flight = Flight(kept, Fetch(fetched), shape, feeds, rows)
        if ahead:
            self._flight = self._follow(flight)
        return flight.outputs(followed=self._flight is not None)

    def _shape(self, feeds: Sequence[SlotFeed]) -> Shape | None:
        """The shape in which the launcher runs these feeds; None where they are called."""
        return None if self._launcher is None else self._launcher.shape(feeds)

    def _launched(self, feeds: Sequence[SlotFeed], shape: Shape, numbers: torch.Tensor) -> Pair:
        """What the launcher makes of these feeds, packed."""
        assert self._launcher is not None
        with self._threads(shape), self._attend.over():
            return self._launcher(shape, numbers, self._key_L[: shape.span])

    def _follow(self, flight: Flight) -> Flight | None:
        """Launch the forward behind one that is on its way, where that is possible."""
        feeds = flight.next_feeds()
        if feeds is None or not isinstance(self._launcher, Recorded):
            return None
        try:
            with self._threads(flight.shape):
                made = self._launcher.again(flight.shape)
            if made is None:
                return None
            fetch = Fetch(made[1])
        except Exception:
            # The forward that it follows must not fail with it.
            return None
        self._fill(feeds)
        return Flight(made[0], fetch, flight.shape, feeds, flight.rows, ahead=True)

    def _called(self, feeds: Sequence[SlotFeed], burst: Burst | None = None) -> list[Read]:
        """One forward by calling the model, or a burst if one is given and possible."""
        shape = Shape.exact(feeds, idle=_IDLE if self._device.type == "cpu" else 0.0)
        numbers, rows = pack(feeds, shape)
        columns = sorted({column for feed in feeds for column in feed.reads}) if shape.tokens > 1 else None
        column_C = None if columns is None else torch.tensor(columns, device=self._device)
        head_N3, ids_NT = unpack(numbers.to(self._device), shape)
        self._fill(feeds)  # Before it runs: a forward that fails may have written.
        where = {"block": shape.block, "line": shape.line}
        if runs := self._runs(shape):
            where = {"block": runs[0][0], "breadth": sum(runs[-1]) - runs[0][0]}
        call = self._onednn if self._onednn.takes(shape.rows * shape.tokens) else self._call
        with self._threads(shape), self._attend.over(runs):
            made = None
            if burst is not None and shape.tokens == 1 and not runs and isinstance(self._call, Traced):
                made = self._call.burst(head_N3, ids_NT, burst, **where)
            if made is None:
                made = call(head_N3, ids_NT, self._key_L[: shape.span], columns=column_C, **where)
        kept, fetched = made
        own = fetched.shape[1] - 1 if columns is None else 0
        self._fill(feeds, own)
        return Flight(kept, Fetch(fetched), shape, feeds, rows, columns, own).outputs()

    def _runs(self, shape: Shape) -> tuple[tuple[int, int], ...]:
        """The runs of slots to attend to where they lie; none where keys are one block, or are gathered."""
        if shape.block is not None or not self._attend.takes_runs:
            return ()
        return shape.runs if self.cache.bytes_read(shape) > self.most_gathered else ()

    def _threads(self, shape: Shape) -> AbstractContextManager[None]:
        return cpu_threads(self._device, self._parameters * shape.rows * shape.tokens)

    def _fill(self, feeds: Sequence[SlotFeed], own: int = 0) -> None:
        for feed in feeds:
            self.pool.fill(feed.slot, feed.start + len(feed.tokens) + own)

    def _compute(
        self,
        head_N3: torch.Tensor,
        ids_NT: torch.Tensor,
        key_L: torch.Tensor,
        *,
        block: Place | None = None,
        line: Place | None = None,
        breadth: int | None = None,
        columns: torch.Tensor | None = None,
    ) -> Pair:
        """A ``Compute`` and a ``Call``: what it does never depends on the numbers that the tensors hold.

        Args:
            head_N3: this and the other arguments as of a ``Call``.
        """
        plan = Plan.of(
            head_N3, ids_NT, key_L, capacity=self.capacity, block=block, line=line, breadth=breadth
        )
        self.cache.plan = plan
        inputs = {
            "input_ids": ids_NT,
            "position_ids": plan.position_NT,
            "attention_mask": self._masks(plan),
            "cache": self.cache,
            "use_cache": True,
        }
        return self._readout(inputs, columns)

    def _masks(self, plan: Plan) -> Masks:
        """One mask, or one for each kind of layer where several kinds attend; None where none does."""
        made: dict[str, torch.Tensor | None] = {
            kind: self._as_model_wants(masks(plan, window, chunk))
            for kind, (window, chunk) in self.attention.items()
        }
        return made | self._unmasked if len(made) > 1 else next(iter(made.values()), None)

    def _as_model_wants(self, mask: torch.Tensor) -> torch.Tensor:
        if not self._attend.adds_mask:
            return mask
        # Eager attention adds its mask to the scores; a boolean one would add 1 where it may look.
        return torch.zeros(mask.shape, dtype=self._dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(self._dtype).min
        )
