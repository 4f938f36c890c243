"""Waiting on a stream ends, wherever one waits and however many do."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.engine.streams import AsyncEventStream, EventStream
from rsd_integrations.errors import BackendError, EngineClosedError, RewardError, StreamError
from rsd_integrations.protocols import Backend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter, scripted_pipeline
from tests.gated import Gated, endless, wait_for
from tests.processes import interrupted

PATIENCE = 30.0
"""Seconds until a test calls it a deadlock."""

STEPS = ["one\n\n", "two"]


class Held:
    """A script whose first step waits until it is let go, so that all readers wait by then."""

    def __init__(self, step: str | Exception) -> None:
        self._step = step
        self._gate = threading.Event()
        self.let_go = self._gate.set

    def __call__(self, prompt: Any, index: int, text: str) -> str | Exception | None:
        assert self._gate.wait(PATIENCE)
        return self._step if index == 0 else None


def failing(prompt: Any, index: int, text: str) -> str | Exception:
    return "one\n\n" if index == 0 else BackendError("it broke.")


def in_time(main: Callable[[], Any]) -> Any:
    async def limited() -> Any:
        return await asyncio.wait_for(main(), PATIENCE)

    return asyncio.run(limited())


def outcome(call: Callable[[], Generation]) -> str:
    try:
        return call().text
    except BackendError as error:
        return str(error)


CASES = [("only", "only"), (BackendError("it broke."), "it broke.")]


@pytest.mark.parametrize(("step", "expected"), CASES)
def test_all_threads_that_wait_for_a_stream_come_back(step: str | Exception, expected: str) -> None:
    script = Held(step)
    with scripted_pipeline(script) as pipe, ThreadPoolExecutor(4) as pool:
        stream = pipe.stream("x")
        waiting = [pool.submit(outcome, stream.result) for _ in range(4)]
        script.let_go()
        assert [one.result(PATIENCE) for one in waiting] == [expected] * 4


@pytest.mark.parametrize(("step", "expected"), CASES)
def test_all_tasks_that_wait_for_a_stream_come_back(step: str | Exception, expected: str) -> None:
    script = Held(step)

    async def main() -> list[Any]:
        stream = pipe.astream("x")
        waiting = [asyncio.create_task(stream.result()) for _ in range(4)]
        await asyncio.sleep(0)
        script.let_go()
        return await asyncio.gather(*waiting, return_exceptions=True)

    with scripted_pipeline(script) as pipe:
        found = in_time(main)
    assert [getattr(one, "text", None) or str(one) for one in found] == [expected] * 4


def test_each_event_goes_to_one_reader() -> None:
    with scripted_pipeline(STEPS) as pipe, ThreadPoolExecutor(4) as pool:
        stream = pipe.stream("x")
        readers = [pool.submit(list, stream) for _ in range(4)]
        types = sorted(event.type for reader in readers for event in reader.result(PATIENCE))
        assert types == sorted(event.type for event in pipe.stream("x"))


def test_a_stream_of_another_loop_is_refused() -> None:
    async def make() -> Any:
        return pipe.astream("x")

    with scripted_pipeline(STEPS) as pipe:
        stream = asyncio.run(make())
        for read in (stream.result, stream.__anext__):
            with pytest.raises(StreamError, match=r"another event loop.*stream\(\)"):
                in_time(read)


def test_without_a_loop_an_async_stream_says_what_to_do() -> None:
    with scripted_pipeline(STEPS) as pipe:
        with pytest.raises(
            StreamError, match=r"no event loop of asyncio is running here\. Call this inside .*trio"
        ):
            pipe.astream("x")
        assert pipe.backend.draft.batches == []  # type: ignore[attr-defined]


def test_a_failure_is_told_as_often_as_it_is_asked_for() -> None:
    with scripted_pipeline(failing) as pipe:
        stream = pipe.stream("x")
        for _ in range(3):
            with pytest.raises(BackendError, match="it broke"):
                stream.result()
        assert list(stream) == []


def test_a_failure_of_an_async_stream_is_told_as_often_as_it_is_asked_for() -> None:
    async def main() -> None:
        stream = pipe.astream("x")
        for _ in range(3):
            with pytest.raises(BackendError, match="it broke"):
                await stream.result()

    with scripted_pipeline(failing) as pipe:
        in_time(main)


def test_a_failure_has_the_same_traceback_however_often_it_is_asked_for() -> None:
    with scripted_pipeline(failing) as pipe:
        stream, lines = pipe.stream("x"), []
        for _ in range(5):
            with pytest.raises(BackendError) as caught:
                stream.result()
            lines.append(len(traceback.format_tb(caught.value.__traceback__)))
    assert len({*lines[1:]}) == 1


def test_a_failure_shows_where_it_came_from_each_time() -> None:
    def judge(reward: float) -> float:
        raise BackendError("it broke here.")

    with scripted_pipeline(STEPS) as pipe:
        stream = pipe.stream("x", weighting=judge)
        for _ in range(2):
            with pytest.raises(RewardError) as caught:
                stream.result()
            names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
            assert "acceptance_probability" in names


def test_those_that_a_close_cuts_off_have_an_error_each() -> None:
    """One for all would show each caller the frames of all the others, and keep their variables."""
    draft = Gated(["a" * 50])
    pipe = RSDPipeline(Backend(draft, ScriptedWriter([]), ScriptedScorer([1.0]), 2))
    streams = [pipe.stream("x") for _ in range(6)]
    assert draft.entered.wait(30)
    closing = threading.Thread(target=pipe.close)
    closing.start()
    draft.gate.set()
    closing.join()
    errors = []
    for stream in streams:
        with pytest.raises(EngineClosedError) as caught:
            stream.result()
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == len(streams)
    assert len({len(traceback.format_tb(error.__traceback__)) for error in errors}) == 1


CLOSES = """
import signal, sys, threading, time
from rsd_integrations.testing import scripted_pipeline

begun, release = threading.Event(), threading.Event()

def slow(prompt, index, text):
    begun.set()
    release.wait(60)
    return "fine"

def tell():
    while not pipe.closed:
        time.sleep(0.01)
    print("ready", flush=True)

pipe = scripted_pipeline(slow)
stream = pipe.stream("x")
begun.wait(30)
threading.Thread(target=tell).start()
try:
    pipe.close()
except KeyboardInterrupt:
    print("interrupted", flush=True)
threading.Timer(0.5, release.set).start()
pipe.close()
print("engine runs:", any(t.name == "rsd-engine" for t in threading.enumerate()), release.is_set())
"""


def test_a_close_that_was_interrupted_can_be_waited_for_again() -> None:
    assert interrupted(CLOSES, after=0.2) == (0, "interrupted\nengine runs: False True\n", "")


def _closed(pipe: RSDPipeline) -> Callable[[], Generation]:
    with pipe.stream("x") as stream:
        next(stream)
    return stream.result


def _aclosed(pipe: RSDPipeline) -> Callable[[], Generation]:
    async def main() -> Any:
        async with pipe.astream("x") as stream:
            await anext(stream)
        return stream

    stream = in_time(main)
    return lambda: in_time(stream.result)


@pytest.mark.parametrize("make", [_closed, _aclosed])
def test_a_closed_stream_has_no_result(make: Callable[[RSDPipeline], Callable[[], Generation]]) -> None:
    with scripted_pipeline(STEPS) as pipe:
        result = make(pipe)
        for _ in range(2):
            with pytest.raises(StreamError, match="closed before its end"):
                result()


@pytest.mark.parametrize("read", ["its end", "its last event", "nothing"])
def test_a_stream_that_has_ended_is_not_cancelled(read: str) -> None:
    with scripted_pipeline(["only"]) as pipe:
        woken: list[Any] = []
        pipe._engine._wake = woken.append  # type: ignore[method-assign]
        with pipe.stream("x") as stream:
            if read == "its end":
                stream.result()
            elif read == "its last event":
                next(event for event in stream if event.generation)
        assert len(woken) == (read == "nothing")


def test_a_result_is_there_as_soon_as_it_was_shown() -> None:
    with scripted_pipeline(STEPS) as pipe, pipe.stream("x") as stream:
        while next(stream).type != "finished":
            pass
        stream.close()
        assert stream.result().text == "one\n\ntwo"
        assert stream.result().text == "one\n\ntwo"


def engines() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "rsd-engine"}


def test_requests_that_failed_keep_nothing(uncollected: None) -> None:
    """The error knows the frames that read the stream, and so the stream and its pipeline."""

    async def fail_async(pipe: RSDPipeline) -> None:
        with pytest.raises(BackendError):
            await pipe.agenerate("x")

    def streams() -> list[Any]:
        return [item for item in gc.get_objects() if type(item) in (EventStream, AsyncEventStream)]

    def left() -> int:
        """Once the engine's thread has let go of its last job, too."""
        end = time.monotonic() + PATIENCE
        while len(streams()) > before and time.monotonic() < end:
            time.sleep(0.01)
        return len(streams())

    others, before = engines(), len(streams())
    pipe = scripted_pipeline(failing)
    for _ in range(5):
        with pytest.raises(BackendError):
            pipe.generate("x")
        asyncio.run(fail_async(pipe))
    assert left() <= before
    (engine,) = engines() - others
    del pipe
    engine.join(PATIENCE)  # A pipeline that is dropped closes.
    assert not engine.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_stream_of_the_parent_is_refused_in_a_forked_child() -> None:
    def script(prompt: Any, index: int, text: str) -> str:
        time.sleep(0.01)
        return "on\n\n"

    with scripted_pipeline(script) as pipe, pipe.stream("x") as stream:
        ended = pipe.stream("x", max_steps=1)
        text = ended.result().text
        next(stream)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            try:
                list(stream)
            except EngineClosedError as error:
                known = list(ended) == [] and ended.result().text == text
                os._exit(0 if known and "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        next(stream)


def test_a_stream_that_outlives_its_loop_is_cancelled() -> None:
    """Whoever keeps an error keeps the frame that read the stream, and the stream with it."""
    with scripted_pipeline(endless, delay=0.001) as pipe:

        async def fails() -> None:
            stream = pipe.astream("x", max_steps=10**6)
            async for _ in stream:
                raise OSError("a bug")

        with pytest.raises(OSError, match="a bug") as kept:
            asyncio.run(fails())
        wait_for(lambda: not pipe.requests.running)
        assert kept.value.__traceback__ is not None


def test_closing_waits_for_no_thread_of_the_loop_s_pool() -> None:
    with scripted_pipeline(endless, delay=0.001) as pipe:

        async def closes() -> None:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(ThreadPoolExecutor(1))
            asked = asyncio.ensure_future(asyncio.to_thread(pipe.generate, "x", max_steps=10**6, timeout=60))
            await asyncio.sleep(0)
            await asyncio.wait_for(pipe.aclose(), PATIENCE)
            with pytest.raises(EngineClosedError):
                await asked

        asyncio.run(closes())
