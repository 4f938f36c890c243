"""Requests that wait for their turn."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count

from rsd_integrations.engine.job import Job

_STALE = 64
"""Deadlines kept, beyond two for each job that waits, before those of jobs that have left are removed."""


class Line:
    """First come, first served; any job may leave at any time. No call here goes through all that wait, but
    for a clean-up now and then.
    """

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        self._deadlines: list[tuple[float, int, Job]] = []
        """A heap, which may still hold some that have left."""
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
        """Put a job at the end."""
        self._jobs[job] = None
        deadline = job.request.deadline
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, next(self._numbers), job))

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands."""
        del self._jobs[job]
        if len(self._deadlines) > 2 * len(self._jobs) + _STALE:
            self._deadlines = [entry for entry in self._deadlines if entry[-1] in self._jobs]
            heapq.heapify(self._deadlines)

    def expired(self, now: float) -> list[Job]:
        """Jobs that wait and whose time is up, earliest deadline first. Each is returned only once."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            job = heapq.heappop(self._deadlines)[-1]
            if job in self._jobs:
                found.append(job)
        return found
