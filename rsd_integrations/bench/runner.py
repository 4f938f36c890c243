"""Putting many questions through a pipeline at once, so that its engine batches them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

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
    """Answer every question. All are submitted at once; the engine queues them.

    Args:
        pipe: the models.
        prompts: one request each.
        config: for all of them.
        on_done: called with each answer and its place, in their order.

    Raises:
        RSDError: one failed; the others are cancelled.
    """
    made = []
    with ExitStack() as stack:  # Leaving a stream cancels it.
        streams = [stack.enter_context(pipe.stream(prompt, config=config)) for prompt in prompts]
        for index, stream in enumerate(streams):
            made.append(stream.result())
            on_done(index, made[-1])
    return made
