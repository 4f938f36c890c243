"""Standard streams that a shell closed (``rsd ask ... >&-``): Python has None in their place."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["open_streams"]


@contextmanager
def open_streams() -> Iterator[None]:
    """Put an empty file where a stream is not. Without one, print(file=sys.stderr) writes to stdout."""
    with ExitStack() as stack:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                nothing = stack.enter_context(open(os.devnull, mode, encoding="utf-8"))
                stack.callback(setattr, sys, name, None)
                setattr(sys, name, nothing)
        yield
