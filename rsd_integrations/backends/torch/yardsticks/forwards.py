"""A stopwatch on a model's forwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def timed(model: Any, clock: Callable[[], float] = time.perf_counter) -> Iterator[list[float]]:
    """Seconds of each forward of a writer or scorer. Each is waited for, which slows the whole.

    Args:
        model: a writer or scorer of a backend.
        clock: seconds.
    """
    runner, seconds = model.runner, []
    forward, ahead = runner.forward, runner.runs_ahead

    def watched(feeds: Any, **more: Any) -> Any:
        start = clock()
        outputs = forward(feeds, **more)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(clock() - start)
        return outputs

    runner.forward, runner.runs_ahead = watched, False
    try:
        yield seconds
    finally:
        del runner.forward
        runner.runs_ahead = ahead
