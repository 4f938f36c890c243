"""A remote model in the clothes of one in this process, for the conformance kit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from rsd_integrations.protocols import ScoreStep, Written

__all__ = ["Rounds"]


class Rounds:
    """Asks for all that a round wants side by side, and waits for it. Everything else is the model's.

    Args:
        model: a ``RemoteWriter`` or a ``RemoteScorer``.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _all(self, work: list[Coroutine[Any, Any, Any]]) -> list[Any]:
        async def together() -> list[Any]:
            return await asyncio.gather(*work, return_exceptions=True)

        return asyncio.run_coroutine_threadsafe(together(), self._loop).result(60)

    def advance(self, sessions: Sequence[Any]) -> list[Any]:
        return self._all([self._turn(session) for session in sessions])

    async def _turn(self, session: Any) -> Written | None:
        """A step; or, for one that is to go on behind it, first the start of that and then its end."""
        if session.ahead_room > 0:
            self._model.go_on(session)
            return None
        ahead = session.ahead
        if (
            ahead is not None
            and not session.goes_on
            and ahead.start == len(session.tokens)
            and session.so_far
        ):
            assert await ahead.whole()
            return Written("", tuple(ahead.tokens), "limit")
        return await self._model.write(session)

    def score(self, sessions: Sequence[Any], work: Sequence[ScoreStep]) -> list[Any]:
        pairs = zip(sessions, work, strict=True)
        return self._all([self._model.score(session, step) for session, step in pairs])

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._model.aclose(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
