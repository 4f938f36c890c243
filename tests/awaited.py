"""Scripted models that are awaited, as those behind servers are."""

from __future__ import annotations

import asyncio
from typing import Any

from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.protocols import Backend, ScoreStep
from rsd_integrations.remote import RemoteBackend

__all__ = ["Awaited", "awaited_pipeline"]


class Awaited:
    """A ``RemoteWriter`` or ``RemoteScorer``: works as a scripted model does, and lets others run meanwhile.

    Args:
        model: a ``ScriptedWriter`` or a ``ScriptedScorer``.
        pause: seconds that each step takes besides.
        company: the first steps wait until so many are at work.
    """

    def __init__(self, model: Any, pause: float = 0.0, company: int = 0) -> None:
        self.model = model
        self.pause = pause
        self.company = company
        self.at_work, self.most_at_work = 0, 0
        self.left: list[Any] = []
        """Sessions whose question was given up."""
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    async def write(self, session: Any) -> Any:
        return await self._work(session, lambda: self.model.advance([session]))

    async def score(self, session: Any, step: ScoreStep) -> Any:
        return await self._work(session, lambda: self.model.score([session], [step]))

    async def _work(self, session: Any, turn: Any) -> Any:
        self.at_work += 1
        self.most_at_work = max(self.at_work, self.most_at_work)
        result = None
        try:
            await asyncio.sleep(self.pause)
            while self.most_at_work < self.company:
                await asyncio.sleep(0.001)
            while result is None:
                (result,) = turn()
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.left.append(session)
            raise
        finally:
            self.at_work -= 1
        if isinstance(result, Exception):
            raise result
        return result

    async def aclose(self) -> None:
        self.closed = True


def awaited_pipeline(backend: Any) -> RSDPipeline:
    """A pipeline that awaits the models of a backend that works in rounds."""
    if not isinstance(backend, Backend):
        return RSDPipeline(backend)
    models = [Awaited(model) for model in (backend.draft, backend.target, backend.prm)]
    return RSDPipeline(RemoteBackend(*models, max_batch_size=backend.max_batch_size))
