"""Notices that somebody changed a model: what was made from its old weights is then no longer valid."""

from __future__ import annotations

from typing import Any

import torch

from rsd_integrations.backends.shared.describe import is_quantized

__all__ = ["Weights"]


class Weights:
    """A model's parameters, buffers, modules and hooks, compared with how they were at the last look.

    Not seen are writes that torch does not count (through ``.data`` or NumPy), and modules that work
    differently because an attribute changed (as PEFT's do after ``set_adapter``).

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
        entries = sum(map(len, self._tables))
        if entries != self._entries or any(
            id(table.get(name)) != known for table, name, known in self._places
        ):
            self._read()
            return True, True
        before, self._writes = self._writes, self._written()
        moved = any(old != new for (old, _), (new, _) in zip(before, self._writes, strict=True))
        return before != self._writes, moved

    def _read(self) -> None:
        """Note where everything is: looking there again takes a fraction of going through the modules.

        By ids, so that nothing is kept alive that the model no longer holds.
        """
        modules = list(self._model.modules())
        self._tables: list[dict[Any, Any]] = [
            table for module in modules for table in (*_contents(module), *_hooks(module))
        ]
        self._entries = sum(map(len, self._tables))
        # Offloaded tensors are placeholders on "meta" between forwards, and each forward brings them anew.
        found = [
            (table, name, value)
            for table in self._tables
            for name, value in table.items()
            if not (isinstance(value, torch.Tensor) and value.is_meta)
        ]
        self._places = [(table, name, id(value)) for table, name, value in found]
        self._counted = [(table, name) for table, name, value in found if isinstance(value, torch.Tensor)]
        self._writes = self._written()

    def _written(self) -> list[tuple[int, int]]:
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
