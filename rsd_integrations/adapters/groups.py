"""Requests that are waited for together, and given up together."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from rsd_integrations.engine.streams import EventStream

P = ParamSpec("P")
T = TypeVar("T")


class Group:
    """Requests of one batch. Any thread.

    ``over``: they were given up.
    """

    def __init__(self) -> None:
        self.over = False
        self._lock = threading.RLock()  # The collector may give up a group on a thread that is joining it.
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()

    @staticmethod
    def of(stream: EventStream) -> Group | None:
        """The group that this request belongs to from now on, by who made it."""
        group = _group.get()
        if group is not None:
            group._join(stream)
        return group

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do some work, whose requests belong here. In a thread (or context) of its own."""
        _group.set(self)
        return work(*args, **kwargs)

    def give_up(self) -> None:
        """Cancel what is running or waiting, and what is still to come."""
        with self._lock:
            self.over, streams = True, list(self._streams)
        for stream in streams:
            stream.cancel()

    def _join(self, stream: EventStream) -> None:
        with self._lock:
            self._streams.add(stream)
            over = self.over
        if over:
            stream.cancel()


_group: ContextVar[Group | None] = ContextVar("rsd_group", default=None)
