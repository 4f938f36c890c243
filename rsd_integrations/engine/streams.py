"""The bridge from the engine's thread to callers, sync and async: the same events, the same fold."""

from __future__ import annotations

import asyncio
import os
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from rsd_integrations.engine.job import Job, Sink
from rsd_integrations.engine.thread import forked_error
from rsd_integrations.errors import StreamError
from rsd_integrations.raising import retold
from rsd_integrations.types import Generation, StepEvent
from rsd_integrations.waiting import wait_for_item

Submit = Callable[[Sink], Job]


@dataclass(slots=True)
class _End:
    """How a request ended. Set before the end is put into the stream's queue, for all that wait for it."""

    generation: Generation | None = None
    error: BaseException | None = None
    trace: TracebackType | None = None
    """The error's traceback as it arrived."""

    def check(self) -> None:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise retold(self.error, self.trace)


def _sink(put: Callable[[StepEvent | None], object], end: _End) -> Sink:
    """Puts events into a queue, None after the last."""

    def take(item: StepEvent | BaseException | None) -> None:
        if isinstance(item, BaseException):
            end.error, end.trace = item, item.__traceback__
            return
        if item is not None and item.generation is not None:
            end.generation = item.generation
        put(item)

    return take


class _Stream:
    """What both streams share: the job, and that dropping the stream cancels it.

    Args:
        submit: starts the job.
        put: puts an event where readers wait for it, None behind the last; must not keep the stream alive.
        owner: is kept alive as long as the stream is.
    """

    def __init__(self, submit: Submit, put: Callable[[StepEvent | None], object], owner: object) -> None:
        self._end = _End()
        self._job = submit(_sink(put, self._end))
        self._process = os.getpid()
        self._owner = owner
        self._ended = False
        self._told = False
        """Whether a reader has reached the end."""
        self._release = weakref.finalize(self, self._job.cancel)
        self._release.atexit = False

    def cancel(self) -> None:
        """Ask for the end: the stream closes with "finished" and finish_reason "cancelled"."""
        self._job.cancel()

    def _close(self) -> None:
        self._ended = True
        if not self._told:
            self._job.cancel()

    def _result(self) -> Generation:
        """The whole answer, once the stream has ended."""
        if self._told:
            self._end.check()
        if not self._told or self._end.generation is None:
            raise StreamError(
                "the stream was closed before its end; it has no result.",
                hint="Read it to its end, or call cancel() and then result() for what is there by then.",
            )
        return self._end.generation

    def _check_process(self) -> None:
        """Refuse to wait where no engine runs.

        Raises:
            EngineClosedError: this is a fork of the process in which the engine runs.
        """
        if os.getpid() != self._process:
            raise forked_error()

    def _take(self, event: StepEvent | None, put_back: Callable[[None], object]) -> StepEvent | None:
        """An event, None at the end.

        Raises:
            Exception: what failed the request.
        """
        if event is not None:
            if event.generation is not None:
                self._told = True
            return event
        put_back(None)  # Another thread or task may wait for it too.
        self._ended = self._told = True
        # The finalizer holds the job, and so the error: one of others is raised itself, with frames that hold
        # the stream and its owner.
        self._release.detach()
        self._end.check()
        return None


class EventStream(_Stream, Iterator[StepEvent]):
    """Events of one generation, as they come. Closing it, or dropping it, cancels the generation.

    Each event goes to one reader; the end, or the failure, reaches all that wait for it.
    """

    def __init__(self, submit: Submit, owner: object = None) -> None:
        self._items: queue.SimpleQueue[StepEvent | None] = queue.SimpleQueue()
        super().__init__(submit, self._items.put, owner)

    def __next__(self) -> StepEvent:
        if self._ended:
            raise StopIteration
        self._check_process()
        event = self._take(wait_for_item(self._items), self._items.put)
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Cancel; nothing more is given out."""
        self._close()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def result(self) -> Generation:
        """Wait for the end and return the whole answer.

        Raises:
            StreamError: the stream was closed before its end.
            Exception: what failed the request, each time it is asked for.
        """
        try:
            for _ in self:
                pass
        except BaseException:
            self.close()
            raise
        return self._result()


class AsyncEventStream(_Stream, AsyncIterator[StepEvent]):
    """The same as ``EventStream``, for asyncio. Events arrive on the loop in which it was made.

    Raises:
        StreamError: no event loop of asyncio is running here.
    """

    def __init__(self, submit: Submit, owner: object = None) -> None:
        self._loop = loop = running_loop()
        items: asyncio.Queue[StepEvent | None] = asyncio.Queue()
        self._items = items

        this = weakref.ref(self)

        def put(item: StepEvent | None) -> None:
            try:
                loop.call_soon_threadsafe(items.put_nowait, item)
            except RuntimeError:  # A closed loop has no listener left, whoever still holds the stream.
                stream = this()
                if stream is not None and item is not None:
                    stream.cancel()

        super().__init__(submit, put, owner)

    async def __anext__(self) -> StepEvent:
        if self._ended:
            raise StopAsyncIteration
        self._check_process()
        if asyncio.get_running_loop() is not self._loop:
            raise StreamError(
                "the stream was made on another event loop, where its events arrive.",
                hint="Make it where it is read, or use stream(), which any thread can read.",
            )
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        event = self._take(item, self._items.put_nowait)
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Cancel; nothing more is given out."""
        self._close()

    async def __aenter__(self) -> AsyncEventStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def result(self) -> Generation:
        """Wait for the end and return the whole answer.

        Raises:
            StreamError: the stream was closed before its end, or was made on another event loop.
            Exception: what failed the request, each time it is asked for.
        """
        async for _ in self:
            pass
        return self._result()


def running_loop() -> asyncio.AbstractEventLoop:
    """Asyncio's loop that runs here.

    Raises:
        StreamError: none does; those of other libraries (trio) are none of asyncio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise StreamError(
            "no event loop of asyncio is running here.",
            hint="Call this inside of a coroutine that asyncio runs; elsewhere, as under trio, call the sync "
            "method (stream, invoke, ...), in a thread.",
        ) from error
