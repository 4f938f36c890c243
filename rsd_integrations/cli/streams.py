"""Standard streams that a shell closed (``rsd ask ... >&-``), or whose encoding lacks characters."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any


@contextmanager
def open_streams() -> Iterator[None]:
    """Make all three streams take whatever is written.

    A closed stream is None in Python, and print(file=sys.stderr) then writes to stdout.
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
    """Escape the characters that the stream's encoding lacks, so that no answer is lost for one.

    On Windows files and pipes become UTF-8: its code pages lack most mathematical symbols.
    """
    if os.name == "nt" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
        stream.reconfigure(encoding="utf-8", errors=stream.errors)
    if stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")


def _reconfigure(stream: io.TextIOWrapper, **options: Any) -> None:
    with suppress(OSError, ValueError):  # The rest cannot be written, as was reported, or it is closed.
        stream.reconfigure(**options)
