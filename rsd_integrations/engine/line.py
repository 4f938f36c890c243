"""Requests that wait for their turn."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count

from rsd_integrations.engine.job import Job

__all__ = ["Line"]

_STALE = 64
"""Deadlines of jobs that wait no more are thrown away once they are so many, and most."""


class Line:
    """First come, first served; any may leave at any time. Nothing here looks at all that wait."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        self._deadlines: list[tuple[float, int, Job]] = []
        """A heap, also of some that wait no more."""
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job in self._jobs

    @property
    def first(self) -> Job | None:
        """Whose turn is next."""
        return next(iter(self._jobs), None)

    def add(self, job: Job) -> None:
        """At the end."""
        self._jobs[job] = None
        deadline = job.request.deadline
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, next(self._numbers), job))

    def remove(self, job: Job) -> None:
        """It waits no more."""
        del self._jobs[job]
        if len(self._deadlines) > 2 * len(self._jobs) + _STALE:
            self._deadlines = [entry for entry in self._deadlines if entry[-1] in self._jobs]
            heapq.heapify(self._deadlines)

    def expired(self, now: float) -> list[Job]:
        """Those whose time is up, earliest first. Each is named once."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            job = heapq.heappop(self._deadlines)[-1]
            if job in self._jobs:
                found.append(job)
        return found
