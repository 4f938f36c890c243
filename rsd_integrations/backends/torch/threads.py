"""Threads of the CPU: how many a forward is worth, and whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from rsd_integrations.waiting import in_a_thread

Made = TypeVar("Made")

SMALL_FORWARD = 100_000_000
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
    # It holds for this thread alone, but threads that start meanwhile inherit it: set back at once.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def apart(device: torch.device | str, work: Callable[[], Made]) -> Made:
    """Do something on the CPU in a thread of its own, which ends with it. On any other device just do it.

    OpenMP keeps helpers for every thread that ever computed anything in parallel. Once all of them together
    are more than the cores, libgomp's fall asleep between any two pieces of work, and the engine's small
    forwards take up to three times as long (dev/speed.md). A thread's helpers end with it.

    Args:
        device: where the work is done. Which GPU is the current one is a thread's own affair.
        work: what to do.

    Raises:
        BaseException: whatever the work raises. A KeyboardInterrupt here ends the work too.
    """
    if torch.device(device).type != "cpu":
        return work()
    return in_a_thread(work, "rsd-apart", ended_with=True)
