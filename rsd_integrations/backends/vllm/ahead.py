"""What a draft writes behind a step that waits for its reward, in case the step is kept.

Its server would be idle meanwhile. What is thrown away with a rejected step is counted all the same: it is
streamed token by token, so this side knows how much was written when it closes the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Ahead:
    """The beginning of a next step that may not come.

    Args:
        start: number of tokens that it stands behind.
        room: most tokens of it.
        draw: the random number that the server was given, for the next step if this one does not come.
    """

    start: int
    room: int
    draw: float | None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    """Whether its server said that the text ends there."""
    told: bool = False
    """Whether its server said that this was all: a stream may break off without a sign."""
    _task: asyncio.Task[None] | None = None

    def begin(self, writing: Coroutine[Any, Any, None]) -> None:
        """Write in the background."""
        self._task = asyncio.ensure_future(writing)
        # Should it fail, the question is asked anew, and that tells what is wrong.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def whole(self) -> bool:
        """Wait for its end. Whether it came to one; if the wait is cancelled, the writing goes on."""
        assert self._task is not None
        await asyncio.wait([self._task])
        written = not self._task.cancelled() and self._task.exception() is None
        return written and self.told and bool(self.tokens or self.ended)

    def leave(self) -> None:
        """Nobody wants it any more. Safe to repeat."""
        if self._task is not None:
            self._task.cancel()
