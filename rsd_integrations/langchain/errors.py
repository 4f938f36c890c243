"""This package's errors as LangChain's, too: its middleware knows by them what a retry could mend, and
retries whatever is no ``ModelError`` of LangChain.

Each is caught as the error it is here and as the one it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions

from rsd_integrations import errors

__all__ = [
    "BackendError",
    "ConfigError",
    "DeviceMemoryError",
    "EngineClosedError",
    "ModelError",
    "PromptError",
    "PromptLengthError",
    "RefusedError",
    "RewardError",
    "TimedOutError",
    "UnreachableError",
    "langchain_errors",
]


class ConfigError(errors.ConfigError, exceptions.ModelInvalidRequestError):
    """A call parameter is wrong."""


class PromptError(errors.PromptError, exceptions.ModelInvalidRequestError):
    """A prompt is empty or malformed."""


class PromptLengthError(errors.PromptLengthError, exceptions.ContextOverflowError):
    """A prompt and the tokens that its answer may have do not fit the models' windows."""


class TimedOutError(errors.TimedOutError, exceptions.ModelTimeoutError):
    """A call took longer than its ``timeout``."""


class ModelError(errors.ModelError, exceptions.ModelError):
    """A model or tokenizer cannot play its role. Loading it again would not help."""


class EngineClosedError(errors.EngineClosedError, exceptions.ModelError):
    """The pipeline was closed, and stays so."""


class RewardError(errors.RewardError, exceptions.ModelError):
    """A reward was none. A function that asks a service for it may succeed the next time."""

    is_retryable = True


class BackendError(errors.BackendError, exceptions.ModelAPIError):
    """A model, a device or a server failed while it worked on a request."""


class DeviceMemoryError(errors.DeviceMemoryError, exceptions.ModelAPIError):
    """The device ran out of memory; beside fewer requests it may not."""


class UnreachableError(errors.UnreachableError, exceptions.ModelConnectionError):
    """No server was there, or none could take the question."""


class RefusedError(errors.RefusedError, exceptions.ModelInvalidRequestError):
    """A server will not do what it was asked for."""


_KINDS: dict[type[errors.RSDError], type[errors.RSDError]] = {
    getattr(errors, name): globals()[name] for name in __all__ if hasattr(errors, name)
}


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raise errors of this package as the classes above, where there is one for them."""
    try:
        yield
    except errors.RSDError as error:
        kind = _KINDS.get(type(error))
        if kind is None:
            raise
        made = kind(error.message, hint=error.hint).with_traceback(error.__traceback__)
        made.__dict__.update(error.__dict__)  # With its notes.
        try:
            raise made from error.__cause__
        finally:
            del made  # Its traceback holds this frame, and a model object with its pipeline.
