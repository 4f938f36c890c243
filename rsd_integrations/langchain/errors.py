"""This package's errors as LangChain's, too: its middleware knows by them what a retry could mend, and
retries whatever is no ``ModelError`` of LangChain.

Each is caught as the error it is here and as the one it is there.
"""

from __future__ import annotations

from langchain_core import exceptions

from rsd_integrations import errors
from rsd_integrations.raising import Converting

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
    """A reward was wrong, or none came. A function that asks a service for it may succeed the next time."""

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


def langchain_errors() -> Converting[errors.RSDError]:
    """Raise errors of this package as the classes above, where there is one for them."""
    return Converting(errors.RSDError, _of_langchain)


def _of_langchain(error: errors.RSDError) -> errors.RSDError | None:
    kind = _KINDS.get(type(error))
    if kind is None:
        return None
    made = kind(error.message, hint=error.hint).with_traceback(error.__traceback__)
    made.__dict__.update(error.__dict__)  # With its notes.
    made.__cause__ = error.__cause__
    return made
