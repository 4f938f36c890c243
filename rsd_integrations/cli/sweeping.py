"""Lists of numbers as a command line names them."""

from __future__ import annotations

from math import inf
from typing import Any

from rsd_integrations.errors import ConfigError

__all__ = ["numbers", "read_sweep"]


def numbers(option: str, given: str, kind: Any, *, hint: str = "Separate them by commas.") -> list[Any]:
    """Numbers above 0, each once; shares (floats) up to 1.

    Raises:
        ConfigError: there is none, or one is no such number.
    """
    most, what = (1.0, "numbers above 0 and up to 1") if kind is float else (inf, "whole numbers above 0")
    try:
        found = list(dict.fromkeys(kind(part) for part in given.split(",") if part.strip()))
    except ValueError:
        found = []
    if not found or not all(0 < number <= most for number in found):
        raise ConfigError(f"{option} {given!r} must be {what}.", hint=hint)
    return found


def read_sweep(thresholds: str) -> list[float]:
    """The thresholds as numbers. An empty list means the PRM's default alone.

    Raises:
        ConfigError: one is no number in (0, 1].
    """
    if not thresholds.strip():
        return []
    hint = "Separate them by commas; 0 (draft only) and above 1 (target only) are measured anyway."
    return numbers("--thresholds", thresholds, float, hint=hint)
