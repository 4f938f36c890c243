"""Progress bars of transformers and the hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from transformers.utils import logging


class _Silence:
    """Lasts from the first that wants it to the last: threads that load at once share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._wanted = 0
        self._was_on = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._wanted:
                self._was_on = logging.is_progress_bar_enabled()
                logging.disable_progress_bar()
            self._wanted += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._wanted -= 1
            if not self._wanted and self._was_on:
                logging.enable_progress_bar()


_silence = _Silence()


@contextmanager
def no_progress_bars(*, anywhere: bool = False) -> Iterator[None]:
    """Within, no progress bars but in terminals and notebooks: elsewhere they would fill a log.

    Args:
        anywhere: not even there.
    """
    if not anywhere and _is_watched():
        yield
        return
    with _silence:
        yield


def _is_watched() -> bool:
    is_terminal = getattr(sys.stderr, "isatty", None)  # Without a console there is no stderr.
    return "ipykernel" in sys.modules or (is_terminal is not None and bool(is_terminal()))
