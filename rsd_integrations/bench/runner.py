"""Putting many problems through a pipeline at once, so that its engine batches them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rsd_integrations.config import RSDConfig
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import Generation

__all__ = ["run_all"]


def run_all(
    pipe: RSDPipeline,
    questions: Sequence[str],
    config: RSDConfig,
    on_done: Callable[[], None] = lambda: None,
) -> list[Generation]:
    """Answer every question, in their order. All are submitted at once; the engine queues them.

    Args:
        pipe: the models.
        questions: one user turn each.
        config: for all of them.
        on_done: called after each answer.

    Raises:
        RSDError: one failed; the others are cancelled.
    """

    async def answer(question: str) -> Generation:
        generation = await pipe.agenerate(question, config=config)
        on_done()
        return generation

    async def everything() -> list[Generation]:
        return await asyncio.gather(*[answer(question) for question in questions])

    return asyncio.run(everything())
