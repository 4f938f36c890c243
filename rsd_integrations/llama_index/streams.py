"""Streams of responses: folded to the last one, or reported to LlamaIndex's callbacks as they are read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import Any, TypeVar, cast

Response = TypeVar("Response")
Callback = Callable[[Callable[..., Any]], Callable[..., Any]]


def last(states: Generator[Response, None, None]) -> Response:
    """The whole answer."""
    state: Response | None = None
    for state in states:  # noqa: B007
        pass
    return cast(Response, state)


async def alast(states: AsyncGenerator[Response, None]) -> Response:
    """The whole answer."""
    state: Response | None = None
    async with aclosing(states):
        async for state in states:  # noqa: B007
            pass
    return cast(Response, state)


def told_stream(
    callback: Callback,
    llm: Any,
    asked: Any,
    kwargs: dict[str, Any],
    start: Callable[[], Generator[Response, None, None]],
) -> Generator[Response, None, None]:
    """A stream that is reported to the callbacks, as by ``llm_chat_callback``, and closed when it is left.

    The decorator's own generator would leave it open for as long as anybody (a handler, say) keeps the error
    that ended the reading.

    Args:
        callback: LlamaIndex's decorator.
        llm: the model.
        asked: prompt or messages, for the callbacks.
        kwargs: parameters of the call, likewise.
        start: starts the stream.
    """
    started: list[Generator[Response, None, None]] = []

    def begin(_llm: Any, _asked: Any, **_kwargs: Any) -> Generator[Response, None, None]:
        started.append(start())
        return started[0]

    told = callback(begin)(llm, asked, **kwargs)

    def closed() -> Generator[Response, None, None]:
        with closing(started[0]):
            yield from told

    return closed()


async def told_astream(
    callback: Callback,
    llm: Any,
    asked: Any,
    kwargs: dict[str, Any],
    start: Callable[[], AsyncGenerator[Response, None]],
) -> AsyncGenerator[Response, None]:
    """The same for asyncio."""
    started: list[AsyncGenerator[Response, None]] = []

    async def begin(_llm: Any, _asked: Any, **_kwargs: Any) -> AsyncGenerator[Response, None]:
        started.append(start())
        return started[0]

    told = await callback(begin)(llm, asked, **kwargs)

    async def closed() -> AsyncGenerator[Response, None]:
        async with aclosing(started[0]), aclosing(told):
            async for state in told:
                yield state

    return closed()
