"""Thresholds as a command line names them."""

from __future__ import annotations

from rsd_integrations.errors import ConfigError

__all__ = ["read_sweep"]


def read_sweep(thresholds: str) -> list[float]:
    """The thresholds as numbers.

    Raises:
        ConfigError: one is no number in (0, 1].
    """
    try:
        sweep = [float(part) for part in thresholds.split(",") if part.strip()]
    except ValueError:
        sweep = [-1.0]
    if not all(0.0 < threshold <= 1.0 for threshold in sweep):
        raise ConfigError(
            f"--thresholds {thresholds!r} must be numbers above 0 and up to 1.",
            hint="Separate them by commas; 0 (draft only) and above 1 (target only) are measured anyway.",
        )
    return sweep
