"""The bridge from the engine's thread to callers, sync and async: the same events, the same fold."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

from rsd_integrations.engine.job import Job, Sink
from rsd_integrations.types import Generation, StepEvent

__all__ = ["AsyncEventStream", "EventStream", "Submit"]

Submit = Callable[[Sink], Job]
Item = StepEvent | BaseException | None


class _Stream:
    """What both streams share: the job, and that letting go of the stream cancels it.

    ``owner`` is kept alive as long as the stream is.
    """

    def __init__(self, job: Job, owner: object) -> None:
        self._job = job
        self._owner = owner
        self._ended = False
        self._generation: Generation | None = None
        self._release = weakref.finalize(self, job.cancel)
        self._release.atexit = False

    def cancel(self) -> None:
        """Ask for the end: the stream closes with "finished" and finish_reason "cancelled"."""
        self._job.cancel()

    def _result(self) -> Generation:
        """The whole answer, once the stream has ended."""
        if self._generation is None:
            raise RuntimeError("the stream was closed before its end; it has no result")
        return self._generation

    def _take(self, item: Item) -> StepEvent | None:
        """An event, None at the end.

        Raises:
            Exception: what failed the request.
        """
        if isinstance(item, StepEvent):
            self._generation = item.generation
            return item
        self._ended = True
        if item is None:
            return None
        raise item


class EventStream(_Stream, Iterator[StepEvent]):
    """Events of one generation, as they come. Closing it, or dropping it, cancels the generation."""

    def __init__(self, submit: Submit, owner: object = None) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        super().__init__(submit(self._items.put), owner)

    def __next__(self) -> StepEvent:
        event = None if self._ended else self._take(self._items.get())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Cancel; nothing more is given out."""
        self._ended = True
        self._job.cancel()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def result(self) -> Generation:
        """Wait for the end and return the whole answer."""
        try:
            for _ in self:
                pass
        except BaseException:
            self.close()
            raise
        return self._result()


class AsyncEventStream(_Stream, AsyncIterator[StepEvent]):
    """The same for asyncio; events arrive on the loop that made the stream."""

    def __init__(self, submit: Submit, owner: object = None) -> None:
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Item] = asyncio.Queue()
        self._items = items

        def sink(item: Item) -> None:
            # A closed loop has no listener left; the stream's finalizer cancels the job.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(items.put_nowait, item)

        super().__init__(submit(sink), owner)

    async def __anext__(self) -> StepEvent:
        if self._ended:
            raise StopAsyncIteration
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        event = self._take(item)
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Cancel; nothing more is given out."""
        self._ended = True
        self._job.cancel()

    async def __aenter__(self) -> AsyncEventStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def result(self) -> Generation:
        """Wait for the end and return the whole answer."""
        async for _ in self:
            pass
        return self._result()
