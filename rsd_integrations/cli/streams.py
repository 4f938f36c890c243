"""Standard streams: those that a shell closed (``rsd ask ... >&-``), and those that lack characters."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

__all__ = ["open_streams"]


@contextmanager
def open_streams() -> Iterator[None]:
    """Have streams that take all that is written.

    Python has None where a stream was closed, and without stderr print(file=sys.stderr) writes to stdout.
    """
    with ExitStack() as stack:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                nothing = stack.enter_context(open(os.devnull, mode, encoding="utf-8"))
                stack.callback(setattr, sys, name, None)
                setattr(sys, name, nothing)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stack.callback(_reconfigure, stream, encoding=stream.encoding, errors=stream.errors)
                _take_all(stream)
        yield


def _take_all(stream: io.TextIOWrapper) -> None:
    """No answer is lost for want of a character: what an encoding lacks is escaped.

    Windows' code pages, which files and pipes have there, lack most of mathematics.
    """
    if os.name == "nt" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
        stream.reconfigure(encoding="utf-8", errors=stream.errors)
    if stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")


def _reconfigure(stream: io.TextIOWrapper, **options: Any) -> None:
    with suppress(OSError, ValueError):  # What is left cannot be written, as has been told, or it is closed.
        stream.reconfigure(**options)
