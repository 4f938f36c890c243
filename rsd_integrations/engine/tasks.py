"""The executor for models behind servers: one event loop, a task for each live request."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import partial
from typing import Any

from rsd_integrations.algorithm import Cancelled
from rsd_integrations.engine.job import Job, Task
from rsd_integrations.engine.thread import EngineThread, own
from rsd_integrations.protocols import ScoreStep, TargetStep
from rsd_integrations.remote import RemoteBackend, RemoteScorer, RemoteWriter

AHEAD = 16
"""Most live requests with which drafts write on behind steps that wait for their reward. With more, the
servers have other work meanwhile."""

_CLOSING = 5.0
"""Seconds that cancelled calls may take to end, and then connections to close."""


class TaskEngine(EngineThread):
    """Owns an event loop, in a thread of its own, on which all requests wait for servers side by side.

    Requests are not gathered here: servers batch what they are sent. What one request gets does not depend on
    the others, and one that is cancelled cancels its calls to servers.
    """

    def __init__(self, backend: RemoteBackend) -> None:
        super().__init__()
        self._backend: RemoteBackend = backend
        self._loop = _new_loop()
        self._stop = asyncio.Event()
        self._queued: OrderedDict[Job, asyncio.TimerHandle | None] = OrderedDict()
        """Jobs that wait for their turn, each with the timer that ends it at its deadline."""
        self._live: dict[Job, asyncio.Event] = {}
        """Each with the event that is set when it is cancelled."""
        self._carried: set[asyncio.Task[None]] = set()
        self._ending = False
        self._thread.start()

    def _put(self, job: Job | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set if job is None else partial(self._admit, job))

    def _wake(self, job: Job) -> None:
        with contextlib.suppress(RuntimeError):  # A closed loop has nothing left to cancel.
            self._loop.call_soon_threadsafe(self._cancelled, job)

    def _cancelled(self, job: Job) -> None:
        if job in self._queued:
            self._leave(job)
            job.drop()
        elif job in self._live:
            self._live[job].set()

    def _leave(self, job: Job) -> None:
        """Take a job out of the line, and count it."""
        self._called += 1
        timer = self._queued.pop(job)
        if timer is not None:
            timer.cancel()

    def _run(self) -> None:
        self._loop.run_until_complete(self._stop.wait())

    def _end(self) -> None:
        ending = self._loop.create_task(self._fail_all())
        try:
            while not ending.done():  # Other tasks may end the loop, too.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    self._loop.run_until_complete(ending)
        finally:
            self._loop.close()

    async def _fail_all(self) -> None:
        await asyncio.sleep(0)  # Lets what was submitted before the end arrive.
        self._ending = True
        waiting = [*self._queued]
        for job in waiting:
            self._leave(job)
        jobs = [*self._live, *waiting]
        for job in jobs:
            with contextlib.suppress(BaseException):  # One listener must not keep the others waiting.
                job.tell(self._end_error())
        carried = [*self._carried]
        for task in carried:
            task.cancel()
        if carried:  # A user's scorer may refuse to be cancelled.
            await asyncio.wait(carried, timeout=_CLOSING)
        for job in jobs:  # Not before: calls that are cancelled may still use a session.
            with contextlib.suppress(Exception):
                job.close()
        self._live.clear()
        backend = self._backend
        for model in (backend.draft, backend.target, backend.prm):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(_closed(model), _CLOSING)

    def _admit(self, job: Job) -> None:
        left = job.time_left
        self._queued[job] = None if left is None else self._timer(left, job)
        self._fill()

    def _timer(self, left: float, job: Job) -> asyncio.TimerHandle:
        # In a context that holds nothing: the loop keeps timers that were cancelled for a while.
        return self._loop.call_later(left, self._cancelled, job, context=Context())

    def _fill(self) -> None:
        """Start those whose turn it is."""
        while self._queued and len(self._live) < self._backend.max_batch_size and not self._ending:
            job = next(iter(self._queued))
            self._leave(job)
            self._live[job] = asyncio.Event()
            # Not in the context of another job, which has made room, nor of its own caller: connections and
            # timers would keep it.
            Context().run(self._begin, job)

    def _begin(self, job: Job) -> None:
        task = self._loop.create_task(self._carry(job))
        self._carried.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._carried.discard(task)
        if not task.cancelled():
            task.exception()  # Read, so that asyncio does not log it: the engine logs what ends it.

    async def _carry(self, job: Job) -> None:
        """Run one request from its start to its end. A failure fails that request alone."""
        try:
            if job.cancelled:
                job.drop()
                return
            job.start(self._backend)
            while job.tasks:
                await self._work(job)
        except BaseException as error:
            if self._ending:
                raise  # Whoever waits has been told.
            job.fail(error)
            if not isinstance(error, asyncio.CancelledError):
                own(error)  # Ends the engine, if it is meant to.
        finally:
            self._live.pop(job, None)  # Gone already if this outlasted ``_fail_all``.
            self._fill()

    async def _work(self, job: Job) -> None:
        """Do what a job waits for, until its story goes on."""
        tasks = job.tasks
        pending: dict[asyncio.Future[Any], Task] = {}
        try:
            for task in () if job.cancelled else tasks:
                pending[asyncio.ensure_future(self._do(task))] = task
            while job.tasks is tasks and not job.cancelled:
                for future in await self._first(job, pending):
                    if job.tasks is tasks:
                        failed = future.exception()
                        job.take(pending.pop(future), future.result() if failed is None else own(failed))
        finally:
            await _cancel(pending)
        if job.tasks is tasks:
            job.resume(Cancelled())

    def _do(self, task: Task) -> Any:
        backend, piece, job = self._backend, task.piece, task.job
        if isinstance(piece, ScoreStep):
            if len(self._live) <= AHEAD and job.can_wait:
                job.go_on(job.request.config.max_step_tokens)
                if job.going_on is not None:
                    backend.draft.go_on(job.going_on.session)
            return backend.prm.score(task.session, piece)
        return (backend.target if isinstance(piece, TargetStep) else backend.draft).write(task.session)

    async def _first(self, job: Job, futures: Iterable[asyncio.Future[Any]]) -> list[asyncio.Future[Any]]:
        """The futures that are done, as soon as one is, the job was cancelled or its time is up."""
        futures = list(futures)
        seen = asyncio.ensure_future(self._live[job].wait())
        try:
            await asyncio.wait([*futures, seen], timeout=job.time_left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel([seen])
        return [future for future in futures if future.done()]


def _new_loop() -> asyncio.AbstractEventLoop:
    """Made in another thread: on Windows, one made in the main thread takes signals from the loop there."""
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.new_event_loop).result()


async def _closed(model: RemoteWriter | RemoteScorer) -> None:
    with contextlib.suppress(BaseException):  # A broken connection must not keep the others open.
        await model.aclose()


async def _cancel(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel them, and wait until they are over."""
    left = list(futures)
    for future in left:
        future.cancel()
    await asyncio.gather(*left, return_exceptions=True)
