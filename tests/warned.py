"""Warnings that a test is told, and not those of what another test left behind."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

__all__ = ["own"]


def own(told: Iterable[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    """Without those of resources, which come whenever Python's collector finds them."""
    return [one for one in told if one.category is not ResourceWarning]
