"""Small forwards run on one CPU thread, and nobody else's number changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from rsd_integrations.backends.torch.threads import SMALL_FORWARD, cpu_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(usual)


@pytest.mark.parametrize(
    ("device", "work", "threads"),
    [
        (CPU, SMALL_FORWARD - 1, 1),
        (CPU, SMALL_FORWARD, 3),
        (CPU, 0, 3),
        (torch.device("meta"), 5, 3),
    ],
)
def test_the_number(device: torch.device, work: int, threads: int) -> None:
    with cpu_threads(device, work):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 3


def test_it_is_set_back_after_a_failure_and_other_threads_keep_theirs() -> None:
    seen: list[int] = []
    with pytest.raises(OSError, match="broke"), cpu_threads(CPU, 5):
        raise OSError("it broke")
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [3]
    assert torch.get_num_threads() == 3
