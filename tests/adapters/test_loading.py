"""Who asks for a pipeline while it is loaded, and what becomes of them."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations import RSDPipeline, opening
from rsd_integrations.adapters import sources
from rsd_integrations.adapters.settings import LOADING, OPTIONS, RSDSettings
from rsd_integrations.adapters.sources import PipelineSource
from rsd_integrations.backends.torch.loading import load_backend
from rsd_integrations.backends.vllm.loading import load_remote
from rsd_integrations.errors import EngineClosedError, ModelError, StreamError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.testing import ScriptedWriter, scripted_pipeline
from rsd_integrations.waiting import wait_for_result
from tests.gated import PATIENCE, wait_for
from tests.processes import interrupted


def options_of(function: Any) -> dict[str, Any]:
    """Its keywords and their defaults."""
    return {
        one.name: one.default
        for one in signature(function).parameters.values()
        if one.kind == one.KEYWORD_ONLY
    }


def test_all_ways_to_load_have_the_same_options() -> None:
    here, served = options_of(RSDPipeline.from_pretrained), options_of(RSDPipeline.from_vllm)
    assert {*here} - {*OPTIONS} == {*options_of(load_backend)}
    assert here == {name: RSDSettings.model_fields[name].default for name in LOADING}
    assert {*served} - {*OPTIONS} == {*options_of(load_remote)}
    assert {*served} == {*opening._OF_SERVERS} < {*here}


class Load:
    """Stands in the place of the load: each waits at a gate, and may raise instead."""

    def __init__(self) -> None:
        self.raises: list[BaseException | None] = []
        """For each load in turn; those behind them raise nothing."""
        self.threads: list[threading.Thread] = []
        self.gate = threading.Event()
        self.pipe = scripted_pipeline(["fine"])

    def __call__(self, spec: Any) -> RSDPipeline:
        self.threads.append(threading.current_thread())
        turn = len(self.threads)
        assert self.gate.wait(PATIENCE)
        raised = self.raises[turn - 1] if turn <= len(self.raises) else None
        if raised is not None:
            raise raised
        return self.pipe

    def begun(self, times: int = 1) -> None:
        wait_for(lambda: len(self.threads) == times)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    made = Load()
    monkeypatch.setattr(sources, "_load", made)
    yield made
    made.gate.set()
    made.pipe.close()


@pytest.fixture
def source() -> PipelineSource:
    return PipelineSource({"draft": "d", "target": "t", "prm": "p"})


def settled(source: PipelineSource) -> bool:
    return source._loading is None


def test_without_asyncio_nothing_is_loaded(load: Load, source: PipelineSource) -> None:
    """As under trio, which would never get it."""
    with pytest.raises(StreamError, match=r"no event loop of asyncio .*in a thread\."):
        source.aget().send(None)
    assert settled(source) and not load.threads


async def test_any_number_of_tasks_wait_in_one_thread(load: Load, source: PipelineSource) -> None:
    """Not in those of asyncio's own pool, which look-ups of names share."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    tasks = [asyncio.create_task(source.aget()) for _ in range(40)]
    while not load.threads:
        await asyncio.sleep(0.001)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), PATIENCE) == "free"
    load.gate.set()
    assert await asyncio.gather(*tasks) == [load.pipe] * 40
    (thread,) = load.threads
    thread.join(PATIENCE)
    assert not thread.is_alive()  # Torch keeps helpers for it while it is.


async def test_a_task_that_is_cancelled_leaves_the_load_to_the_others(
    load: Load, source: PipelineSource
) -> None:
    tasks = [asyncio.create_task(source.aget()) for _ in range(3)]
    while not load.threads:
        await asyncio.sleep(0.001)
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.sleep(0)
    load.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert await tasks[1] is load.pipe
    assert len(load.threads) == 1


async def test_a_load_goes_on_when_all_were_cancelled(load: Load, source: PipelineSource) -> None:
    task = asyncio.create_task(source.aget())
    while not load.threads:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    load.gate.set()
    assert await source.aget() is load.pipe
    assert len(load.threads) == 1


@pytest.mark.parametrize("error", [ModelError("no such folder."), SystemExit("a panic")], ids=repr)
async def test_a_load_that_failed_is_tried_again_by_the_next_call(
    error: BaseException, load: Load, source: PipelineSource
) -> None:
    load.raises = [error]
    load.gate.set()

    async def ask() -> BaseException:
        with pytest.raises(type(error)) as raised:
            await source.aget()
        return raised.value

    load.gate.clear()
    tasks = [asyncio.create_task(ask()) for _ in range(2)]
    while not load.threads:
        await asyncio.sleep(0.001)
    load.gate.set()
    assert await asyncio.gather(*tasks) == [error] * 2
    assert len(load.threads) == 1
    assert await source.aget() is load.pipe
    assert len(load.threads) == 2


def test_a_thread_waits_for_the_load_that_a_task_began(load: Load, source: PipelineSource) -> None:
    with ThreadPoolExecutor(2) as pool:
        task = pool.submit(lambda: asyncio.run(source.aget()))
        load.begun()
        call = pool.submit(source.get)
        load.gate.set()
        assert task.result() is load.pipe
        assert call.result() is load.pipe
    assert len(load.threads) == 1


@pytest.mark.parametrize("waits", ["thread", "task"])
def test_a_caller_that_is_interrupted_spoils_the_load_for_nobody(
    waits: str, load: Load, source: PipelineSource
) -> None:
    load.raises = [KeyboardInterrupt()]
    with ThreadPoolExecutor(2) as pool:
        interrupted = pool.submit(source.get)
        load.begun()
        other = pool.submit(source.get if waits == "thread" else lambda: asyncio.run(source.aget()))
        load.gate.set()
        assert other.result() is load.pipe
        with pytest.raises(KeyboardInterrupt):
            interrupted.result()
    assert len(load.threads) == 2
    assert settled(source)


async def test_a_thread_that_cannot_be_started_leaves_nobody_waiting(
    load: Load, source: PipelineSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await source.aget()
    load.gate.set()
    assert await source.aget() is load.pipe


@pytest.mark.parametrize("way", ["thread", "task", "both"])
def test_what_failed_keeps_no_memory(
    way: str, source: PipelineSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it wait for the garbage collector: whoever tries again needs the room."""
    weights: list[weakref.ref[Any]] = []
    gate = threading.Event()

    def fail(spec: Any) -> Any:
        loaded = ScriptedWriter(["half of it"])
        weights.append(weakref.ref(loaded))
        assert gate.wait(PATIENCE)
        raise ModelError("the other half is missing.")

    def ask(through: str) -> str:
        try:
            source.get() if through == "thread" else asyncio.run(source.aget())
        except ModelError as error:
            return error.message
        return "it came"

    monkeypatch.setattr(sources, "_load", fail)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, "thread" if way == "both" else way)]
        wait_for(lambda: len(weights) == 1)
        if way == "both":
            asked.append(pool.submit(ask, "thread"))
        gc.disable()
        try:
            gate.set()
            assert {one.result() for one in asked} == {"the other half is missing."}
            wait_for(lambda: all(one() is None for one in weights))
        finally:
            gc.enable()


async def test_what_is_closed_while_it_loads_is_closed_when_it_is_there(load: Load) -> None:
    models = dict.fromkeys(("draft", "target", "prm"), "closed-while-loading")
    llm = ChatRSD(**models)
    call = asyncio.create_task(llm.ainvoke("x"))
    await asyncio.to_thread(load.begun)
    async with llm:
        pass
    load.gate.set()
    with pytest.raises(EngineClosedError):
        await call
    assert load.pipe.closed
    assert ChatRSD(**models).source is not llm.source


async def test_objects_made_behind_a_close_load_anew_at_once(load: Load) -> None:
    models = dict.fromkeys(("draft", "target", "prm"), "made-behind-a-close")
    old = ChatRSD(**models)
    call = asyncio.create_task(old.aload())
    await asyncio.to_thread(load.begun)
    old.close()
    assert ChatRSD(**models).source is not old.source
    load.gate.set()
    assert (await call).closed


async def test_what_is_loading_stays_what_it_was(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name may mean another folder by now; closing it closes what it is loading."""
    llm = ChatRSD(**dict.fromkeys(("draft", "target", "prm"), "here"))
    call = asyncio.create_task(llm.aload())
    await asyncio.to_thread(load.begun)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    llm.close()
    load.gate.set()
    assert (await call).closed


async def test_a_load_that_failed_when_it_was_closed_is_tried_again(
    load: Load, source: PipelineSource
) -> None:
    load.raises = [ModelError("it failed.")]
    call = asyncio.create_task(source.aget())
    await asyncio.to_thread(load.begun)
    source.close()
    load.gate.set()
    with pytest.raises(ModelError):
        await call
    assert not (await source.aget()).closed


async def test_those_that_wait_for_a_load_that_fails_share_no_frames(
    load: Load, source: PipelineSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    load.raises = [ModelError("it failed.")]
    waiting: list[threading.Thread] = []

    def noted(loading: Any) -> Any:
        waiting.append(threading.current_thread())
        return wait_for_result(loading)

    monkeypatch.setattr(sources, "wait_for_result", noted)

    def ask() -> int:
        with pytest.raises(ModelError) as caught:
            source.get()
        return len(traceback.format_tb(caught.value.__traceback__))

    begun = asyncio.create_task(source.aget())
    await asyncio.to_thread(load.begun)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        # Whoever comes later loads anew, and fails the test.
        await asyncio.to_thread(wait_for, lambda: len(waiting) == 4)
        load.gate.set()
        with pytest.raises(ModelError):
            await begun
        assert len({await asyncio.wrap_future(one) for one in asked}) == 1


LOADS_FOR_EVER = """
import asyncio, torch
from rsd_integrations.adapters import sources
from rsd_integrations.langchain import ChatRSD

def load(spec):
    numbers = torch.rand(900, 900)
    print("ready", flush=True)
    while True:  # A daemon that is inside of torch when the interpreter ends aborts the process.
        numbers = (numbers @ numbers).clamp(0, 1)

torch.set_num_threads(2)

sources._load = load
asyncio.run(ChatRSD(draft="d", target="t", prm="p").ainvoke("x"))
"""


def test_an_interrupted_process_does_not_wait_for_a_load() -> None:
    code, _, err = interrupted(LOADS_FOR_EVER)
    assert "KeyboardInterrupt" in err
    assert "terminate called" not in err
    assert code in (1, -signal.SIGINT, 130)
