"""Every error this package raises on purpose.

::

    RSDError
    ├── ConfigError            a setting or a call parameter is wrong        (also ValueError)
    ├── PromptError            a prompt is empty or malformed                (also ValueError)
    │   └── PromptLengthError  prompt and answer do not fit the window
    ├── ModelError             a model or tokenizer cannot play its role     (also ValueError)
    ├── RewardError            a reward function or a weighting failed, or left its range
    ├── TimedOutError          a call took longer than it was given      (also TimeoutError)
    ├── BackendError           a model, a device or a server failed, at loading or later
    │   ├── DeviceMemoryError  the device ran out of memory
    │   ├── UnreachableError   no server was there, or none could take it
    │   └── RefusedError       a server will not do what it was asked for
    ├── StreamError            a stream is read where or when it cannot be   (also RuntimeError)
    ├── EngineClosedError      the pipeline was closed, or ended by itself   (also RuntimeError)
    └── AskedError             a call that LlamaIndex made by itself failed; ``__cause__`` says why

Each carries ``hint``, which says what to do, if something can be done; ``str(error)`` shows both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsd_integrations.types import Generation

__all__ = [
    "AskedError",
    "BackendError",
    "ConfigError",
    "DeviceMemoryError",
    "EngineClosedError",
    "ModelError",
    "PromptError",
    "PromptLengthError",
    "RSDError",
    "RefusedError",
    "RewardError",
    "StreamError",
    "TimedOutError",
    "UnreachableError",
]


class RSDError(Exception):
    """Base of all errors of this package.

    Args:
        message: what was wrong, with the offending value.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions. Notes are in __dict__.
        return _rebuild, (type(self), self.message, self.hint), self.__dict__


def _rebuild(cls: type[RSDError], message: str, hint: str) -> RSDError:
    return cls(message, hint=hint)


class ConfigError(RSDError, ValueError):
    """A setting or a call parameter is wrong."""


class PromptError(RSDError, ValueError):
    """A prompt is empty, malformed, or does not fit the window."""


class PromptLengthError(PromptError):
    """A prompt and the tokens that its answer may have do not fit the models' windows."""


class ModelError(RSDError, ValueError):
    """A model or tokenizer cannot play the role it was given."""


class RewardError(RSDError):
    """A reward is NaN or outside [0, 1], a weighting gave no probability, or a function for either failed."""


class TimedOutError(RSDError, TimeoutError):
    """A call took longer than its ``timeout``, where the caller wants all of the answer or none."""

    generation: Generation | None = None
    """What there was of the answer by then, with its usage; None where no answer was asked for."""


class BackendError(RSDError):
    """A model, a device or a server failed, while models were loaded or at work."""


class DeviceMemoryError(BackendError):
    """The device ran out of memory, while models were loaded or at work on a request."""


class UnreachableError(BackendError):
    """No server was there, or none could take the question."""


class RefusedError(BackendError):
    """A server answered that it will not do what it was asked for."""


class StreamError(RSDError, RuntimeError):
    """A stream is read where its events cannot arrive, or asked for a result that it does not have."""


class EngineClosedError(RSDError, RuntimeError):
    """The pipeline was closed before or while the request ran; if by a bug, ``__cause__`` is its error."""


class AskedError(RSDError):
    """A call that a framework made by itself (a query engine, say) failed: ``__cause__`` is the real error.

    Not a ValueError on purpose: LlamaIndex takes those for bad answers of a model, and drops them.
    """
