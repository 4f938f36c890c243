"""Checks of names and values that are made before anything is loaded or asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType
from typing import Any, get_args

from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError
from rsd_integrations.prm import PRMFormat, prm_format_names

_UNSET = frozenset(
    name for name, field in RSDConfig.model_fields.items() if NoneType not in get_args(field.annotation)
)
"""Settings that None is no value of."""
_DTYPES = ("auto", "float16", "bfloat16", "float32", "float64", "half", "float", "double")


def without_nones(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without settings that are None where None is no value: users of frameworks mean "not set" by that."""
    return {name: value for name, value in given.items() if value is not None or name not in _UNSET}


def check_on_step(value: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Refuse what is no function, or would have to be awaited: nothing awaits it.

    Raises:
        ConfigError: it is either.
    """
    if value is not None and (not callable(value) or _is_async(value)):
        raise ConfigError(
            f"on_step must be a plain function that takes a Step, not {value!r}.",
            hint="Schedule a task in it if it has to await something.",
        )
    return value


def check_dtype(dtype: Any, where: str) -> None:
    """Refuse what no model has its weights in, without importing torch.

    Args:
        where: whose dtype it is, for the message.

    Raises:
        ConfigError: it is neither "auto" nor a floating-point dtype of torch or its name.
    """
    of_torch = (type(dtype).__module__, type(dtype).__name__) == ("torch", "dtype")
    name = str(dtype).removeprefix("torch.") if of_torch else dtype
    if not isinstance(name, str) or name not in _DTYPES:
        raise ConfigError(
            f"{where}dtype={dtype!r} is no dtype.", hint='Use "auto", "float32", "bfloat16" or "float16".'
        )


def check_prm_format(form: Any) -> None:
    """Refuse a format that is not registered. What a callable makes is known only when it is called.

    Raises:
        ConfigError: there is no such format.
    """
    known = prm_format_names()
    if form in ("auto", *known) if isinstance(form, str) else isinstance(form, PRMFormat) or callable(form):
        return
    raise ConfigError(
        f"there is no PRM format {form!r}.",
        hint=f"Use 'auto', one of {', '.join(map(repr, known))}, or a PRMFormat; register your own first.",
    )


def _is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine; objects whose class says so count too."""
    while isinstance(function, partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
