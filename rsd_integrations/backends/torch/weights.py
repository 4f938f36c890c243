"""Notices that somebody changed a model: what was made from its old weights is then no longer valid."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from rsd_integrations.backends.shared.describe import is_quantized

_SWITCHES = ("disable_adapters", "active_adapter", "merged_adapters", "scaling")
"""What switches PEFT's layers. Nothing else tells of a merge, which writes through ``.data``."""


class Weights:
    """A model's parameters, buffers, modules and hooks, and what PEFT's layers are switched to, compared with
    how they were at the last look.

    Not seen are writes that torch does not count (through ``.data`` or NumPy), and other modules that work
    differently because an attribute changed.

    Args:
        model: the one to watch.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._writes: list[tuple[int, int]] = []
        self._read()

    @property
    def quantized(self) -> bool:
        """Whether some of them are quantized. Such layers may round what they are given, too, which makes a
        hair's difference a whole step.
        """
        return is_quantized(self._model)

    def look(self) -> tuple[bool, bool]:
        """Since the last look: whether anything changed, and whether something was replaced or moved."""
        places = self._places[:1]  # Another thread may empty the list meanwhile.
        if not places or places[0].replaced:
            self._read()
            return True, True
        before, self._writes = self._writes, places[0].writes()
        moved = any(old != new for (old, _), (new, _) in zip(before, self._writes, strict=True))
        return before != self._writes, moved

    def _read(self) -> None:
        modules = list(self._model.modules())
        places = _Places(modules)
        self._writes = places.writes()
        self._places = held = [places]

        def forget(_: object) -> None:
            held.clear()

        # The places keep a module's weights alive, and the next module may get the id of one that ended.
        # Tensors tell by their storage: torch swaps none (as in Module.to) that has a weak reference.
        self._ends = [weakref.ref(module, forget) for module in modules]


class _Places:
    """Where everything in a model was. Looking there again takes a fraction of going through its modules.

    Args:
        modules: all of them.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._tables: list[dict[Any, Any]] = [
            table for module in modules for table in (*_contents(module), *_hooks(module))
        ]
        self._entries = sum(map(len, self._tables))
        self._adapting = [weakref.ref(module) for module in modules if hasattr(module, "merged_adapters")]
        self._switched = self._switches()
        # Offloaded tensors are placeholders on "meta" between forwards, and each forward brings them anew.
        found = [
            (table, name, value)
            for table in self._tables
            for name, value in table.items()
            if not (isinstance(value, torch.Tensor) and value.is_meta)
        ]
        self._known = [(table, name, id(value)) for table, name, value in found]
        self._counted = [(table, name) for table, name, value in found if isinstance(value, torch.Tensor)]
        tensors = [table[name] for table, name in self._counted]
        stored = [_storage(tensor) for tensor in tensors]
        self._storages = [storage for storage in stored if storage is not None]
        self._addresses = [storage.cdata for storage in self._storages]
        self._unstored = [
            weakref.ref(tensor) for tensor, storage in zip(tensors, stored, strict=True) if storage is None
        ]

    @property
    def replaced(self) -> bool:
        """Whether something was added, taken away, switched, or another object put in its place."""
        return (
            self._entries != sum(map(len, self._tables))
            or any(id(table.get(name, self)) != known for table, name, known in self._known)
            or any(map(torch.UntypedStorage._expired, self._addresses))
            or any(tensor() is None for tensor in self._unstored)
            or self._switched != self._switches()
        )

    def _switches(self) -> str:
        # As text: the lists and dicts are changed in place.
        return str([[getattr(layer(), name, None) for name in _SWITCHES] for layer in self._adapting])

    def writes(self) -> list[tuple[int, int]]:
        """For each tensor where its numbers are, and how often they were written to."""
        return [_state(table[name]) for table, name in self._counted]


def _contents(module: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, module._modules


def _hooks(module: torch.nn.Module) -> tuple[dict[Any, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks


def _state(tensor: torch.Tensor) -> tuple[int, int]:
    try:
        return tensor.data_ptr(), tensor._version
    except (RuntimeError, NotImplementedError):
        # Quantized tensors may have no data pointer; writes to inference tensors are not counted.
        return 0, 0


def _storage(tensor: torch.Tensor) -> StorageWeakRef | None:
    """What tells a tensor's end without keeping its numbers: the next tensor may get its id and address."""
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError):  # As sparse ones.
        return None
