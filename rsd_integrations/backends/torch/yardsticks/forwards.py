"""A stopwatch on a model's forwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["timed"]


@contextmanager
def timed(model: Any) -> Iterator[list[float]]:
    """Seconds of each forward of a writer or scorer. Each is waited for, which slows the whole."""
    runner, seconds = model.runner, []
    forward, ahead = runner.forward, runner.runs_ahead

    def watched(feeds: Any, **more: Any) -> Any:
        start = time.perf_counter()
        outputs = forward(feeds, **more)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        return outputs

    runner.forward, runner.runs_ahead = watched, False
    try:
        yield seconds
    finally:
        del runner.forward
        runner.runs_ahead = ahead
