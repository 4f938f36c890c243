"""Putting many questions through a pipeline at once, so that its engine batches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from rsd_integrations.config import RSDConfig
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import Generation, GivenPrompt

__all__ = ["run_all"]


def run_all(
    pipe: RSDPipeline,
    prompts: Mapping[int, GivenPrompt],
    config: RSDConfig,
    on_done: Callable[[int, Generation], None] = lambda place, generation: None,
) -> None:
    """Answer every question. All are submitted at once; the engine queues them.

    Args:
        pipe: the models.
        prompts: one request each, by its place, which is added to the seed: with the same draws for all,
            questions that are alike would be answered alike.
        config: for all of them.
        on_done: called with each answer and its place, in their order.

    Raises:
        RSDError: one failed; the others are cancelled.
    """
    with ExitStack() as stack:  # Leaving a stream cancels it.
        streams = {
            place: stack.enter_context(pipe.stream(prompt, config=_seeded(config, place)))
            for place, prompt in prompts.items()
        }
        for place, stream in streams.items():
            on_done(place, stream.result())


def _seeded(config: RSDConfig, place: int) -> RSDConfig:
    return config if config.seed is None else config.override(seed=config.seed + place)
