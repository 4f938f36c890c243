"""Errors raised so that nothing holds on to the calls that they ended.

An error's traceback holds the frames of those calls, and these hold requests, pipelines and a device's
memory. If one of them holds the error as well, all of it stays until Python's garbage collector runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ContextDecorator
from types import TracebackType
from typing import Generic, TypeVar

from rsd_integrations.errors import RSDError

Kind = TypeVar("Kind", bound=Exception)


class Converting(ContextDecorator, Generic[Kind]):
    """Raises other errors in the place of those that are raised within.

    Not made by ``contextlib.contextmanager``: from Python 3.12 on the frame of a generator that raises
    another error leads to the frame that threw the first one into it, and that one holds it.

    Args:
        kinds: the errors that it is about.
        convert: what to raise instead of one, with its cause set; None: nothing.
    """

    def __init__(
        self, kinds: type[Kind] | tuple[type[Kind], ...], convert: Callable[[Kind], Exception | None]
    ) -> None:
        self._kinds, self._convert = kinds, convert

    def __enter__(self) -> None:
        """Nothing to begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise it."""
        made = self._convert(error) if isinstance(error, self._kinds) else None
        try:
            if made is not None:
                raise made
        finally:
            del made


def retold(error: BaseException, trace: TracebackType | None) -> BaseException:
    """An error to be raised by somebody who keeps the first one, and may be asked for it again.

    Args:
        error: what is kept.
        trace: the traceback that it came with.

    Returns:
        A copy of an error of this package. Another one, which might not be copied right, as it is: at least
        without the frames through which it was raised before.
    """
    if not isinstance(error, RSDError):
        return error.with_traceback(trace)
    # Not by ``copy``, which calls the constructor: a user's own class may have another.
    made = type(error).__new__(type(error), *error.args).with_traceback(trace)
    made.__dict__.update(error.__dict__)
    made.__cause__, made.__context__ = error.__cause__, error.__context__
    made.__suppress_context__ = error.__suppress_context__
    return made
