"""Progress bars of transformers and the hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

__all__ = ["no_progress_bars"]


@contextmanager
def no_progress_bars(*, anywhere: bool = False) -> Iterator[None]:
    """Within, no progress bars but in terminals and notebooks: elsewhere they would fill a log.

    Args:
        anywhere: not even there.
    """
    silenced = logging.is_progress_bar_enabled() and (anywhere or not _is_watched())
    if silenced:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if silenced:
            logging.enable_progress_bar()


def _is_watched() -> bool:
    is_terminal = getattr(sys.stderr, "isatty", None)  # Without a console there is no stderr.
    return "ipykernel" in sys.modules or (is_terminal is not None and bool(is_terminal()))
