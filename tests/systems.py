"""Other systems than the one that tests run on, as single modules see them."""

from __future__ import annotations

import os
from types import ModuleType, SimpleNamespace

import pytest

__all__ = ["on_system"]


def on_system(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, **environment: str) -> None:
    """A module takes this for a system of that ``os.name``; all others do not."""
    seen = SimpleNamespace(**{**vars(os), "name": name, "environ": environment})
    monkeypatch.setattr(module, "os", seen)
