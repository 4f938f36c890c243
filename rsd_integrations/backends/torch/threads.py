"""How many CPU threads a forward is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SMALL_FORWARD", "cpu_threads"]

SMALL_FORWARD = 150_000_000
"""Parameters x tokens below which waking the other threads costs more than they save (dev/speed.md)."""


@contextmanager
def cpu_threads(device: torch.device, work: int) -> Iterator[None]:
    """One thread for a small forward on the CPU, torch's own number for any other.

    Args:
        device: where the model is.
        work: parameters x tokens; 0 where that is not known.
    """
    usual = torch.get_num_threads()
    if device.type != "cpu" or usual == 1 or not 0 < work < SMALL_FORWARD:
        yield
        return
    # Of this thread alone, but threads that start meanwhile take it over: it is set back at once.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
