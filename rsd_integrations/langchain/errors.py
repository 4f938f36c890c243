"""This package's errors as LangChain's, too: its middleware knows by them what a retry could mend.

Each is caught as the error it is here and as the one it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions

from rsd_integrations import errors

__all__ = ["ConfigError", "PromptError", "PromptLengthError", "TimedOutError", "langchain_errors"]


class ConfigError(errors.ConfigError, exceptions.ModelInvalidRequestError):
    """A call parameter is wrong."""


class PromptError(errors.PromptError, exceptions.ModelInvalidRequestError):
    """A prompt is empty or malformed."""


class PromptLengthError(errors.PromptLengthError, exceptions.ContextOverflowError):
    """A prompt and the tokens that its answer may have do not fit the models' windows."""


class TimedOutError(errors.TimedOutError, exceptions.ModelTimeoutError):
    """A call took longer than its ``timeout``."""


_KINDS: dict[type[errors.RSDError], type[errors.RSDError]] = {
    errors.PromptLengthError: PromptLengthError,
    errors.PromptError: PromptError,
    errors.ConfigError: ConfigError,
    errors.TimedOutError: TimedOutError,
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
        raise kind(error.message, hint=error.hint).with_traceback(error.__traceback__) from error.__cause__
