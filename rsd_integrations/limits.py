"""What may be asked for, whichever models answer it."""

from __future__ import annotations

from typing import Any

from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError

__all__ = ["check_choice", "check_count", "check_rows", "check_timeout"]


def check_timeout(timeout: Any) -> None:
    """Refuse what is no time.

    Raises:
        ConfigError: it is neither None nor a number of seconds above 0.
    """
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (number and timeout > 0):
        raise ConfigError(f"timeout={timeout!r} is no time.", hint="Give seconds above 0, or None.")


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what leaves no room.

    Raises:
        ConfigError: it is no whole number from ``least`` on.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} leaves no room.", hint=f"Give a whole number from {least} on.")


def check_choice(name: str, value: Any, *known: Any) -> None:
    """Refuse an option that is none of the known.

    Raises:
        ConfigError: it is not.
    """
    if not any(value is one for one in known):
        choices = " or ".join(map(repr, known))
        raise ConfigError(f"{name}={value!r} is no choice.", hint=f"Use {choices}.")


def check_rows(config: RSDConfig, max_batch_size: int) -> None:
    """Refuse more candidates than the models' batches have rows.

    Raises:
        ConfigError: there are.
    """
    if config.rows > max_batch_size:
        raise ConfigError(
            f"draft_candidates={config.draft_candidates} do not fit "
            f"max_batch_size={max_batch_size}, the rows of the models' batches.",
            hint="Load the pipeline with a larger max_batch_size, or ask for fewer candidates.",
        )
