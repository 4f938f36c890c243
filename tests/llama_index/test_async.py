"""Async that is real: the loop stays free, cancelling stops the engine, nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from rsd_integrations.adapters import sources
from rsd_integrations.errors import RSDError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.counting import ANSWER, QUESTION
from tests.gated import PATIENCE, endless, gated, open_when

CHAT = [ChatMessage(QUESTION)]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


async def read(stream: Any) -> list[Any]:
    return [state async for state in await stream]


@pytest.mark.parametrize("how", ["acomplete", "achat", "astream_complete", "astream_chat"])
async def test_the_loop_stays_free_while_models_work(how: str) -> None:
    """Each model waits for the loop; a loop that ran them would wait for itself."""
    loop, asked = asyncio.get_running_loop(), []

    def waits(value: Any) -> Any:
        asked.append(value)
        return asyncio.run_coroutine_threadsafe(asyncio.sleep(0, value), loop).result(PATIENCE)

    def writes(value: str) -> Any:
        return lambda prompt, index, text: None if index else waits(value)

    with scripted_pipeline(writes("a"), writes("b"), lambda prompt, index, body: waits(0.0)) as pipe:
        llm: Any = RSDLLM.from_pipeline(pipe)
        given = CHAT if "chat" in how else QUESTION
        await (read(getattr(llm, how)(given)) if "stream" in how else getattr(llm, how)(given))
    assert asked == ["a", 0.0, "b"]


class Amount(BaseModel):
    number: int


@pytest.mark.parametrize("how", ["apredict", "astream", "astructured_predict", "apredict_and_call"])
async def test_the_loop_stays_free_while_models_load(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex asks for ``metadata`` first, which would load on the loop; each load waits for the loop."""
    loop = asyncio.get_running_loop()

    def loads(spec: Any) -> RSDPipeline:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(PATIENCE)
        return scripted_pipeline(['{"number": 3}'])

    monkeypatch.setattr(sources, "_load", loads)
    prompt, tool = PromptTemplate("How many?"), FunctionTool.from_defaults(len)
    ways: dict[str, Callable[[Any], Any]] = {
        "apredict": lambda llm: llm.apredict(prompt),
        "astream": lambda llm: llm.astream(prompt),
        "astructured_predict": lambda llm: llm.astructured_predict(Amount, prompt),
        "apredict_and_call": lambda llm: llm.apredict_and_call([tool], "How many?"),
    }
    async with RSDLLM(**dict.fromkeys(("draft", "target", "prm"), f"loaded-by-{how}")) as llm:
        with contextlib.suppress(RSDError, ValueError):  # The scripted model calls no tool.
            await ways[how](llm)
        assert llm.source.loaded


@pytest.mark.parametrize("how", ["acomplete", "achat"])
async def test_wait_for_fires_on_time_and_the_engine_stops(how: str) -> None:
    with scripted_pipeline(endless, delay=0.001) as pipe:
        llm = RSDLLM.from_pipeline(pipe, max_steps=10**6)
        began = time.perf_counter()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(getattr(llm, how)(CHAT if how == "achat" else QUESTION), 0.1)
        assert time.perf_counter() - began < PATIENCE
        await until(lambda: pipe.backend.draft.open_sessions == 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
@pytest.mark.parametrize("leave", ["close", "drop", "break"])
async def test_abandoned_streams_stop(how: str, leave: str) -> None:
    with scripted_pipeline(endless, delay=0.001) as pipe:
        llm = RSDLLM.from_pipeline(pipe, max_steps=10**6)
        stream = getattr(llm, how)(CHAT if "chat" in how else QUESTION)
        if how.startswith("a"):
            stream = await stream
            await anext(stream)
            await (stream.aclose() if leave == "close" else asyncio.sleep(0))
        else:
            next(stream)
            if leave == "close":
                stream.close()
        if leave == "break" and how.startswith("a"):
            async for _ in stream:
                break
        elif leave == "break":
            for _ in stream:
                break
        del stream
        await until(lambda: pipe.backend.draft.open_sessions == 0)  # type: ignore[attr-defined]


async def test_a_cancelled_task_stops_the_engine() -> None:
    with scripted_pipeline(endless, delay=0.001) as pipe:
        llm = RSDLLM.from_pipeline(pipe, max_steps=10**6)
        tasks = [asyncio.create_task(llm.achat(CHAT)), asyncio.create_task(read(llm.astream_chat(CHAT)))]
        await until(lambda: pipe.backend.draft.open_sessions == 2)  # type: ignore[attr-defined]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: pipe.backend.draft.open_sessions == 0)  # type: ignore[attr-defined]


async def test_async_calls_start_no_threads(llm: Any) -> None:
    await llm.achat(CHAT)
    before = set(threading.enumerate())
    answers = await asyncio.gather(*(llm.achat(CHAT) for _ in range(20)))
    assert [answer.message.content for answer in answers] == [ANSWER] * 20
    assert set(threading.enumerate()) <= before


async def test_concurrent_calls_share_the_engines_batches() -> None:
    pipe, writer = gated()
    watcher = open_when(pipe, writer, 16)
    with pipe:
        llm = RSDLLM.from_pipeline(pipe)
        await asyncio.gather(*(llm.acomplete(f"question {number}") for number in range(16)))
    watcher.join()
    assert max(writer.batches) == 16


async def test_a_stream_may_be_read_in_another_task(llm: Any) -> None:
    stream = await llm.astream_chat(CHAT)
    states = await asyncio.create_task(read(asyncio.sleep(0, stream)))
    assert states[-1].message.content == ANSWER


def test_a_stream_may_be_read_in_another_thread(llm: Any) -> None:
    stream, states = llm.stream_chat(CHAT), []
    thread = threading.Thread(target=lambda: states.extend(stream))
    thread.start()
    thread.join()
    assert states[-1].message.content == ANSWER
