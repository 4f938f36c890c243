"""How a forward is launched: called, compiled (here), or recorded and replayed (``recording.py``).

On a large GPU launching a layer's kernels takes longer than running them, so that a small model takes as long
as a large one, and RSD does not pay. A recorded forward (a CUDA graph) is one launch. Compiling it as well
fuses the many small kernels between two matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from types import FunctionType, MethodType
from typing import Any, Protocol

import torch

from rsd_integrations.backends.shared.unreadable import first_line
from rsd_integrations.backends.torch.plan import Shape, SlotFeed, unpack
from rsd_integrations.errors import ConfigError

Pair = tuple[torch.Tensor, torch.Tensor]
"""What stays on the device and what the host wants, each ``[N, C, ...]``."""


_ROUNDING = 1e-3
"""Largest relative difference that counts as rounding; nearly always there is none."""


class Compute(Protocol):
    """One forward of a model over its slots, read in all columns, as tensors to tensors."""

    def __call__(
        self, head_N3: torch.Tensor, ids_NT: torch.Tensor, key_L: torch.Tensor, *, block: int | None
    ) -> Pair:
        """Arguments as of ``Plan.of``."""
        ...


class Launcher(Protocol):
    """A way to run forwards other than to call them."""

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
    """Forwards through ``torch.compile``, which takes some seconds for each kind.

    The kinds are one token of one request, one token of several, several tokens of one, each in the first
    slots or in others; all other forwards, prompts among them, are called.

    Args:
        compute: what to compile.
    """

    MOST_TOKENS = 64

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._made: dict[tuple[bool, bool, bool], Compute] = {}

    def shape(self, feeds: Sequence[SlotFeed]) -> Shape | None:
        """Exact, as sizes are variables of compiled code. Where a row begins is not: no ``line``."""
        exact = Shape.exact(feeds)
        if not self._takes(exact.rows, exact.tokens):
            return None
        return Shape(exact.rows, exact.tokens, exact.span, block=0 if exact.block == 0 else None)

    def _takes(self, rows: int, tokens: int) -> bool:
        return tokens == 1 or (rows == 1 and tokens <= self.MOST_TOKENS)

    def __call__(self, shape: Shape, numbers: torch.Tensor, key_L: torch.Tensor) -> Pair:
        """Run; compile first where this kind is new."""
        head_N3, ids_NT = unpack(numbers.to(key_L.device), shape)
        return self.compute(head_N3, ids_NT, key_L, block=shape.block)

    def compute(
        self, head_N3: torch.Tensor, ids_NT: torch.Tensor, key_L: torch.Tensor, *, block: int | None
    ) -> Pair:
        """The ``Compute`` itself, compiled if it is of one of these kinds.

        Raises:
            ConfigError: it cannot be compiled.
        """
        rows, tokens = ids_NT.shape
        if not self._takes(rows, tokens):
            return self._compute(head_N3, ids_NT, key_L, block=block)
        kind = (rows == 1, tokens == 1, block is None)
        if kind in self._made:
            return self._made[kind](head_N3, ids_NT, key_L, block=block)
        compiled = torch.compile(_copy(self._compute), fullgraph=True, dynamic=True)
        try:
            made = compiled(head_N3, ids_NT, key_L, block=block)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ConfigError(
                f"compile=True: torch.compile failed: {first_line(error)}.",
                hint="It needs torch 2.7 or newer, a C++ compiler, on a GPU Triton too, and a model without "
                "data-dependent branches. Without compile=True all works, slower.",
            ) from error
        self._made[kind] = compiled
        return made


_NUMBERS = count()


def _copy(compute: Any) -> Compute:
    """The same method with its own code object: ``torch.compile`` limits compilations of each."""
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


def alike(made: Pair, called: Pair) -> bool:
    """Whether two are equal up to rounding, with what is not finite at the same places."""
    one, other = made[0], called[0]
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bound = _ROUNDING * float(other.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(one, other, rtol=0.0, atol=bound, equal_nan=True)
