"""No wait of the main thread keeps Ctrl+C out."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from rsd_integrations import RSDConfig, RSDPipeline, waiting
from rsd_integrations.backends.torch.threads import apart
from rsd_integrations.backends.vllm.address import Address
from rsd_integrations.backends.vllm.serving import at_once
from rsd_integrations.bench.runner import run_all
from rsd_integrations.testing import scripted_pipeline
from tests.systems import on_system


class Late:
    """A queue of which nothing comes before the third look. Remembers how long each was."""

    def __init__(self) -> None:
        self.looks: list[float | None] = []

    def get(self, timeout: float | None = None) -> str:
        self.looks.append(timeout)
        if timeout is not None and len(self.looks) < 3:
            raise Empty
        return "it"


def looks() -> list[float | None]:
    queue = Late()
    assert waiting.wait_for_item(queue) == "it"  # type: ignore[arg-type]
    return queue.looks


def test_it_is_waited_for_good_where_signals_end_that(monkeypatch: pytest.MonkeyPatch) -> None:
    on_system(monkeypatch, waiting, "posix")
    assert looks() == [None]


def test_on_windows_the_main_thread_looks_up_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    on_system(monkeypatch, waiting, "nt")
    assert looks() == [0.1] * 3
    seen: list[Any] = []
    other = threading.Thread(target=lambda: seen.extend(looks()))
    other.start()
    other.join()
    assert seen == [None]  # Signals are none of its business.


def answers_many(pipe: RSDPipeline) -> None:
    run_all(pipe, {0: "a", 1: "b"}, RSDConfig())


@pytest.mark.parametrize("wait", [lambda pipe: pipe.generate("x"), answers_many])
def test_no_other_wait_is_for_good(
    wait: Callable[[RSDPipeline], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[threading.Thread] = []
    with scripted_pipeline(["one\n\n", "two"]) as pipe:
        with monkeypatch.context() as patch:
            patch.setattr(waiting, "_at_a_stretch", lambda: looked.append(threading.current_thread()))
            wait(pipe)
        assert threading.current_thread() in looked


def asks_a_server(pipe: RSDPipeline) -> None:
    async def nothing(servers: object) -> None:
        return None

    at_once(nothing, Address("draft", ("http://127.0.0.1:8000",)))


def loads_apart(pipe: RSDPipeline) -> None:
    apart("cpu", lambda: None)


@pytest.mark.parametrize("wait", [lambda pipe: pipe.close(), asks_a_server, loads_apart])
def test_ends_of_threads_are_looked_for_again_and_again(
    wait: Callable[[RSDPipeline], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.13 a join that is interrupted takes the thread for ended."""
    seen: list[float | None] = []
    look, join = threading.Event.wait, threading.Thread.join

    def looked(event: threading.Event, timeout: float | None = None) -> bool:
        seen.append(timeout)
        return look(event, timeout)

    def joined(thread: threading.Thread, timeout: float | None = None) -> None:
        assert 0.1 in seen
        join(thread, timeout)

    with scripted_pipeline(["one"]) as pipe, monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", looked)
        patch.setattr(threading.Thread, "join", joined)
        wait(pipe)
    assert 0.1 in seen


def test_what_came_before_is_taken_at_once() -> None:
    items: SimpleQueue[int] = SimpleQueue()
    items.put(1)
    assert waiting.wait_for_item(items) == 1


def test_an_error_keeps_the_traceback_that_it_came_with_however_many_ask() -> None:
    told: waiting.Told[int] = waiting.Told()
    try:
        raise ValueError("it failed")
    except ValueError as error:
        told.set_exception(error)
    lines = set()
    for _ in range(3):
        with pytest.raises(ValueError, match="it failed") as caught:
            waiting.wait_for_result(told)
        lines.add(tuple(traceback.format_tb(caught.value.__traceback__)))
    [shown] = lines
    assert 'raise ValueError("it failed")' in shown[-1]


def test_one_thread_at_a_time_has_its_turn() -> None:
    turns, order = waiting.Turns(), []

    def second() -> None:
        with turns.turn():
            order.append("second")

    other = threading.Thread(target=second)
    with turns.turn(), turns.turn():
        other.start()
        other.join(0.3)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_need_not_wait_for_a_turn_of_its_parents_threads() -> None:
    turns, taken, done = waiting.Turns(), threading.Event(), threading.Event()

    def hold() -> None:
        with turns.turn():
            taken.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(30)
    child = os.fork()
    if not child:
        with turns.turn():
            os._exit(7)
    _, status = os.waitpid(child, 0)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_thread_that_is_ended_while_it_waits_keeps_no_turn() -> None:
    """Its end may fall just where the turn was given to it."""
    for _ in range(5):
        turns, release = waiting.Turns(), threading.Event()

        def hold(turns: waiting.Turns = turns, release: threading.Event = release) -> None:
            with turns.turn():
                release.wait(30)

        def wait(turns: waiting.Turns = turns) -> None:
            with suppress(SystemExit), turns.turn():
                pass

        holder, waiter = threading.Thread(target=hold), threading.Thread(target=wait, daemon=True)
        holder.start()
        waiter.start()
        time.sleep(0.05)
        ending = threading.Thread(target=waiting.end_thread, args=(waiter,))
        ending.start()
        time.sleep(0.01)
        release.set()
        for thread in (holder, ending):
            thread.join()
        assert turns._lock.acquire(timeout=5)
