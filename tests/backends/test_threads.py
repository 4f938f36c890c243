"""Small forwards run on one CPU thread, nobody else's number changes, and loading leaves no threads."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch import loading
from rsd_integrations.backends.torch.threads import SMALL_FORWARD, apart, cpu_threads
from tests.processes import TORCH_ALONE, interrupted

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


def test_work_apart_leaves_no_helpers_behind() -> None:
    """OpenMP keeps helpers for each thread that ever computed in parallel: those of the main thread would
    make the engine's sleep between any two pieces of work."""
    code = """
import os, time, torch
from rsd_integrations.backends.torch.threads import apart
torch.set_num_threads(2)
count = lambda: len(os.listdir("/proc/self/task"))
work = lambda: float(torch.ones(10**7).sqrt_().sum())
time.sleep(0.2)  # By then the thread that imported is gone from the system's list, too.
before, deadline = count(), time.monotonic() + 30
assert apart("cpu", work) == 10**7
while count() > before and time.monotonic() < deadline:
    time.sleep(0.01)  # They are told to end, and do so when they next run.
apart_left = count() - before
work()
print(apart_left, count() - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("counts threads the Linux way")
    run = subprocess.run(
        [sys.executable, "-c", TORCH_ALONE + code], capture_output=True, text=True, check=True
    )
    left, left_by_main = map(int, run.stdout.split())
    assert left == 0
    assert left_by_main > 0, "this test would not see helpers"


def test_models_are_loaded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    check = loading.check_slots
    monkeypatch.setattr(
        loading,
        "check_slots",
        lambda *given: (seen.append(threading.current_thread().name), check(*given)),
    )
    with RSDPipeline.pocket():
        assert seen == ["rsd-apart"] * 3


def test_what_is_raised_apart_is_raised() -> None:
    def broken() -> None:
        raise OSError("it broke")

    with pytest.raises(OSError, match="broke"):
        apart("cpu", broken)


def test_on_another_device_it_is_just_done() -> None:
    assert apart("meta", threading.current_thread) is threading.current_thread()
    assert apart("cpu", threading.current_thread) is not threading.current_thread()


def test_the_caller_s_context_is_there() -> None:
    where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")
    where.set("here")
    assert apart("cpu", where.get) == "here"


INTERRUPTED = """
import sys, threading, torch
from rsd_integrations.backends.torch.threads import apart
ended, swallowed = [], [None] * SWALLOWED
def multiply():
    try:
        torch.ones(200, 200) @ torch.ones(200, 200)
    except SystemExit:
        if not swallowed:
            raise
        swallowed.pop()
def work():
    try:
        print("ready", flush=True)  # From here on it may be interrupted.
        while True:
            multiply()
    finally:
        ended.append("cleaned up")
try:
    apart("cpu", work)
except KeyboardInterrupt:
    print(*ended, threading.active_count(), flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("swallowed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_interrupt_ends_the_work(swallowed: int) -> None:
    """A daemon thread that is in torch when the interpreter ends would abort it."""
    code = TORCH_ALONE + INTERRUPTED.replace("SWALLOWED", str(swallowed))
    assert interrupted(code) == (130, "cleaned up 1\n", "")
