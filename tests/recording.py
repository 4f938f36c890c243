"""A recorder for the CPU with a CUDA graph's rules: what Python decides is decided once, while recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from rsd_integrations.backends.torch.forwards import Compute
from rsd_integrations.backends.torch.recording import Recorded

__all__ = ["Recordings", "Tape"]

_ATEN = torch.ops.aten
_OF_THE_HOST = (_ATEN.detach_.default, _ATEN.lift_fresh.default, _ATEN.lift_fresh_copy.default)
"""What is seen of torch.tensor, whose numbers would be part of the recording."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor that an earlier operation of the recording makes."""

    number: int


class Tape(TorchDispatchMode):  # type: ignore[misc]
    """The operations of a recording. They are done meanwhile, which is much cheaper than to trace them, and
    what they wrote is put back at the end: as if nothing had been computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, list[Any], Any, list[int]]] = []
        self._made: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, spec = tree_flatten((args, kwargs))
        self._check(func, args)
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.is_write:
                self._keep(tree_leaves(given))
        self._keep([given for name, given in kwargs.items() if name == "out"])
        numbers = [self._numbers.get(id(leaf)) for leaf in leaves]
        given = [leaf if n is None else _Made(n) for leaf, n in zip(leaves, numbers, strict=True)]
        made = func(*args, **kwargs)
        if not all(isinstance(one, torch.Tensor) for one in tree_leaves(made)):
            raise RuntimeError(f"{func} gives the host a number")
        self._done.append((func, given, spec, [self._number(one) for one in tree_leaves(made)]))
        return made

    def _check(self, func: Any, args: Any) -> None:
        picks = func in (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)
        if picks:
            reads = any(one is not None and one.dtype == torch.bool for one in args[1])
        else:
            reads = torch.Tag.dynamic_output_shape in func.tags
        if reads or func in _OF_THE_HOST:
            raise RuntimeError(f"{func} cannot be recorded")

    def _keep(self, tensors: list[torch.Tensor]) -> None:
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage.data_ptr() not in self._before:
                # As a tensor: a storage is cloned on the CPU alone.
                whole = torch.empty(0, dtype=torch.uint8, device=storage.device)
                whole.set_(storage, 0, (storage.nbytes(),))
                self._before[storage.data_ptr()] = (whole, whole.clone())

    def _number(self, made: Any) -> int:
        """Its number; it is kept, so that no other tensor has its id."""
        if id(made) not in self._numbers:
            self._numbers[id(made)] = len(self._made)
            self._made.append(made)
        return self._numbers[id(made)]

    def wind_back(self) -> None:
        for whole, before in self._before.values():
            whole.copy_(before)
        count, self._made, self._before = len(self._made), [], {}
        self._values: list[Any] = [None] * count

    def play(self) -> None:
        values = self._values
        for func, given, spec, numbers in self._done:
            leaves = [values[one.number] if type(one) is _Made else one for one in given]
            args, kwargs = tree_unflatten(leaves, spec)
            for number, made in zip(numbers, tree_leaves(func(*args, **kwargs)), strict=True):
                values[number] = made


class _Closed(TorchFunctionMode):
    """Nor does the host look at memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__):
            raise RuntimeError(f"{func} cannot be recorded")
        return func(*args, **(kwargs or {}))


class Recordings:
    """Records work as a list of tensor operations; counts what it records and replays."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        with _Closed(), tape:
            work()
        tape.wind_back()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.play()

        return replay

    def launcher(self, slots: int, capacity: int) -> Callable[[Compute], Recorded]:
        """For a ``SlotRunner`` of this size."""
        return lambda compute: Recorded(compute, self, slots=slots, capacity=capacity)
