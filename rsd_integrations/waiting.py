"""Waits that Ctrl+C ends, on Windows too."""

from __future__ import annotations

import os
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from threading import Thread, current_thread, main_thread
from typing import TypeVar

__all__ = ["wait_for_end", "wait_for_item", "wait_for_result"]

Item = TypeVar("Item")

_SIGNALS = 0.1
"""Seconds within which an interrupt is noticed."""


def wait_for_item(items: SimpleQueue[Item]) -> Item:
    """The next item of a queue, once there is one."""
    while True:
        try:
            return items.get(timeout=_at_a_stretch())
        except Empty:
            continue


def wait_for_end(thread: Thread) -> None:
    """Wait until a thread has ended."""
    thread.join(_at_a_stretch())
    while thread.is_alive():
        thread.join(_at_a_stretch())


def wait_for_result(future: Future[Item]) -> Item:
    """The result of work that another thread does.

    Raises:
        BaseException: what the work raised.
    """
    try:
        while not wait([future], _at_a_stretch()).done:
            pass
        return future.result()
    finally:
        del future  # The traceback of what it raises would hold it, and it holds what it raises.


def _at_a_stretch() -> float | None:
    """Seconds to wait at a time; None: without limit.

    On Windows no signal ends a wait (before Python 3.14). Only the main thread receives signals.
    """
    return _SIGNALS if os.name == "nt" and current_thread() is main_thread() else None
