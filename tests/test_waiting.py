"""No wait of the main thread keeps Ctrl+C out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from rsd_integrations import RSDConfig, RSDPipeline, waiting
from rsd_integrations.backends.vllm.serving import _in_thread
from rsd_integrations.bench.runner import run_all
from rsd_integrations.testing import scripted_pipeline
from tests.systems import on_system


class Late:
    """A queue and a thread of which nothing comes before the third look. Remembers how long each was."""

    def __init__(self) -> None:
        self.looks: list[float | None] = []

    def get(self, timeout: float | None = None) -> str:
        self.looks.append(timeout)
        if timeout is not None and len(self.looks) < 3:
            raise Empty
        return "it"

    def join(self, timeout: float | None = None) -> None:
        self.looks.append(timeout)

    def is_alive(self) -> bool:
        return self.looks[-1] is not None and len(self.looks) < 3


def looks() -> list[list[float | None]]:
    queue, thread = Late(), Late()
    assert waiting.wait_for_item(queue) == "it"  # type: ignore[arg-type]
    waiting.wait_for_end(thread)  # type: ignore[arg-type]
    return [queue.looks, thread.looks]


def test_it_is_waited_for_good_where_signals_end_that(monkeypatch: pytest.MonkeyPatch) -> None:
    on_system(monkeypatch, waiting, "posix")
    assert looks() == [[None], [None]]


def test_on_windows_the_main_thread_looks_up_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    on_system(monkeypatch, waiting, "nt")
    assert looks() == [[0.1] * 3, [0.1] * 3]
    seen: list[Any] = []
    other = threading.Thread(target=lambda: seen.extend(looks()))
    other.start()
    other.join()
    assert seen == [[None], [None]]  # Signals are none of its business.


def answers_many(pipe: RSDPipeline) -> None:
    run_all(pipe, {0: "a", 1: "b"}, RSDConfig())


def asks_a_server(pipe: RSDPipeline) -> None:
    async def nothing() -> None:
        return None

    _in_thread(nothing())


@pytest.mark.parametrize(
    "wait", [lambda pipe: pipe.generate("x"), lambda pipe: pipe.close(), answers_many, asks_a_server]
)
def test_no_other_wait_is_for_good(
    wait: Callable[[RSDPipeline], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[threading.Thread] = []
    with scripted_pipeline(["one\n\n", "two"]) as pipe:
        with monkeypatch.context() as patch:
            patch.setattr(waiting, "_at_a_stretch", lambda: looked.append(threading.current_thread()))
            wait(pipe)
        assert threading.current_thread() in looked


def test_what_came_before_is_taken_at_once() -> None:
    items: SimpleQueue[int] = SimpleQueue()
    items.put(1)
    assert waiting.wait_for_item(items) == 1
