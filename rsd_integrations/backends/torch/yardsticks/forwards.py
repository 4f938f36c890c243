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
    """Seconds of each forward of a writer or scorer. On a GPU each is waited for, which slows the whole."""
    runner, seconds = model.runner, []
    forward = runner.forward

    def watched(feeds: Any) -> Any:
        start = time.perf_counter()
        outputs = forward(feeds)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        return outputs

    runner.forward = watched
    try:
        yield seconds
    finally:
        del runner.forward
