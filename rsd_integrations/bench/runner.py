"""Putting many questions through a pipeline at once, so that its engine batches them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import RSDError
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import Generation, GivenPrompt
from rsd_integrations.waiting import wait_for_item


def run_all(
    pipe: RSDPipeline,
    prompts: Mapping[int, GivenPrompt],
    config: RSDConfig,
    on_done: Callable[[int, Generation], None] = lambda place, generation: None,
) -> None:
    """Answer every question. All are submitted at once; the engine queues them.

    Args:
        pipe: the models.
        prompts: one request each, by its place. Its seed is made from the config's and its place: with the
            same draws for all, similar questions would get similar answers.
        config: for all of them.
        on_done: called with each answer and its place, as soon as it is there.

    Raises:
        RSDError: one failed; the others are cancelled.
    """
    # A thread for each request that can run at once: they wait for the first streams that are not done.
    pool = ThreadPoolExecutor(max_workers=max(1, min(len(prompts), pipe.backend.max_batch_size)))
    with pool, ExitStack() as stack:  # Leaving a stream cancels it.
        streams = {
            place: stack.enter_context(pipe.stream(prompt, config=_seeded(config, place)))
            for place, prompt in prompts.items()
        }
        waiting = {pool.submit(stream.result): place for place, stream in streams.items()}
        finished: SimpleQueue[Future[Generation]] = SimpleQueue()
        for future in waiting:
            future.add_done_callback(finished.put)
        for _ in waiting:
            done = wait_for_item(finished)
            place = waiting[done]
            try:
                generation = done.result()
            except RSDError as error:
                raise type(error)(f"question {place + 1}: {error.message}", hint=error.hint) from error
            on_done(place, generation)


def _seeded(config: RSDConfig, place: int) -> RSDConfig:
    if config.seed is None:
        return config
    # Not their sum: a run of the next seed would repeat this one's draws a place further on.
    return config.override(seed=random.Random(f"{config.seed} {place}").getrandbits(32))
