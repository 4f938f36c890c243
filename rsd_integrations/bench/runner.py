"""Putting many questions through a pipeline at once, so that its engine batches them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rsd_integrations.config import RSDConfig
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import Generation, GivenPrompt

__all__ = ["run_all"]


def run_all(
    pipe: RSDPipeline,
    prompts: Sequence[GivenPrompt],
    config: RSDConfig,
    on_done: Callable[[int, Generation], None] = lambda index, generation: None,
) -> list[Generation]:
    """Answer every question, in their order. All are submitted at once; the engine queues them.

    Args:
        pipe: the models.
        prompts: one request each.
        config: for all of them.
        on_done: called after each answer, with its place.

    Raises:
        RSDError: one failed; the others are cancelled.
    """

    async def answer(index: int, prompt: GivenPrompt) -> Generation:
        generation = await pipe.agenerate(prompt, config=config)
        on_done(index, generation)
        return generation

    async def everything() -> list[Generation]:
        return await asyncio.gather(*[answer(index, prompt) for index, prompt in enumerate(prompts)])

    return asyncio.run(everything())
