"""Waits that Ctrl+C ends, on Windows too, and threads that end with the interpreter."""

from __future__ import annotations

import atexit
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, RLock, Thread, current_thread, main_thread
from typing import Any, TypeVar

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


def wait_for_end(thread: Thread, ended: Event) -> None:
    """Wait until a thread has ended.

    Not by joining: before Python 3.13 a join that is interrupted takes the thread for ended. And not for
    good: a signal that another thread receives, or that comes just before, wakes nobody.

    Args:
        thread: the thread.
        ended: what it sets last of all.
    """
    while not ended.wait(_SIGNALS):
        pass
    thread.join()


class Told(Future[Item]):
    """A future whose error keeps the traceback that it came with. Else each thread that waits for it would
    add its own frames to those of the others.
    """

    def set_exception(self, exception: BaseException | None) -> None:
        """Set the error."""
        self._trace = None if exception is None else exception.__traceback__
        super().set_exception(exception)

    def result(self, timeout: float | None = None) -> Item:
        """The result.

        Raises:
            BaseException: the error.
        """
        error = self.exception(timeout)
        if error is None:
            return super().result(timeout)
        try:
            raise error.with_traceback(self._trace)
        finally:
            del self, error  # The traceback holds this frame.


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


def in_a_thread(work: Callable[[], Item], name: str, *, ended_with: bool) -> Item:
    """What work makes, in a thread and a copy of the context of its own.

    Args:
        work: what to do.
        name: of the thread.
        ended_with: whether an interrupt here ends the work, which is waited for; else it is left alone.

    Raises:
        BaseException: whatever the work raises.
    """
    made: list[Item] = []
    raised: list[BaseException] = []
    ended = Event()

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:
            raised.append(error)
        finally:
            ended.set()

    # A daemon: nobody who is interrupted waits for work that is left alone.
    thread = Thread(target=copy_context().run, args=(run,), name=name, daemon=True)
    try:
        thread.start()
        wait_for_end(thread, ended)
    except BaseException:
        if ended_with:
            end_thread(thread)
        raise
    if raised:
        raise raised[0]
    return made[0]


class Turns:
    """Whatever must not overlap within this process: one thread at a time has its turn."""

    def __init__(self) -> None:
        self._begin_anew()
        if hasattr(os, "register_at_fork"):  # A forked child does not have the thread whose turn it was.
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = RLock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within, it is this thread's turn. It may have one within another."""
        lock: Any = self._lock
        if lock._is_owned():
            yield
            return
        try:
            while not lock.acquire(timeout=_SIGNALS):  # ``end_thread`` ends no wait without limit.
                pass
            yield
        finally:
            # An interrupt may fall between the lock's being taken and ``acquire`` having said so.
            if lock._is_owned():
                lock.release()


def ending_with_python(work: Callable[[], object]) -> Callable[[], None]:
    """Work for a daemon thread, which is told to end when the interpreter does, and waited for."""

    def run() -> None:
        end = partial(end_thread, current_thread())
        atexit.register(end)
        try:
            work()
        finally:
            atexit.unregister(end)

    return run


def end_thread(thread: Thread) -> None:
    """Have a thread stop at its next Python instruction, and wait for it.

    A daemon that is inside of torch when the interpreter ends aborts the process (SIGABRT).
    """
    while thread.is_alive():
        # SystemExit ends a thread without a word. Again each second: whoever runs may have swallowed it.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
        )
        thread.join(1.0)


def _at_a_stretch() -> float | None:
    """Seconds to wait at a time; None: without limit.

    On Windows no signal ends a wait (before Python 3.14). Only the main thread receives signals.
    """
    return _SIGNALS if os.name == "nt" and current_thread() is main_thread() else None
