"""The engine under many callers: nothing hangs, nothing leaks, a failure fails its own request."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
import math
import os
import pickle
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.engine import thread as engine_thread
from rsd_integrations.engine.job import Job
from rsd_integrations.engine.streams import EventStream
from rsd_integrations.errors import (
    BackendError,
    ConfigError,
    EngineClosedError,
    PromptError,
    PromptLengthError,
    RewardError,
    RSDError,
)
from rsd_integrations.output import Output
from rsd_integrations.protocols import Backend, WindowFull, WriterSession
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter, scripted_pipeline
from rsd_integrations.types import RequestCounts
from tests.gated import PATIENCE, endless, open_sessions, wait_for
from tests.gated import Gated as Held
from tests.tiny_models import causal, token_classifier, tokenizer, trio

STEPS = ["one\n\n", "two\n\n", "three\n\n", "four"]


class Gated(ScriptedWriter):
    """A writer whose rounds need permits, so that a test decides what happens between two rounds."""

    def __init__(self, script: Any, **options: Any) -> None:
        super().__init__(script, **options)
        self._permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def allow(self, rounds: int) -> None:
        """Let it go on for some rounds, and wait until it asks for one more."""
        for _ in range(rounds):
            assert self.entered.acquire(timeout=PATIENCE)
            self._permits.release()

    def let_go(self) -> None:
        """No more gate."""
        self._permits.release(10**6)

    def advance(self, sessions: Sequence[WriterSession]) -> Any:
        self.entered.release()
        assert self._permits.acquire(timeout=PATIENCE)
        return super().advance(sessions)


def over(draft: ScriptedWriter, *, target: Any = None, rewards: Any = (1.0,), **options: Any) -> RSDPipeline:
    """A pipeline over these scripted models."""
    target = target if target is not None else ScriptedWriter(STEPS, window=10**9)
    return RSDPipeline(Backend(draft, target, ScriptedScorer(rewards, window=10**9), **options))


def test_a_storm_of_threads_and_tasks() -> None:
    """32 threads and 32 tasks; answers, cancels, timeouts and failures mixed: all come back, all is free."""

    def script(prompt: Any, index: int, text: str) -> str | Exception | None:
        if "fail" in prompt and index == 2:
            return BackendError("it broke.")
        return f"{prompt} {index}\n\n" if index < 5 else None

    def reward(prompt: Any, index: int, body: str) -> float:
        return math.nan if "nan" in prompt and index == 1 else (hash((prompt, index)) % 10) / 10

    with scripted_pipeline(script, rewards=reward, max_batch_size=5) as pipe:
        outcomes: list[str] = []
        threads = [threading.Thread(target=_caller, args=(pipe, n, outcomes)) for n in range(32)]
        for thread in threads:
            thread.start()
        outcomes += asyncio.run(_callers(pipe))
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert len(outcomes) == 32 * 6 + 32 * 4
        assert set(outcomes) == {"stop", "BackendError", "RewardError", "cancelled", "closed"}
        wait_for(lambda: open_sessions(pipe) == 0)
        assert pipe.generate("after").text == "".join(f"after {n}\n\n" for n in range(5))


def _caller(pipe: RSDPipeline, number: int, outcomes: list[str]) -> None:
    rng = random.Random(number)
    for turn in range(6):
        kind = rng.choice(["ok", "ok", "fail", "nan", "close", "cancel"])
        stream = pipe.stream(f"{kind} {number} {turn}", seed=turn)
        if kind == "close":
            next(stream)
            stream.close()
            outcomes.append("closed")
            continue
        if kind == "cancel":
            stream.cancel()
        outcomes.append(_outcome(stream.result, kind))


def _outcome(result: Callable[[], Generation], kind: str) -> str:
    try:
        generation = result()
    except RSDError as error:
        expected = {"fail": "BackendError", "nan": "RewardError"}[kind]
        return expected if type(error).__name__ == expected else f"{kind}: {error!r}"
    if kind == "ok" and generation.finish_reason != "stop":
        return f"{kind}: {generation!r}"
    return generation.finish_reason


async def _callers(pipe: RSDPipeline) -> list[str]:
    async def one(number: int) -> list[str]:
        rng, outcomes = random.Random(1000 + number), []
        for turn in range(4):
            kind = rng.choice(["ok", "fail", "close"])
            task = asyncio.create_task(pipe.agenerate(f"{kind} {number} {turn}"))
            if kind == "close":
                await asyncio.sleep(0)
                task.cancel()
            try:
                outcomes.append((await task).finish_reason)
            except asyncio.CancelledError:
                outcomes.append("closed")
            except BackendError:
                outcomes.append("BackendError")
        return outcomes

    return [outcome for outcomes in await asyncio.gather(*map(one, range(32))) for outcome in outcomes]


def test_what_a_request_gets_does_not_depend_on_the_others() -> None:
    def script(prompt: Any, index: int, text: str) -> str | None:
        return f"{prompt}{index}" * 3 + "\n\n" if index < 6 else None

    def reward(prompt: Any, index: int, body: str) -> float:
        return random.Random(f"{prompt}{index}").random()

    target = lambda prompt, index, text: f"[{index}]\n\n"  # noqa: E731
    prompts = [f"p{n}" for n in range(40)]
    with scripted_pipeline(script, target, reward, max_batch_size=7) as pipe, ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda prompt: pipe.generate(prompt, weighting="clip", seed=5), prompts))
        for prompt, generation in zip(prompts, together, strict=True):
            alone = pipe.generate(prompt, weighting="clip", seed=5)
            assert (alone.text, alone.usage) == (generation.text, generation.usage)


@pytest.mark.parametrize(
    ("end", "limit", "together"),
    [("", None, True), ("x", "max_tokens", True), ("x", "max_step_tokens", False), ("\n\n", None, False)],
)
def test_last_steps_wait_for_each_other_s_scores(end: str, limit: str | None, together: bool) -> None:
    """Of several lengths. A step that others follow is not held up where its draft cannot write on."""
    draft = Gated(lambda prompt, index, text: prompt + end if index == 0 else None)
    scorer = ScriptedScorer([1.0])
    with RSDPipeline(Backend(draft, ScriptedWriter([]), scorer, 8)) as pipe:
        limits: dict[int, dict[str, Any]] = {
            length: {limit: length} if limit else {} for length in range(1, 9)
        }
        streams = [pipe.stream("x" * length, **limits[length]) for length in limits]
        # All are there before the first round is let go.
        assert draft.entered.acquire(timeout=PATIENCE)
        wait_for(lambda: len(pipe._engine._live) + pipe._engine._inbox.qsize() == 8)
        draft.let_go()
        for length, stream in enumerate(streams, 1):
            assert stream.result().text == "x" * length + end * (limit is None)
    assert sum(scorer.batches) == 8
    assert len(scorer.batches) <= 4 if together else scorer.batches == [1] * 8


@pytest.mark.parametrize("queued", [False, True])
def test_closing_the_pipeline_fails_all_callers(queued: bool) -> None:
    draft = Gated(endless)
    pipe = over(draft, max_batch_size=1 if queued else 8)
    errors: list[BaseException] = []

    def call(n: int) -> None:
        try:
            pipe.generate(f"{n}", max_steps=10**6)
        except EngineClosedError as error:
            errors.append(error)

    async def acall() -> None:
        with pytest.raises(EngineClosedError):
            await pipe.agenerate("async", max_steps=10**6)
        errors.append(EngineClosedError(""))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(6)]
    threads.append(threading.Thread(target=lambda: asyncio.run(acall())))
    for thread in threads:
        thread.start()
    draft.allow(3)
    draft.let_go()
    pipe.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(errors) == 7
    assert open_sessions(pipe) == 0
    pipe.close()  # Twice is safe.
    with pytest.raises(EngineClosedError, match="closed"):
        pipe.generate("late")


def test_a_stream_that_is_read_to_the_end_of_the_engine_raises() -> None:
    draft = Gated(endless)
    pipe = over(draft)
    stream = pipe.stream("x", max_steps=10**6)
    draft.allow(7)
    draft.let_go()
    assert next(stream).type == "proposed"
    pipe.close()
    with pytest.raises(EngineClosedError):
        for _ in stream:
            pass
    assert list(stream) == []


def test_a_dropped_pipeline_ends_its_thread() -> None:
    pipe = scripted_pipeline(STEPS)
    thread = pipe._engine._thread
    pipe.generate("x")
    del pipe
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_dropping_a_pipeline_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's collector may drop it on the thread whose lock its models' round is waiting for."""
    monkeypatch.setattr(engine_thread, "_PATIENCE", 0.1)
    lock, waiting = threading.Lock(), threading.Event()

    def script(prompt: Any, index: int, text: str) -> str | None:
        waiting.set()
        with lock:
            return None

    pipe = over(ScriptedWriter(script))
    thread = pipe._engine._thread
    with lock:
        stream: Any = pipe.stream("x")
        assert waiting.wait(PATIENCE)
        del pipe, stream
        gc.collect()
        assert thread.is_alive()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_stream_keeps_its_pipeline_alive() -> None:
    stream = scripted_pipeline(STEPS).stream("x")
    gc.collect()
    assert stream.result().text == "".join(STEPS)

    async def ask() -> Generation:
        stream = scripted_pipeline(STEPS).astream("x")
        gc.collect()
        return await stream.result()

    assert asyncio.run(ask()).text == "".join(STEPS)


@pytest.mark.parametrize("read", [0, 1, 5])
def test_a_dropped_stream_frees_its_place(read: int) -> None:
    """With one place only, the next request runs only if the dropped one has left."""
    with over(
        ScriptedWriter(
            lambda prompt, n, text: "again\n\n" if prompt == "long" or n < 3 else None, window=10**9
        ),
        max_batch_size=1,
    ) as pipe:
        stream = pipe.stream("long", max_steps=10**6)
        for _ in range(read):
            next(stream)
        del stream
        assert pipe.generate("next").finish_reason == "stop"
        wait_for(lambda: open_sessions(pipe) == 0)


def test_a_dropped_async_stream_frees_its_place() -> None:
    async def drop(pipe: RSDPipeline) -> Generation:
        async for _ in pipe.astream("x", max_steps=10**6):
            break
        return await pipe.agenerate("y", max_steps=2)

    with over(ScriptedWriter(endless, window=10**9), max_batch_size=1) as pipe:
        assert asyncio.run(asyncio.wait_for(drop(pipe), PATIENCE)).finish_reason == "length"
        wait_for(lambda: open_sessions(pipe) == 0)


def test_cancel_gives_what_was_committed() -> None:
    draft = Gated(endless)
    with over(draft) as pipe:
        stream = pipe.stream("x")
        draft.allow(7)  # One step of seven characters,
        draft.allow(3)  # and three more.
        assert draft.entered.acquire(timeout=PATIENCE)
        stream.cancel()
        draft.let_go()
        generation = stream.result()
    assert generation.finish_reason == "cancelled"
    assert generation.text == "again\n\n"
    assert len(generation.steps) == 1
    # The round in progress is the last: 7 + 3 + 1.
    assert generation.usage.draft.generated == 11
    assert generation.usage.draft.discarded == 4
    assert generation.usage.completion_tokens == 7


def test_a_timeout_cancels() -> None:
    with over(ScriptedWriter(endless, delay=0.001)) as pipe:
        generation = pipe.generate("x", timeout=0.3, max_steps=10**6)
        assert generation.finish_reason == "cancelled"
        assert generation.text == "".join(step.text for step in generation.steps)
        agenerated = asyncio.run(pipe.agenerate("x", timeout=0.01, max_steps=10**6))
        assert agenerated.finish_reason == "cancelled"
        assert open_sessions(pipe) == 0


def test_a_timeout_counts_while_queued() -> None:
    writer = ScriptedWriter(endless, delay=0.001)
    with over(writer, max_batch_size=1) as pipe, pipe.stream("long", max_steps=10**6):
        generation = pipe.generate("x", timeout=0.05)
        assert (generation.finish_reason, generation.text, generation.steps) == ("cancelled", "", ())


def noting(model: Any) -> list[Any]:
    """The prompts that are opened in a model from here on."""
    prompts, opened = [], model.open

    def noted(prompt: Any, *more: Any) -> Any:
        prompts.append(prompt)
        return opened(prompt, *more)

    model.open = noted
    return prompts


def test_a_request_that_is_cancelled_before_its_turn_is_never_begun() -> None:
    """Nothing of it is rendered, encoded or opened; what it tells is an answer that holds nothing."""
    draft, target, scorer = Gated(STEPS, window=100), ScriptedWriter(STEPS), ScriptedScorer([1.0])
    opened = [noting(model) for model in (draft, target, scorer)]
    with RSDPipeline(Backend(draft, target, scorer, 1)) as pipe:
        first = pipe.stream("first")
        assert draft.entered.acquire(timeout=PATIENCE)
        # The second would be refused, were it looked at.
        waiting = [pipe.stream(prompt, seed=7, threshold=0.5) for prompt in ("second", "x" * 1000)]
        scores = EventStream(pipe._submit("steps", None, steps=("one", "two")))
        for stream in (*waiting, scores):
            stream.cancel()
        late = pipe.stream("late", seed=7, threshold=0.5, timeout=1e-9)
        last = pipe.stream("last")
        draft.let_go()
        for stream in (*waiting, late):
            (event,) = stream
            empty = Generation(text="", finish_reason="cancelled", seed=7, threshold=0.5)
            assert (event.type, event.index, event.threshold, event.generation) == ("finished", 0, 0.5, empty)
            assert stream.result() == empty
        assert scores.result().finish_reason == "cancelled"
        assert [first.result().text, last.result().text] == ["".join(STEPS)] * 2
    assert opened == [["first", "last"]] * 3


def test_requests_that_fail_at_their_start_hold_nobody_up() -> None:
    """They leave their room to the next at once; a round comes between all the same."""
    draft = Gated(endless, window=100)
    opened = noting(draft)
    with over(draft, max_batch_size=3) as pipe:
        first = pipe.stream("first", max_steps=10**6)
        draft.allow(1)
        long = [pipe.stream("x" * 300, seed=n) for n in range(10)]
        for rounds in range(1, 4):
            draft.allow(1)
            assert draft.entered.acquire(timeout=PATIENCE)
            draft.entered.release()
            assert len(opened) <= 1 + 3 * (rounds + 1)
        draft.let_go()
        for stream in long:
            with pytest.raises(PromptLengthError):
                stream.result()
        first.cancel()


def test_it_tells_how_many_are_at_work_and_how_many_wait() -> None:
    def counts(running: int, waiting: int) -> RequestCounts:
        return RequestCounts(running=running, waiting=waiting, max_batch_size=2)

    draft = Gated(STEPS)
    with over(draft, max_batch_size=2) as pipe:
        assert pipe.requests == counts(0, 0)
        first = pipe.stream("first")
        assert draft.entered.acquire(timeout=PATIENCE)
        assert pipe.requests == counts(1, 0)
        others = [pipe.stream(f"{n}") for n in range(5)]
        assert pipe.requests == counts(1, 5)  # No round has come since.
        others[2].cancel()
        late = pipe.stream("late", timeout=1e-9)
        draft.let_go()
        assert {stream.result().finish_reason for stream in (others[2], late)} == {"cancelled"}
        assert {stream.result().finish_reason for stream in (first, *others[:2], *others[3:])} == {"stop"}
        wait_for(lambda: pipe.requests == counts(0, 0))


def test_a_closed_pipeline_has_nothing_to_do() -> None:
    draft = Gated(endless)
    pipe = over(draft, max_batch_size=2)
    streams = [pipe.stream(f"{n}", max_steps=10**6) for n in range(5)]
    assert draft.entered.acquire(timeout=PATIENCE)
    draft.let_go()
    pipe.close()
    assert (pipe.requests.running, pipe.requests.waiting) == (0, 0)
    for stream in streams:
        with pytest.raises(EngineClosedError):
            stream.result()


def test_requests_that_wait_are_not_looked_at_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, time_left = Counter[Job](), Job.time_left.fget
    assert time_left is not None

    def counted(job: Job) -> float | None:
        looks[job] += 1
        left: float | None = time_left(job)
        return left

    monkeypatch.setattr(Job, "time_left", property(counted))
    draft = Gated(endless)
    with over(draft, max_batch_size=1) as pipe:
        streams = [pipe.stream(f"{n}", timeout=10**6, max_steps=10**6) for n in range(9)]
        draft.allow(30)
        assert draft.entered.acquire(timeout=PATIENCE)
        assert looks[streams[0]._job] >= 30
        assert max(looks[stream._job] for stream in streams[1:]) <= 1
        for stream in streams:
            stream.cancel()
        draft.let_go()
        assert {stream.result().finish_reason for stream in streams} == {"cancelled"}


def test_a_request_whose_time_is_up_ends_wherever_it_waits() -> None:
    """Before those that came earlier, and before the next round."""
    draft = Gated(endless)
    with over(draft, max_batch_size=1) as pipe:
        first = pipe.stream("first", max_steps=10**6)
        draft.allow(1)
        others = [pipe.stream(f"{n}", timeout=10**6) for n in range(3)]
        late = pipe.stream("late", timeout=1e-9)
        more = pipe.stream("more")
        draft.allow(1)
        assert draft.entered.acquire(timeout=PATIENCE)
        assert late.result().finish_reason == "cancelled"
        for stream in (first, *others, more):
            stream.cancel()
        draft.let_go()


def test_what_a_waiting_request_asked_cannot_be_altered() -> None:
    def told(prompt: Any, index: int, text: str, output: Any) -> str | None:
        return json.dumps([prompt, output.tools, output.schema]) if index == 0 else None

    call = {"type": "function", "function": {"name": "f", "arguments": {"of": [1]}}}
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": copy.deepcopy(schema)}}
    asked = copy.deepcopy([chat, [tool], schema])
    draft = Gated(told)
    with over(draft, max_batch_size=1) as pipe:
        first = pipe.stream("first")
        draft.allow(0)
        waiting = pipe.stream(chat, output=Output(tools=(tool,), schema=schema))
        chat[0]["content"][0]["text"] = "Bye"
        call["function"]["arguments"]["of"].append(2)  # type: ignore[index]
        for altered in (schema, tool["function"]["parameters"]):  # type: ignore[index]
            altered["properties"]["a"]["enum"][0] = "y"
        draft.let_go()
        first.result()
        assert json.loads(waiting.result().text) == asked


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan])
def test_a_timeout_must_be_a_time(timeout: float) -> None:
    with scripted_pipeline(STEPS) as pipe, pytest.raises(ConfigError, match="timeout"):
        pipe.generate("x", timeout=timeout)


def test_cancelling_a_task_stops_the_models_within_a_round() -> None:
    draft = Gated(endless)

    async def cancel_it(pipe: RSDPipeline) -> None:
        task = asyncio.create_task(pipe.agenerate("x"))
        await asyncio.to_thread(draft.allow, 9)
        await asyncio.to_thread(draft.entered.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with over(draft) as pipe:
        asyncio.run(cancel_it(pipe))
        draft.let_go()
        wait_for(lambda: open_sessions(pipe) == 0)
        assert len(draft.batches) == 10  # The round it was in, and no other.


def test_closing_from_a_running_loop_does_not_hang() -> None:
    async def main() -> None:
        async with scripted_pipeline(endless) as pipe:
            stream = pipe.astream("x", max_steps=10**6)
            await anext(stream)
        with pytest.raises(EngineClosedError):
            await stream.result()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_an_answer_waits_for_a_place_in_order() -> None:
    draft = Gated(lambda prompt, n, text: "x\n\n" if n < 1 else None)
    with over(draft, max_batch_size=2) as pipe:
        streams = [pipe.stream(f"{n}") for n in range(5)]
        draft.let_go()
        assert [stream.result().text for stream in streams] == ["x\n\n"] * 5
        assert max(draft.batches) == 2


@pytest.mark.parametrize("reward", [math.nan, -0.1, 1.1, math.inf])
def test_a_reward_outside_0_to_1_names_the_step(reward: float) -> None:
    with scripted_pipeline(STEPS, rewards=[1.0, reward]) as pipe:
        with pytest.raises(RewardError, match=r"step 1: 'two") as caught:
            pipe.generate("x")
        assert repr(reward) in str(caught.value)
        assert open_sessions(pipe) == 0


def test_a_weighting_that_is_no_probability_is_refused() -> None:
    with scripted_pipeline(STEPS, rewards=[0.5]) as pipe:
        for weighting in (lambda reward: 1.5, lambda reward: math.nan):
            with pytest.raises(RewardError, match="no probability"):
                pipe.generate("x", weighting=weighting)
        with pytest.raises(RewardError, match="ZeroDivisionError"):
            pipe.generate("x", weighting=lambda reward: 1 / 0)
        assert pipe.generate("x", weighting=lambda reward: 1.0).text == "".join(STEPS)


@pytest.mark.parametrize("error", [SystemExit("bye"), KeyboardInterrupt(), pytest.fail.Exception("no")])
def test_a_weighting_that_would_end_the_thread_fails_its_request_alone(error: BaseException) -> None:
    def weighting(reward: float) -> float:
        raise error

    with scripted_pipeline(STEPS, rewards=[0.5]) as pipe:
        other = pipe.stream("y")
        with pytest.raises(RewardError, match=rf"reward 0\.5: {type(error).__name__}") as caught:
            pipe.generate("x", weighting=weighting)
        assert caught.value.__cause__ is error
        assert other.result().text == "".join(STEPS)
        assert not pipe.closed


@pytest.mark.parametrize("call", ["generate", "stream", "agenerate"])
def test_a_weighting_that_calls_its_own_pipeline_does_not_wait_for_itself(call: str) -> None:
    with scripted_pipeline(STEPS, rewards=[0.5]) as pipe:

        def weighting(reward: float) -> float:
            called = getattr(pipe, call)("a question about the reward")
            return len((asyncio.run(called) if call == "agenerate" else called).text)

        with pytest.raises(RewardError, match="its own thread") as caught:
            pipe.stream("x", weighting=weighting).result()
        assert isinstance(caught.value.__cause__, ConfigError)
        assert pipe.generate("x").text == "".join(STEPS)


def test_a_weighting_may_ask_another_pipeline() -> None:
    with scripted_pipeline(["yes"]) as other, scripted_pipeline(STEPS, rewards=[0.5]) as pipe:
        weighting = lambda reward: float(other.generate("x").text == "yes")  # noqa: E731
        assert pipe.generate("x", weighting=weighting).text == "".join(STEPS)


class PanicException(BaseException):
    """As what is written in Rust raises it: no Exception."""


@pytest.mark.parametrize("method", ["open", "advance"])
def test_a_panic_fails_its_request_and_not_the_engine(method: str) -> None:
    class Panicking(ScriptedWriter):
        """One whose next call of a method panics."""

        armed = True

        def open(self, *args: Any) -> Any:
            self._panic("open")
            return super().open(*args)

        def advance(self, sessions: Sequence[WriterSession]) -> Any:
            self._panic("advance")
            return super().advance(sessions)

        def _panic(self, where: str) -> None:
            if where == method and self.armed:
                self.armed = False
                raise PanicException("retry limit")

    with over(Panicking(STEPS)) as pipe:
        with pytest.raises(BackendError, match="PanicException: retry limit"):
            pipe.generate("x")
        assert pipe.generate("x").text == "".join(STEPS)
        assert not pipe.closed
        assert open_sessions(pipe) == 0


def test_a_prompt_that_is_far_too_long_is_refused_before_it_is_encoded() -> None:
    class Counting(ScriptedWriter):
        """One that counts the characters it encodes."""

        read = 0

        def encode(self, text: str) -> tuple[int, ...]:
            self.read += len(text)
            return super().encode(text)

    draft = Counting(STEPS, window=512)
    with over(draft) as pipe:
        for prompt in ("x " * 10**6, [{"role": "user", "content": [{"type": "text", "text": "x " * 10**6}]}]):
            with pytest.raises(PromptLengthError, match="characters does not fit the window of 512 tokens"):
                pipe.generate(prompt)
        assert 0 < draft.read < 20_000
        assert pipe.generate("x").text == "".join(STEPS)


def test_a_message_that_is_nested_too_deep_is_refused() -> None:
    nested: Any = "x"
    for _ in range(100_000):
        nested = [nested]
    message = {"role": "assistant", "content": "x", "tool_calls": nested}
    with over(ScriptedWriter(STEPS)) as pipe, pytest.raises(PromptError, match="more than 100 levels deep"):
        pipe.generate([message])


def test_a_prompt_of_long_words_fits_whatever_its_characters() -> None:
    class Terse(ScriptedWriter):
        """Ten characters are a token, and so many pieces of a text have up to twice as many."""

        def encode(self, text: str) -> tuple[int, ...]:
            return tuple(map(ord, text[::5]))

        def open(self, *given: Any) -> Any:
            session = super().open(*given)
            session.prompt_tokens //= 10
            return session

    with over(Terse(STEPS, window=512)) as pipe:
        assert pipe.generate("x" * 4800).text == "".join(STEPS)
        with pytest.raises(PromptLengthError, match=r"^a prompt of 100000 characters"):
            pipe.generate("x" * 100_000)


def test_a_backend_that_raises_fails_its_batch_and_lives_on() -> None:
    class Breaking(ScriptedWriter):
        broken = True

        def advance(self, sessions: Sequence[WriterSession]) -> Any:
            if self.broken:
                raise MemoryError("all of it")
            return super().advance(sessions)

    draft = Breaking(STEPS)
    with over(draft) as pipe:
        with pytest.raises(MemoryError, match="all of it"):
            pipe.generate("x")
        draft.broken = False
        assert pipe.generate("x").text == "".join(STEPS)
        assert open_sessions(pipe) == 0


def test_a_backend_that_gives_too_few_results_fails_its_batch_and_lives_on() -> None:
    class Forgetting(ScriptedWriter):
        forgets = True

        def advance(self, sessions: Sequence[WriterSession]) -> Any:
            return super().advance(sessions)[self.forgets :]

    draft = Forgetting(STEPS)
    with over(draft) as pipe:
        with pytest.raises(BackendError, match="gave 0 results for 1 pieces of work"):
            pipe.generate("x")
        draft.forgets = False
        assert pipe.generate("x").text == "".join(STEPS)


def test_a_bug_in_the_engine_reaches_the_callers() -> None:
    """Those that are there, and whoever comes later; who only looks at the log, too."""

    class Deadly(ScriptedWriter):
        def advance(self, sessions: Sequence[WriterSession]) -> Any:
            raise SystemExit("the thread dies")

    log, records = logging.getLogger("rsd_integrations.engine.thread"), list[logging.LogRecord]()
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        pipe = over(Deadly(STEPS))
        with pytest.raises(SystemExit) as died:
            pipe.generate("x")
        wait_for(lambda: pipe.closed)
        for ask in (pipe.generate, pipe.token_ids, pipe.generate):
            with pytest.raises(
                EngineClosedError, match="ended because of SystemExit: the thread dies"
            ) as told:
                ask("x")
            assert told.value.__cause__ is died.value
        pipe.close()
        with pytest.raises(EngineClosedError, match="ended because of SystemExit"):
            pipe.generate("x")
    finally:
        log.removeHandler(handler)
    (record,) = records
    assert record.exc_info is not None and record.exc_info[1] is died.value


def of_ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Loggers of this package that said something. Others speak of what an earlier test left behind."""
    return [record.name for record in caplog.records if record.name.startswith("rsd_integrations")]


def test_a_pipeline_that_was_closed_says_no_more_than_that(caplog: pytest.LogCaptureFixture) -> None:
    pipe = over(ScriptedWriter(STEPS))
    pipe.close()
    with pytest.raises(EngineClosedError, match="this pipeline was closed") as told:
        pipe.generate("x")
    assert told.value.__cause__ is None
    assert not of_ours(caplog)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ([], "empty"),
        (3, "not int"),
        ([{"content": "x"}], "role"),
        ([{"role": "user"}], "neither content"),
        ([{"role": "user", "content": 3}], "content of message 0"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": None}], "message 1 has neither"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "message 0 has neither"),
        ("a\ud800b", r"the prompt has half a character at position 1, the lone surrogate '\\ud800'.*utf-16"),
        ([{"role": "user", "content": "\ud83d"}], "message 0 has half a character at position 0"),
        ([{"role": "user", "content": ["x", {"type": "text", "text": "\udc00"}]}], "message 0 has half"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "\ud800"}}]}], "message 0 has half"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(prompt: Any, message: str) -> None:
    with scripted_pipeline(STEPS) as pipe:
        with pytest.raises(PromptError, match=message):
            pipe.stream(prompt)
        assert pipe.backend.draft.batches == []


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no string but None"), (b"x", "no string but b'x'"), ("\ud800", "half a character")],
)
def test_only_text_has_tokens(text: Any, message: str) -> None:
    with scripted_pipeline(STEPS) as pipe:
        with pytest.raises(PromptError, match=message):
            pipe.token_ids(text)
        assert pipe.token_ids("") == []


def test_whole_surrogate_pairs_are_text() -> None:
    joined = "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    with scripted_pipeline(STEPS) as pipe:
        assert pipe.token_ids(joined) == [0x1F600]


@pytest.mark.parametrize("backend", [None, "models", (1, 2, 3)])
def test_a_pipeline_of_no_models_is_refused(backend: Any) -> None:
    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match=r"is no Backend.*from_pretrained") as caught:
        RSDPipeline(backend)
    assert repr(backend) in str(caught.value)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("longest", "hint"),
    [
        (None, "or raise max_length if the model allows it."),
        (64, "or raise max_length, here to 64 at most."),
        (20, "lower max_tokens: the model was made for no more."),
    ],
)
def test_the_hint_names_what_limits_the_window(longest: int | None, hint: str) -> None:
    with scripted_pipeline(STEPS, window=20, longest=longest) as pipe:
        with pytest.raises(PromptError) as caught:
            pipe.generate("12345", max_tokens=16)
        assert caught.value.hint.endswith(hint)
        with pytest.raises(PromptError) as caught:
            pipe.generate("x" * 20)
        assert caught.value.hint.startswith("Shorten the prompt")
        assert "max_tokens" not in caught.value.hint


def test_the_window_is_refused_with_its_numbers() -> None:
    with scripted_pipeline(STEPS, window=20) as pipe:
        with pytest.raises(PromptError, match=r"5 prompt tokens.* 16 max_tokens.* window of 20 tokens"):
            pipe.generate("12345", max_tokens=16)
        with pytest.raises(PromptError, match=r"20 prompt tokens do not fit .* 20 tokens"):
            pipe.generate("x" * 20)
        assert pipe.generate("12345", max_tokens=15).finish_reason == "length"
        assert open_sessions(pipe) == 0


def test_the_window_ends_an_answer_of_no_given_length() -> None:
    with scripted_pipeline(endless, window=20) as pipe:
        generation = pipe.generate("12345", max_tokens=None)
        assert (generation.finish_reason, generation.usage.completion_tokens) == ("length", 15)


def test_the_window_of_a_target_that_writes_nothing_is_no_limit() -> None:
    with over(ScriptedWriter(STEPS), target=ScriptedWriter(STEPS, window=20)) as pipe:
        with pytest.raises(PromptLengthError, match="window of 20 tokens"):
            pipe.generate("x" * 30)
        assert pipe.generate("x" * 30, threshold=0.0).text == "".join(STEPS)


@pytest.mark.parametrize("stop", [(), ("two",), ("\n\nt",), ("e\n\nthr", "zzz"), ("our",)])
def test_a_stream_folds_to_what_generate_gives(stop: tuple[str, ...]) -> None:
    rewards = [0.9, 0.1, 0.8, 0.2]
    with scripted_pipeline(STEPS, [text.upper() for text in STEPS], rewards) as pipe:
        generation = pipe.generate("x", seed=1, stop=stop)
        events = list(pipe.stream("x", seed=1, stop=stop))

        async def collect() -> list[Any]:
            return [event async for event in pipe.astream("x", seed=1, stop=stop)]

        for stream in (events, asyncio.run(collect())):
            assert "".join(event.delta for event in stream) == generation.text
            assert not any(string in generation.text for string in stop)
            assert tuple(event.step.text for event in stream if event.step) == tuple(
                step.text for step in generation.steps
            )
            assert stream[-1].generation.text == generation.text
            assert [event.type for event in stream].count("finished") == 1


def test_the_order_of_events() -> None:
    with scripted_pipeline(["a\n\n", "b"], ["A\n\n", "B"], [0.9, 0.1]) as pipe:
        events = list(pipe.stream("x"))
    assert [(event.type, event.index, event.source, event.text) for event in events] == [
        ("proposed", 0, "draft", "a\n\n"),
        ("scored", 0, "draft", "a\n\n"),
        ("accepted", 0, "draft", "a\n\n"),
        ("committed", 0, "draft", "a\n\n"),
        ("proposed", 1, "draft", "b"),
        ("scored", 1, "draft", "b"),
        ("rejected", 1, "draft", "b"),
        ("committed", 1, "target", "B"),
        ("finished", 2, None, ""),
    ]
    times = [event.elapsed_ms for event in events]
    assert times == sorted(times)


# Failures of single rows in the torch engine.


def load(draft: Any = "Qwen2", target: Any = "Llama", **options: Any) -> RSDPipeline:
    return RSDPipeline.from_pretrained(**trio(draft, target), device="cpu", **options)


class Poisoned:
    """Hooks into a model: rows whose input holds a token give NaN, or make the forward raise."""

    def __init__(self, model: Any, *, nan: int | None = None, fatal: int | None = None) -> None:
        self._nan, self._fatal = nan, fatal
        self._handles = [
            model.get_input_embeddings().register_forward_hook(self._embed),
        ]

    def _embed(self, module: Any, args: Any, output: Any) -> Any:
        ids = args[0]
        if self._fatal is not None and bool((ids == self._fatal).any()):
            raise RuntimeError("the forbidden token")
        if self._nan is None:
            return output
        return output.masked_fill((ids == self._nan).any(dim=-1)[:, None, None], math.nan)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize("kind", ["nan", "fatal"])
@pytest.mark.parametrize("role", ["draft", "target"])
def test_an_error_in_one_row_fails_that_request_alone(kind: str, role: str) -> None:
    tok = tokenizer("ascii")
    bad = tok.encode("@", add_special_tokens=False)[0]
    models = {"draft": causal("Qwen2", 0, "ascii"), "target": causal("Llama", 1, "ascii")}
    threshold = 0 if role == "draft" else 2
    prompts = [f"prompt {n}" + " @" * (n % 3 == 0) for n in range(9)]
    with load(models["draft"], models["target"]) as pipe:
        healthy = {
            p: pipe.generate(p, threshold=threshold, max_tokens=12).text for p in prompts if "@" not in p
        }
        assert not any("@" in text for text in healthy.values())
        poison = Poisoned(models[role], **{kind: bad})
        try:
            streams = {p: pipe.stream(p, threshold=threshold, max_tokens=12) for p in prompts}
            for prompt, stream in streams.items():
                if "@" in prompt:
                    with pytest.raises(BackendError, match="NaN" if kind == "nan" else "the forbidden token"):
                        stream.result()
                else:
                    assert stream.result().text == healthy[prompt]
        finally:
            poison.remove()
        backend: Any = pipe.backend
        assert [model.runner.pool.free for model in (backend.draft, backend.target, backend.prm)] == [8, 8, 8]
        # What was poisoned left nothing behind in the slots.
        for prompt in [p for p in prompts if "@" not in p]:
            assert pipe.generate(prompt, threshold=threshold, max_tokens=12).text == healthy[prompt]
        assert pipe.generate("with @", threshold=threshold, max_tokens=3).usage.completion_tokens > 0


def test_infinite_logits_are_refused_when_sampling() -> None:
    model = causal("Qwen2", 0, "ascii")
    with load(model) as pipe:
        handle = model.lm_head.register_forward_hook(
            lambda module, args, out: out.masked_fill(out > 0, math.inf)
        )
        try:
            with pytest.raises(BackendError, match="infinite"):
                pipe.generate("hello", threshold=0, temperature=1.0)
        finally:
            handle.remove()
        assert pipe.generate("hello", threshold=0, temperature=1.0, max_tokens=3).usage.completion_tokens


def test_a_prm_that_gives_nan_names_the_step() -> None:
    prm = token_classifier(0, "ascii")
    with load() as pipe:
        handle = prm.score.register_forward_hook(lambda module, args, out: out * math.nan)
        try:
            with pytest.raises(RewardError, match="step 0"):
                pipe.generate("hello there", step_delimiter="e")
        finally:
            handle.remove()
        assert pipe.generate("hello there", max_tokens=5).usage.completion_tokens


def test_torch_slots_are_free_after_cancels() -> None:
    with load(max_batch_size=3) as pipe:
        backend: Any = pipe.backend
        for n in range(12):
            stream = pipe.stream(f"prompt {n}", step_delimiter=" ", max_tokens=400, weighting="constant")
            for _ in range(n):
                next(stream, None)
            stream.close()
        done = pipe.generate("last", step_delimiter=" ", max_tokens=20, weighting="constant")
        assert done.usage.completion_tokens
        wait_for(lambda: not pipe._engine._live)
        assert [m.runner.pool.free for m in (backend.draft, backend.target, backend.prm)] == [3, 3, 3]


class Unclosable(ScriptedWriter):
    """Its sessions fail when they are closed, as all do on a device that has broken."""

    def open(self, *given: Any) -> Any:
        session = super().open(*given)

        def close() -> None:
            raise RuntimeError("device lost")

        session.close = close  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize("how", ["finish", "fail", "close"])
def test_sessions_that_cannot_be_closed_leave_nobody_waiting(how: str) -> None:
    script = (lambda *_: ValueError("boom")) if how == "fail" else ["step\n\n"] * 3
    draft = Unclosable(script, delay=0.01 if how == "close" else 0.0)
    pipe = RSDPipeline(Backend(draft, ScriptedWriter(["x"]), ScriptedScorer([1.0]), 2))
    streams = [pipe.stream("x") for _ in range(5)]
    if how == "close":
        pipe.close()
    for stream in streams:
        with pytest.raises((RuntimeError, ValueError), match=r"device lost|boom|closed"):
            stream.result()
    pipe.close()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_pipeline_is_the_pipeline(copied: Callable[[RSDPipeline], RSDPipeline]) -> None:
    pipe = copied(scripted_pipeline(["x"]))  # The original is dropped.
    gc.collect()
    assert pipe.generate("x").text == "x"
    pipe.close()


def test_a_pipeline_that_cannot_be_pickled_says_what_can() -> None:
    with scripted_pipeline(["x"]) as pipe, pytest.raises(ConfigError, match=r"cannot be pickled.*ChatRSD"):
        pickle.dumps(pipe)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_and_does_not_wait() -> None:
    """Not even if another thread was submitting at that moment: in the child it will never be done."""
    with scripted_pipeline(["x"]) as pipe:
        pipe._engine._lock.acquire()
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            try:
                pipe.generate("x")
            except EngineClosedError as error:
                pipe.close()
                os._exit(0 if "forked" in str(error) and pipe.closed else 1)
            os._exit(2)
        pipe._engine._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pipe.generate("x").text == "x"


def test_what_is_held_back_is_told_at_the_end() -> None:
    """It might have begun a stop string, had the window not been full."""

    def script(prompt: Any, index: int, text: str) -> str | Exception:
        return WindowFull() if index else "one\n\n"

    with scripted_pipeline(script) as pipe:
        *_, last = pipe.stream("x", threshold=0.0, stop=("e\n\n!",))
    assert last.generation is not None
    assert (last.delta, last.generation.text, last.generation.finish_reason) == ("e\n\n", "one\n\n", "length")


def test_an_answer_ends_with_its_only_call_and_not_before() -> None:
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    tools = [{"type": "function", "function": {"name": "look"}}]
    with scripted_pipeline(["So.\n\n", "Now:\n\n", call, call]) as pipe:
        for parallel, count in ((False, 1), (True, 2)):
            out = pipe.generate("x", output=Output.of(tools=tools, parallel_tool_calls=parallel))
            assert out.text.startswith("So.\n\nNow:")
            assert (len(out.tool_calls), out.finish_reason) == (count, "tool_calls")


def test_no_output_is_free_text() -> None:
    with scripted_pipeline(["one\n\n", "two"]) as pipe:
        assert pipe.generate("x", output=None).text == pipe.generate("x").text
        assert pipe.count_tokens("x", output=None) == pipe.count_tokens("x")
        with pytest.raises(ConfigError, match=r"output=\{\} is no Output"):
            pipe.generate("x", output={})  # type: ignore[arg-type]


async def test_closing_leaves_the_loop_free() -> None:
    draft = Held(["one\n\n", "two"])
    pipe = RSDPipeline(Backend(draft, ScriptedWriter([]), ScriptedScorer([1.0])))
    stream = pipe.astream("x")
    assert await asyncio.to_thread(draft.entered.wait, PATIENCE)
    closing = asyncio.create_task(pipe.aclose())
    await asyncio.sleep(0.05)  # Else the round, which waits for the gate, would keep this waiting, too.
    draft.gate.set()
    await closing
    assert pipe.closed
    with pytest.raises(EngineClosedError):
        await stream.result()
    await pipe.aclose()
