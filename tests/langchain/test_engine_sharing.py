"""One engine under all calls: full batches, cancelling, timeouts, failures that stay alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage

from rsd_integrations.errors import BackendError, ConfigError, EngineClosedError, PromptError, TimedOutError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.langchain import errors as langchain_errors
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.protocols import Backend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter, scripted_pipeline
from tests.counting import ANSWER, QUESTION, counting_pipeline
from tests.gated import PATIENCE, Gated, endless, gated, open_sessions, open_when, wait_for
from tests.langchain.modes import MODES, AsyncRecorder, Recorder


@pytest.mark.parametrize(
    "how", ["batch", "batch_as_completed", "chain", "abatch", "generate", "agenerate", "objects"]
)
def test_sixteen_calls_are_one_engine_batch(how: str) -> None:
    pipe, writer = gated()
    llm: Any = ChatRSD.from_pipeline(pipe)
    inputs: list[Any] = [f"question {n}" for n in range(16)]
    watcher = open_when(pipe, writer, 16)

    async def objects() -> list[Any]:
        models = [ChatRSD.from_pipeline(pipe, temperature=n / 10) for n in range(16)]
        return await asyncio.gather(*(m.ainvoke(text) for m, text in zip(models, inputs, strict=True)))

    chats: list[Any] = [[HumanMessage(text)] for text in inputs]

    async def agenerated() -> list[Any]:
        return list((await llm.agenerate(chats)).generations)

    async def abatch() -> list[Any]:
        return list(await llm.abatch(inputs))

    ways: dict[str, Callable[[], list[Any]]] = {
        "batch": lambda: llm.batch(inputs),
        "batch_as_completed": lambda: list(llm.batch_as_completed(inputs)),
        "chain": lambda: (llm | (lambda message: message.text)).batch(inputs),
        "abatch": lambda: asyncio.run(abatch()),
        "generate": lambda: llm.generate(chats).generations,
        "agenerate": lambda: asyncio.run(agenerated()),
        "objects": lambda: asyncio.run(objects()),
    }
    with pipe:
        answers = ways[how]()
    watcher.join()
    assert len(answers) == 16
    # All sixteen were there after the first round, and none left before the last.
    assert writer.batches[1:] == [16] * (len(writer.batches) - 2) + writer.batches[-1:]
    assert max(writer.batches) == 16


@pytest.mark.parametrize("how", ["batch", "batch_as_completed", "generate"])
@pytest.mark.parametrize("end", ["one fails", "interrupt"])
def test_a_batch_is_given_up_as_a_whole(how: str, end: str) -> None:
    """The caller does not wait for the others, which may take hours."""
    told = Recorder()
    inputs: list[Any] = ["x"] * 40
    if end == "one fails":
        inputs[7] = ""
    with scripted_pipeline(endless, delay=0.002) as pipe:
        llm: Any = ChatRSD.from_pipeline(pipe, max_steps=5000, max_tokens=50_000, callbacks=[told])
        ways: dict[str, Callable[[], object]] = {
            "batch": lambda: llm.batch(inputs),
            "batch_as_completed": lambda: list(llm.batch_as_completed(inputs)),
            "generate": lambda: llm.generate([[HumanMessage(one)] for one in inputs]),
        }
        with (
            pytest.raises(PromptError if end == "one fails" else KeyboardInterrupt),
            interrupted_when(lambda: end == "interrupt" and pipe.requests.running > 0),
        ):
            ways[how]()
        assert not told.ended
        # Those that were begun are told, each in its own thread, of which the caller waits for none.
        wait_for(lambda: len(told.failed) == len(told.models))
        wait_for(lambda: not pipe.requests.running + pipe.requests.waiting)
    for error in told.failed:
        other = isinstance(error, PromptError | EngineClosedError)
        assert other or "cancelled with the others of its batch" in str(error)


def test_answers_that_nobody_reads_on_are_given_up() -> None:
    with scripted_pipeline(endless, delay=0.002) as pipe:
        told = Recorder()
        llm = ChatRSD.from_pipeline(pipe, max_steps=5000, max_tokens=50_000, callbacks=[told])
        answers: Any = llm.batch_as_completed(["x"] * 20 + [""], return_exceptions=True)
        assert isinstance(next(answers)[1], PromptError)
        answers.close()
        wait_for(lambda: not pipe.requests.running + pipe.requests.waiting)
        assert not told.ended
        # What the caller does on his own is not part of the batch.
        assert llm.invoke("x", max_steps=2).text


@pytest.mark.parametrize("width", [None, 8])
@pytest.mark.parametrize(
    ("how", "end"),
    [
        *((how, end) for how in ("abatch", "chain", "agenerate") for end in ("one fails", "cancel")),
        *(("abatch_as_completed", end) for end in ("one fails", "cancel", "leave")),
    ],
)
async def test_an_async_batch_is_given_up_as_a_whole(how: str, end: str, width: int | None) -> None:
    inputs: list[Any] = ["x"] * 40
    if end != "cancel":
        inputs[3] = ""
    config: Any = {"max_concurrency": width}
    mine = asyncio.all_tasks()
    with scripted_pipeline(endless, delay=0.002) as pipe:
        llm: Any = ChatRSD.from_pipeline(pipe, max_steps=5000, max_tokens=50_000)

        async def completed() -> None:
            async for _ in llm.abatch_as_completed(inputs, config, return_exceptions=end == "leave"):
                break

        ways: dict[str, Callable[[], Any]] = {
            "abatch": lambda: llm.abatch(inputs, config),
            "chain": lambda: (llm | (lambda message: message.text)).abatch(inputs, config),
            "abatch_as_completed": completed,
            "agenerate": lambda: llm.agenerate([[HumanMessage(one)] for one in inputs]),
        }
        task = asyncio.ensure_future(ways[how]())
        if end == "cancel":
            await until(lambda: pipe.requests.running == 8)
            task.cancel()
        raised = {"one fails": pytest.raises(PromptError), "cancel": pytest.raises(asyncio.CancelledError)}
        with raised.get(end, nullcontext()):
            await asyncio.wait_for(task, PATIENCE)
        # The loop itself closes a generator that was left, in a task of its own.
        await until(lambda: not pipe.requests.running + pipe.requests.waiting and asyncio.all_tasks() == mine)


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("inputs", [[QUESTION], [QUESTION, QUESTION]])
async def test_every_way_of_asking_takes_what_others_take(llm: Any, inputs: list[Any]) -> None:
    given: dict[str, Any] = {"stop": ["TWO"], "return_exceptions": True}
    wrong = {**given, "max_tokens": 0}
    for options, expected in ((given, "one\n\n"), (wrong, "refused")):
        found = [
            llm.batch(inputs, **options),
            [answer for _, answer in llm.batch_as_completed(inputs, **options)],
            await llm.abatch(inputs, **options),
            [answer async for _, answer in llm.abatch_as_completed(inputs, **options)],
        ]
        for answers in found:
            shown = ["refused" if isinstance(one, ConfigError) else one.text for one in answers]
            assert shown == [expected] * len(inputs)
    chats = [[HumanMessage(one)] for one in inputs]
    limits: Any = ({"stop": ["TWO"]}, "one\n\n"), ({"max_tokens": 2}, "on")
    for limit, expected in limits:
        for result in (llm.generate(chats, **limit), await llm.agenerate(chats, **limit)):
            assert [one.text for (one,) in result.generations] == [expected] * len(inputs)
        streamed = [chunk.text async for chunk in llm.astream(QUESTION, **limit)]
        assert "".join(streamed) == "".join(chunk.text for chunk in llm.stream(QUESTION, **limit)) == expected


@pytest.mark.parametrize("how", ["abatch", "abatch_as_completed"])
async def test_an_async_batch_asks_no_more_at_once_than_it_may(how: str) -> None:
    pipe, writer = gated()
    llm: Any = ChatRSD.from_pipeline(pipe)
    inputs, config = ["x"] * 6, {"max_concurrency": 2}

    async def completed() -> list[Any]:
        return [answer async for _, answer in llm.abatch_as_completed(inputs, config)]

    with pipe:
        task = asyncio.ensure_future(
            completed() if how == "abatch_as_completed" else llm.abatch(inputs, config)
        )
        await until(lambda: pipe.requests.running + pipe.requests.waiting == 2)
        for _ in range(100):  # A third would come within a round of the loop.
            await asyncio.sleep(0)
        assert pipe.requests.running + pipe.requests.waiting == 2
        writer.gate.set()
        assert len(await asyncio.wait_for(task, PATIENCE)) == 6


@contextmanager
def interrupted_when(there: Callable[[], bool]) -> Iterator[None]:
    """The main thread gets a KeyboardInterrupt once this is so."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if there():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_batch_may_be_as_wide_as_servers_take() -> None:
    pipe, writer = gated(256)
    watcher = open_when(pipe, writer, 256)
    with pipe:
        ChatRSD.from_pipeline(pipe).batch(["x"] * 256)
    watcher.join()
    assert max(writer.batches) == 256


@pytest.mark.parametrize("how", ["generate", "agenerate"])
def test_generate_keeps_order_runs_and_errors_apart(how: str) -> None:
    def script(prompt: Any, index: int, text: str) -> str | Exception | None:
        asked = str(prompt[0]["content"])
        return OSError("it broke") if asked == "bad" else f"to {asked}" if index == 0 else None

    run_id, recorder = uuid4(), Recorder()
    with scripted_pipeline(script) as pipe:
        llm = ChatRSD.from_pipeline(pipe)

        def generate(texts: list[str], **more: Any) -> Any:
            chats: list[Any] = [[HumanMessage(text)] for text in texts]
            return (
                llm.generate(chats, **more)
                if how == "generate"
                else asyncio.run(llm.agenerate(chats, **more))
            )

        result = generate(["a", "b", "c"], callbacks=[recorder], run_id=run_id)
        assert [generations[0].text for generations in result.generations] == ["to a", "to b", "to c"]
        assert next(iter(result.run or ())).run_id == run_id
        assert {run.run_id for run in result.run or ()} == set(recorder.models)
        with pytest.raises(OSError, match="it broke"):
            generate(["a", "bad"])
        assert generate([]).generations == []


def test_max_concurrency_is_respected() -> None:
    pipe, writer = gated()
    watcher = open_when(pipe, writer, 3)
    with pipe:
        ChatRSD.from_pipeline(pipe).batch(["x"] * 9, {"max_concurrency": 3})
    watcher.join()
    assert max(writer.batches) == 3


async def test_cancelling_stops_the_engine_within_a_round() -> None:
    writer = Gated(endless)
    with RSDPipeline(Backend(writer, ScriptedWriter([]), ScriptedScorer([1.0]), 4)) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        for call in (llm.ainvoke(QUESTION), collect(llm)):
            writer.gate.clear()
            writer.entered.clear()
            task = asyncio.create_task(call)
            await asyncio.to_thread(writer.entered.wait, PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            rounds = len(writer.batches)
            writer.gate.set()
            await asyncio.to_thread(wait_for, lambda: open_sessions(pipe) == 0)
            assert len(writer.batches) <= rounds + 1


async def collect(llm: Any) -> str:
    return "".join([chunk.content async for chunk in llm.astream(QUESTION)])


async def test_leaving_a_stream_frees_the_engine() -> None:
    # So slow that it would not end by itself.
    with scripted_pipeline(endless, delay=0.005) as pipe:
        llm = ChatRSD.from_pipeline(pipe, max_steps=10**6)
        stream = llm.stream(QUESTION)
        assert next(stream).content == "again\n\n"
        stream.close()
        wait_for(lambda: open_sessions(pipe) == 0)
        async for _ in llm.astream(QUESTION):
            break
        await asyncio.to_thread(wait_for, lambda: open_sessions(pipe) == 0)
        async for event in llm.astream_events(QUESTION, version="v2"):
            if event["event"] == "on_chat_model_stream":
                break
        await asyncio.to_thread(wait_for, lambda: open_sessions(pipe) == 0)


@pytest.mark.parametrize(
    ("chain", "leave"),
    [
        pytest.param(chain, leave, marks=[] if leave.startswith(usual) else pytest.mark.slow)
        for chain, usual in (
            ("llm", "break"),
            ("llm | StrOutputParser()", ()),
            ("node | llm | StrOutputParser()", "held"),
        )
        for leave in ("break", "return", "held.append(stream); return")
    ],
)
def test_leaving_a_stream_as_the_loop_ends_is_silent(chain: str, leave: str) -> None:
    """The loop then closes all generators at once: those of LangChain, and those of ours."""
    script = f"""
import asyncio, time
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.testing import scripted_pipeline

class Slow(AsyncCallbackHandler):
    async def on_llm_error(self, *args, **kwargs):
        await asyncio.sleep(0.01)
    async def on_chain_error(self, *args, **kwargs):
        await asyncio.sleep(0.01)

pipe = scripted_pipeline(lambda *_: "again\\n\\n", delay=0.002)
llm, node, held = ChatRSD.from_pipeline(pipe, max_steps=10**6), RunnableLambda(lambda text: text), []

async def main():
    stream = ({chain}).astream("x", {{"callbacks": [Slow()]}})
    async for chunk in stream:
        {leave}

asyncio.run(main())
end = time.monotonic() + {PATIENCE}
while pipe.backend.draft.open_sessions and time.monotonic() < end:
    time.sleep(0.005)
print(pipe.backend.draft.open_sessions)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stderr, done.stdout.strip()) == ("", "0")


async def test_async_calls_start_no_threads(llm: Any) -> None:
    await llm.ainvoke(QUESTION)
    before = set(threading.enumerate())
    handler = AsyncRecorder()
    await asyncio.gather(*(llm.ainvoke(QUESTION, {"callbacks": [handler]}) for _ in range(8)))
    async for _ in llm.astream(QUESTION, {"callbacks": [handler]}):
        pass
    assert set(threading.enumerate()) <= before
    assert len(handler.custom) == 27


async def test_a_timeout_raises() -> None:
    with scripted_pipeline(endless, delay=0.001) as pipe:
        llm = ChatRSD.from_pipeline(pipe, timeout=0.05, max_steps=10**6)
        # In a shorter time it need not have had its turn.
        with pytest.raises(
            TimedOutError, match=r"no whole answer within timeout=0\.5 seconds; steps done by then: \d+"
        ):
            llm.invoke(QUESTION, timeout=0.5)
        with pytest.raises(TimeoutError):
            await llm.ainvoke(QUESTION)
        with pytest.raises(TimeoutError):
            list(llm.stream(QUESTION))
        with pytest.raises(TimeoutError):
            await collect(llm)
        assert llm.invoke(QUESTION, timeout=None, max_steps=1).content == "again\n\n"
        wait_for(lambda: open_sessions(pipe) == 0)


@pytest.mark.parametrize("wrong", [0, -1.0])
def test_a_timeout_that_is_no_time(llm: Any, pipe: Any, wrong: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        ChatRSD.from_pipeline(pipe, timeout=wrong)
    with pytest.raises(ValueError, match="timeout"):
        llm.invoke(QUESTION, timeout=wrong)


async def test_a_failure_stays_alone() -> None:
    def script(prompt: Any, index: int, text: str) -> Any:
        if "bad" in str(prompt) and index == 1:
            return BackendError("it broke.")
        return "fine\n\n" if index < 2 else None

    with scripted_pipeline(script) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        inputs = ["good", "bad", "good"]
        for results in (
            llm.batch(inputs, return_exceptions=True),
            await llm.abatch(inputs, return_exceptions=True),
        ):
            contents = [getattr(result, "content", type(result)) for result in results]
            assert contents == ["fine\n\nfine\n\n", langchain_errors.BackendError, "fine\n\nfine\n\n"]
        wait_for(lambda: open_sessions(pipe) == 0)


def test_many_threads_and_settings_at_once() -> None:
    """Each gets its own answer, whoever runs beside it."""
    with counting_pipeline(max_batch_size=5) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        thresholds = [0.7, 0.05, 2.0, 0.0] * 12
        configs: Any = [{"configurable": {"threshold": threshold}} for threshold in thresholds]
        from langchain_core.runnables import ConfigurableField

        open_llm = llm.configurable_fields(threshold=ConfigurableField(id="threshold"))
        answers = [message.content for message in open_llm.batch([QUESTION] * 48, configs)]
    plain = "one\n\ntwo\n\nthree"
    assert answers == [ANSWER, plain, "ONE\n\nTWO\n\nTHREE", plain] * 12


@pytest.mark.parametrize("mode", ["invoke", "stream", "ainvoke", "astream"])
def test_an_error_that_somebody_keeps_does_not_keep_the_engine_busy(mode: str) -> None:
    class Strict(BaseCallbackHandler):
        raise_error = True

        def on_custom_event(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("stop here")

    # So slow that it would not end by itself.
    with scripted_pipeline(endless, delay=0.005) as pipe:
        llm = ChatRSD.from_pipeline(pipe, max_steps=10**6)
        with pytest.raises(OSError, match="stop here") as kept:
            MODES[mode](llm, [Strict()])
        wait_for(lambda: open_sessions(pipe) == 0)
        assert kept.value.__traceback__ is not None
