"""Checks of arguments that are the same for all models, and of the rewards that they get."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError
from rsd_integrations.naming import check_known

_OF_CALLS = (*RSDConfig.model_fields, "config", "timeout", "output")
"""What a pipeline takes beside the prompt."""


_ROUNDING = 1e-6
"""How far rounding may put a reward beyond a bound: a cosine similarity in float32 may be 1.0000002."""


def as_reward(value: Any) -> float | None:
    """A number from 0 to 1, of any type that becomes a float (NumPy's, torch's); None if it is none.

    A number beyond a bound by no more than rounding is the bound.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    text = isinstance(value, str | bytes)
    if text or not -_ROUNDING <= number <= 1.0 + _ROUNDING:
        return None
    return min(max(number, 0.0), 1.0)


def call_config(config: Any, fields: Mapping[str, Any]) -> RSDConfig:
    """A config with the fields of one call in place of its own; None is the usual one.

    Raises:
        ConfigError: it is none, or a field is unknown or out of bounds.
    """
    if not isinstance(config, RSDConfig | None):
        raise ConfigError(f"config={config!r} is no RSDConfig.", hint="Write config=RSDConfig(...).")
    check_known(fields, _OF_CALLS)
    return (config or RSDConfig()).override(**fields)


def check_timeout(timeout: Any) -> None:
    """Refuse a timeout that is no length of time.

    Raises:
        ConfigError: it is neither None nor a number of seconds above 0.
    """
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (number and timeout > 0):
        raise ConfigError(f"timeout={timeout!r} is no time.", hint="Give seconds above 0, or None.")


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is not a count, or is too small.

    Raises:
        ConfigError: it is no whole number of at least ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} is not valid.", hint=f"Give a whole number from {least} on.")


def check_takes(function: Any, *given: Any, what: str, hint: str) -> None:
    """Refuse a function that does not take what it will be called with.

    Args:
        given: what it will be called with.
        what: what the function is, for the message.
        hint: of the error: what the function is given.

    Raises:
        ConfigError: the function does not take these arguments.
    """
    try:
        signature(function).bind(*given)
    except TypeError as error:
        raise ConfigError(f"{what} does not take what it is called with: {error}.", hint=hint) from error
    except ValueError:
        pass  # Some builtins do not tell what they take.


def check_choice(name: str, value: Any, *known: Any) -> None:
    """Refuse an option that is not one of those known.

    Raises:
        ConfigError: it is not.
    """
    if not any(value is one for one in known):
        choices = " or ".join(map(repr, known))
        raise ConfigError(f"{name}={value!r} is no choice.", hint=f"Use {choices}.")


def check_rows(config: RSDConfig, max_batch_size: int) -> None:
    """Refuse more candidates than the models' batches have rows.

    Raises:
        ConfigError: there are more.
    """
    if config.rows > max_batch_size:
        raise ConfigError(
            f"draft_candidates={config.draft_candidates} do not fit "
            f"max_batch_size={max_batch_size}, the rows of the models' batches.",
            hint="Load the pipeline with a larger max_batch_size, or ask for fewer candidates.",
        )
