"""How a forward is launched: called, compiled, or recorded once for each shape and replayed.

On a large GPU launching a layer's kernels takes longer than running them, so that a small model costs as
much as a large one, and RSD loses. A recorded forward (a CUDA graph) is one launch. Compiling besides
fuses the many small kernels between two matrix products.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from types import FunctionType, MethodType
from typing import Any, Protocol

import torch

from rsd_integrations.backends.torch.plan import Shape, SlotFeed, unpack
from rsd_integrations.backends.torch.sources import first_line
from rsd_integrations.errors import ConfigError

__all__ = [
    "Compiled",
    "Compute",
    "LaunchOptions",
    "Launcher",
    "NotRecordable",
    "Pair",
    "Recorded",
    "Recorder",
    "recorder_for",
]

Pair = tuple[torch.Tensor, torch.Tensor]
"""What stays on the device and what the host wants, each ``[N, C, ...]``."""


class Compute(Protocol):
    """One forward of a model over its slots, as tensors to tensors."""

    def __call__(
        self,
        head_N3: torch.Tensor,
        ids_NT: torch.Tensor,
        key_L: torch.Tensor,
        *,
        block: int | None = None,
        line: int | None = None,
        columns: Sequence[int] | None = None,
    ) -> Pair:
        """Arguments as of ``Plan.of``; the columns to read, None: all."""
        ...


class Launcher(Protocol):
    """A way to run forwards of all columns."""

    def shape(self, feeds: Sequence[SlotFeed]) -> Shape | None:
        """The shape in which it would run these feeds, None if it would not."""
        ...

    def __call__(self, shape: Shape, numbers: torch.Tensor, key_L: torch.Tensor) -> Pair:
        """Run packed feeds.

        Args:
            shape: one of those it gave.
            numbers: of ``pack``, on the host.
            key_L: 0 to span - 1, on the device.
        """
        ...


class Compiled:
    """Forwards through ``torch.compile``, which takes some seconds for each of three kinds.

    Those are one token of one request, one token of several, several tokens of one; others are not
    compiled, and neither is a prompt.

    Args:
        compute: what to compile.
    """

    MOST_TOKENS = 64

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._made: dict[tuple[bool, bool, bool], Compute] = {}

    def shape(self, feeds: Sequence[SlotFeed]) -> Shape | None:
        """Exact, as sizes are variables of what is compiled; where a row begins is none."""
        exact = Shape.exact(feeds)
        if exact.tokens > 1 and (exact.rows > 1 or exact.tokens > self.MOST_TOKENS):
            return None
        return Shape(exact.rows, exact.tokens, exact.span, block=0 if exact.block == 0 else None)

    def __call__(self, shape: Shape, numbers: torch.Tensor, key_L: torch.Tensor) -> Pair:
        """Run, and compile before where this kind is new."""
        head_N3, ids_NT = unpack(numbers.to(key_L.device), shape)
        return self.compute(head_N3, ids_NT, key_L, block=shape.block)

    def compute(
        self,
        head_N3: torch.Tensor,
        ids_NT: torch.Tensor,
        key_L: torch.Tensor,
        *,
        block: int | None = None,
        line: int | None = None,
        columns: Sequence[int] | None = None,
    ) -> Pair:
        """The compiled ``Compute``."""
        rows, tokens = ids_NT.shape
        kind = (rows == 1, tokens == 1, block is None)
        if kind in self._made:
            return self._made[kind](head_N3, ids_NT, key_L, block=block)
        compiled = torch.compile(_copy(self._compute), fullgraph=True, dynamic=True)
        try:
            made = compiled(head_N3, ids_NT, key_L, block=block)
        except Exception as error:
            raise ConfigError(
                f"compile=True: torch.compile failed: {first_line(error)}.",
                hint="It needs a C++ compiler, on a GPU Triton too, and a model without data-dependent "
                "branches. Without compile=True all works, slower.",
            ) from error
        self._made[kind] = compiled
        return made


def _copy(compute: Any) -> Compute:
    """The same method with code of its own: ``torch.compile`` limits what it makes of one piece of code."""
    function = compute.__func__
    copy = FunctionType(
        function.__code__.replace(co_name=f"{function.__name__}_{next(_NUMBERS)}"),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    made: Compute = MethodType(copy, compute.__self__)
    return made


_NUMBERS = count()

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs work on fixed tensors and records it; what it returns does the same work again."""


class Recorded:
    """Forwards recorded once for each of few rounded shapes.

    Args:
        compute: what to record; it must not look at the numbers.
        recorder: how.
        slots: of the cache.
        capacity: positions of a slot.
    """

    def __init__(self, compute: Compute, recorder: Recorder, *, slots: int, capacity: int) -> None:
        self._compute = compute
        self._record = recorder
        self._slots, self._capacity = slots, capacity
        self._replays: dict[Shape, Callable[[], None]] = {}
        self._numbers: dict[tuple[int, int], torch.Tensor] = {}
        self._outputs: dict[tuple[int, int], Pair] = {}
        self._broken = False

    def shape(self, feeds: Sequence[SlotFeed]) -> Shape | None:
        """Rounded, as each one takes time and memory."""
        if self._broken:
            return None
        return Shape.rounded(feeds, slots=self._slots, capacity=self._capacity)

    def __call__(self, shape: Shape, numbers: torch.Tensor, key_L: torch.Tensor) -> Pair:
        """Replay, or record what is new. The outputs are overwritten by the next forward."""
        size = (shape.rows, shape.tokens)
        if size not in self._numbers:
            self._numbers[size] = torch.empty_like(numbers, device=key_L.device)
        if shape not in self._replays:
            self._numbers[size].copy_(numbers)
            self._replays[shape] = self._recorded(shape, key_L)
        self._numbers[size].copy_(numbers)
        self._replays[shape]()
        return self._outputs[size]

    def again(self, shape: Shape) -> Pair | None:
        """The forward behind the last one of this shape: of each row's likeliest token. None: it is no LM."""
        size = (shape.rows, shape.tokens)
        if not _goes_on(shape, self._outputs[size][1]):
            return None
        self._replays[shape]()
        return self._outputs[size]

    def _recorded(self, shape: Shape, key_L: torch.Tensor) -> Callable[[], None]:
        size = (shape.rows, shape.tokens)
        head_N3, ids_NT = unpack(self._numbers[size], shape)

        def run() -> Pair:
            return self._compute(head_N3, ids_NT, key_L, block=shape.block)

        try:
            # The first run is of no record: it allocates, and compiles what is to be compiled.
            first = run()
            # All spans write to the same place, which therefore lies outside of any record.
            kept, fetched = self._outputs.setdefault(size, (first[0].clone(), first[1].clone()))

            def write() -> None:
                made = run()
                kept.copy_(made[0])
                fetched.copy_(made[1])
                if _goes_on(shape, fetched):
                    # Replayed once more as it is, it feeds what it found.
                    head_N3[:, 1] += 1
                    ids_NT.copy_(fetched.clamp_min(0))

            return self._record(write)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._broken = True
            raise NotRecordable(first_line(error)) from error


def _goes_on(shape: Shape, fetched: torch.Tensor) -> bool:
    """Whether what a forward fetches are tokens that a next one of its shape could feed."""
    return shape.tokens == 1 and not fetched.is_floating_point()


class NotRecordable(Exception):
    """A forward does something that a recording cannot hold; from now on none is recorded."""

    def warn(self) -> None:
        """Tell the user once: it is right, only slower."""
        warnings.warn(
            f"forwards of this model cannot be recorded as CUDA graphs, so it runs slower: {self}. "
            "Pass cuda_graphs=False to run so without this warning.",
            RuntimeWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class LaunchOptions:
    """How forwards are to be launched, as users say it.

    Args:
        compile: by ``torch.compile``.
        cuda_graphs: recorded; None: where a model is on one CUDA device.
    """

    compile: bool = False
    cuda_graphs: bool | None = None

    @classmethod
    def of(cls, compile: Any, cuda_graphs: Any) -> LaunchOptions:
        """Options as given.

        Raises:
            ConfigError: one is no boolean.
        """
        for name, value, known in (
            ("compile", compile, (True, False)),
            ("cuda_graphs", cuda_graphs, (True, False, None)),
        ):
            if not any(value is one for one in known):
                choices = " or ".join(map(repr, known))
                raise ConfigError(f"{name}={value!r} is no choice.", hint=f"Use {choices}.")
        return cls(compile, cuda_graphs)

    def launcher(
        self, model: torch.nn.Module, *, slots: int, capacity: int
    ) -> Callable[[Compute], Launcher] | None:
        """Makes the launcher of a model's forwards; None where they are simply called.

        Raises:
            ConfigError: CUDA graphs were asked for, and the model is not on one CUDA device.
        """
        devices = {parameter.device for parameter in model.parameters()}
        recorder = None
        if len(devices) == 1 and self.cuda_graphs is not False:
            recorder = recorder_for(next(iter(devices)))
        if self.cuda_graphs and recorder is None:
            places = ", ".join(sorted(map(str, devices)))
            raise ConfigError(
                f"cuda_graphs=True, but the model is on {places}.",
                hint="Put it on one CUDA device, or leave cuda_graphs out.",
            )
        if recorder is not None:
            return lambda compute: Recorded(
                Compiled(compute).compute if self.compile else compute,
                recorder,
                slots=slots,
                capacity=capacity,
            )
        return Compiled if self.compile else None


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on a device: CUDA graphs on a GPU that has them."""
    return _cuda_graphs(device) if device.type == "cuda" else None


def _cuda_graphs(device: torch.device) -> Recorder:
    """A recorder of CUDA graphs, which share their memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device):
            with torch.cuda.stream(stream):
                work()  # Libraries allocate what they need for this stream.
            stream.synchronize()
            # Other threads may use the GPU meanwhile: only this one's calls must be recordable.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        return graph.replay

    return record
