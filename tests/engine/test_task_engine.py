"""The engine that awaits: what ``test_engine`` asks of the one that works in rounds, and what is its own."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rsd_integrations import RSDPipeline, testing
from rsd_integrations.engine import tasks
from rsd_integrations.engine.job import Job
from rsd_integrations.errors import BackendError, EngineClosedError
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter, scripted_pipeline
from tests.awaited import Awaited, awaited_pipeline
from tests.engine import test_engine as rounds

PATIENCE = rounds.PATIENCE


@pytest.fixture
def awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those tests' pipelines await their models."""
    monkeypatch.setattr(rounds, "RSDPipeline", awaited_pipeline)
    monkeypatch.setattr(testing, "RSDPipeline", awaited_pipeline)


@pytest.mark.usefixtures("awaited")
class TestAsInRounds:
    """Tests that know nothing of rounds."""

    @pytest.mark.parametrize(
        "test",
        [
            rounds.test_a_storm_of_threads_and_tasks,
            rounds.test_what_a_request_gets_does_not_depend_on_the_others,
            rounds.test_a_dropped_pipeline_ends_its_thread,
            rounds.test_a_stream_keeps_its_pipeline_alive,
            rounds.test_a_dropped_async_stream_frees_its_place,
            rounds.test_a_timeout_cancels,
            rounds.test_a_timeout_counts_while_queued,
            rounds.test_it_tells_how_many_are_at_work_and_how_many_wait,
            rounds.test_a_closed_pipeline_has_nothing_to_do,
            rounds.test_a_request_that_is_cancelled_before_its_turn_is_never_begun,
            rounds.test_closing_from_a_running_loop_does_not_hang,
            rounds.test_a_weighting_that_is_no_probability_is_refused,
            rounds.test_a_weighting_may_ask_another_pipeline,
            rounds.test_a_prompt_that_is_far_too_long_is_refused_before_it_is_encoded,
            rounds.test_a_backend_that_raises_fails_its_batch_and_lives_on,
            rounds.test_a_bug_in_the_engine_reaches_the_callers,
            rounds.test_the_window_is_refused_with_its_numbers,
            rounds.test_the_window_ends_an_answer_of_no_given_length,
            rounds.test_the_order_of_events,
        ],
        ids=lambda test: test.__name__.removeprefix("test_"),
    )
    def test_it(self, test: Callable[[], None]) -> None:
        test()

    @pytest.mark.parametrize("read", [0, 1, 5])
    def test_a_dropped_stream_frees_its_place(self, read: int) -> None:
        rounds.test_a_dropped_stream_frees_its_place(read)

    @pytest.mark.parametrize("call", ["generate", "stream"])
    def test_a_weighting_that_calls_its_own_pipeline_does_not_wait_for_itself(self, call: str) -> None:
        rounds.test_a_weighting_that_calls_its_own_pipeline_does_not_wait_for_itself(call)

    @pytest.mark.parametrize("how", ["finish", "fail", "close"])
    def test_sessions_that_cannot_be_closed_leave_nobody_waiting(self, how: str) -> None:
        rounds.test_sessions_that_cannot_be_closed_leave_nobody_waiting(how)

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_is_told_and_does_not_wait(self) -> None:
        rounds.test_a_forked_child_is_told_and_does_not_wait()


def over(draft: Any, *, prm: Any = None, target: Any = None, **options: Any) -> RSDPipeline:
    target = target or Awaited(ScriptedWriter(rounds.STEPS, window=10**9))
    return RSDPipeline(RemoteBackend(draft, target, prm or Awaited(ScriptedScorer([1.0])), **options))


@pytest.mark.parametrize("seed", range(8))
def test_answers_are_those_of_the_engine_of_rounds(seed: int) -> None:
    rng = random.Random(seed)

    def script(prompt: Any, index: int, text: str) -> str | None:
        return f"{prompt} {index} " * rng.randrange(1, 4) + "\n\n" if index < 5 else None

    def told(pipe: RSDPipeline) -> Any:
        rng.seed(seed)
        with pipe:
            return pipe.generate("x", seed=seed, weighting="clip", temperature=1.0)

    def reward(prompt: Any, index: int, body: str) -> float:
        return (len(body) % 5) / 5

    first, second = scripted_pipeline(script, rewards=reward), scripted_pipeline(script, rewards=reward)
    awaited = awaited_pipeline(second.backend)
    in_rounds, one_by_one = told(first), told(awaited)
    steps = [
        [(step.text, step.accepted, step.reward, step.draft_tokens) for step in generation.steps]
        for generation in (in_rounds, one_by_one)
    ]
    assert steps[0] == steps[1]
    assert (in_rounds.text, in_rounds.usage) == (one_by_one.text, one_by_one.usage)


def test_requests_wait_for_servers_side_by_side() -> None:
    draft = Awaited(ScriptedWriter(rounds.STEPS), company=40)
    with over(draft) as pipe:
        streams = [pipe.stream(f"{n}") for n in range(40)]
        assert {stream.result().text for stream in streams} == {"".join(rounds.STEPS)}
    assert draft.most_at_work == 40


def test_no_more_requests_than_there_is_room_for() -> None:
    draft = Awaited(ScriptedWriter(rounds.STEPS), pause=0.01, company=3)
    with over(draft, max_batch_size=3) as pipe:
        streams = [pipe.stream(f"{n}") for n in range(10)]
        assert {stream.result().finish_reason for stream in streams} == {"stop"}
    assert draft.most_at_work == 3


@pytest.mark.parametrize("waits", ["for a server", "for room"])
def test_a_cancelled_request_gives_up_its_question(waits: str) -> None:
    draft = Awaited(ScriptedWriter(rounds.STEPS), pause=10**6)
    with over(draft, max_batch_size=1) as pipe:
        first = pipe.stream("x")
        rounds.wait_for(lambda: draft.at_work == 1)
        stream = first if waits == "for a server" else pipe.stream("y")
        stream.cancel()
        generation = stream.result()
        assert (generation.finish_reason, generation.text) == ("cancelled", "")
        if waits == "for a server":
            assert len(draft.left) == 1
            rounds.wait_for(lambda: rounds.open_sessions(pipe) == 0)


def test_a_cancel_looks_at_its_own_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, cancelled = 0, Job.cancelled.fget
    assert cancelled is not None

    def counted(job: Job) -> bool:
        nonlocal looks
        looks += 1
        return bool(cancelled(job))

    monkeypatch.setattr(Job, "cancelled", property(counted))
    draft = Awaited(ScriptedWriter(rounds.STEPS), pause=10**6)
    with over(draft, max_batch_size=20) as pipe:
        streams = [pipe.stream(f"{n}") for n in range(40)]
        rounds.wait_for(lambda: draft.at_work == 20)
        for stream in streams:
            stream.cancel()
        assert {stream.result().finish_reason for stream in streams} == {"cancelled"}
    assert looks <= 6 * 40  # All of them for each would be 1600.


def test_whoever_gives_up_waiting_leaves_no_room_behind() -> None:
    draft = Awaited(ScriptedWriter(rounds.STEPS), pause=10**6)
    with over(draft, max_batch_size=1) as pipe:
        streams = [pipe.stream(f"{n}") for n in range(2)]
        rounds.wait_for(lambda: draft.at_work == 1)
        streams[1].cancel()
        assert streams[1].result().finish_reason == "cancelled"
        assert pipe.generate("z", timeout=0.2).finish_reason == "cancelled"
        assert draft.most_at_work == 1


def test_a_step_that_was_written_in_time_is_kept() -> None:
    """The time is up while the second is asked for."""

    class Slowing(Awaited):
        async def write(self, session: Any) -> Any:
            self.pause = 10**6 if session.steps else 0.0  # Scripted sessions count what was committed.
            return await super().write(session)

    draft = Slowing(ScriptedWriter(rounds.STEPS))
    with over(draft) as pipe:
        generation = pipe.generate("x", timeout=1.0)
    assert (generation.finish_reason, generation.text) == ("cancelled", rounds.STEPS[0])
    assert len(draft.left) == 1


def test_candidates_are_asked_for_side_by_side_and_one_s_failure_leaves_the_others() -> None:
    class Third(Awaited):
        async def write(self, session: Any) -> Any:
            if self.at_work == 2:
                raise BackendError("the third breaks.")
            return await super().write(session)

    draft = Awaited(ScriptedWriter(rounds.STEPS), company=4)
    with over(draft) as pipe:
        assert pipe.generate("x", draft_candidates=4, temperature=1.0).text == "".join(rounds.STEPS)
    assert draft.most_at_work == 4
    draft = Third(ScriptedWriter(rounds.STEPS), pause=10**6)
    with over(draft) as pipe:
        with pytest.raises(BackendError, match="the third breaks"):
            pipe.generate("x", draft_candidates=3, temperature=1.0)
        assert len(draft.left) == 2
        assert rounds.open_sessions(pipe) == 0


def test_a_candidate_that_was_scored_counts_though_another_was_not() -> None:
    class Second(Awaited):
        async def score(self, session: Any, step: Any) -> Any:
            self.pause = 10**6 if self.at_work else 0.0
            return await super().score(session, step)

    def script(prompt: Any, index: int, text: str) -> str:
        return "x" * next(lengths)

    lengths, prm = iter((3, 5)), Second(ScriptedScorer([1.0]))
    with over(Awaited(ScriptedWriter(script)), prm=prm) as pipe:
        stream = pipe.stream("p", draft_candidates=2, temperature=1.0)
        rounds.wait_for(lambda: prm.batches == [1] and prm.at_work == 1)
        stream.cancel()
        used = stream.result().usage.prm
        assert (used.generated, used.discarded, used.forwarded) == (3, 3, 3)


def test_a_candidate_that_cannot_be_begun_ends_the_others() -> None:
    class Second(Awaited):
        def write(self, session: Any) -> Any:
            if self.begun:
                raise OSError("no second one")
            self.begun = True
            return super().write(session)

        begun = False

    draft = Second(ScriptedWriter(rounds.STEPS), pause=10**6)
    with over(draft) as pipe:
        with pytest.raises(OSError, match="no second one"):
            pipe.generate("p", draft_candidates=2, temperature=1.0)
        rounds.wait_for(
            lambda: not [task for task in asyncio.all_tasks(pipe._engine._loop) if "write" in repr(task)]
        )


def test_closing_tells_all_callers_and_closes_the_connections() -> None:
    draft = Awaited(ScriptedWriter(rounds.STEPS), pause=10**6)
    pipe = over(draft, max_batch_size=2)
    backend: Any = pipe.backend
    streams = [pipe.stream(f"{n}") for n in range(5)]
    rounds.wait_for(lambda: draft.at_work == 2)
    pipe.close()
    for stream in streams:
        with pytest.raises(EngineClosedError):
            stream.result()
    assert len(draft.left) == 2
    assert [model.closed for model in (backend.draft, backend.target, backend.prm)] == [True] * 3
    assert pipe._engine._thread.is_alive() is False
    with pytest.raises(EngineClosedError):
        pipe.generate("x")


def test_no_call_finds_its_session_closed() -> None:
    """Also one that goes on just when the pipeline is closed."""
    found: list[bool] = []

    class Busy(Awaited):
        async def write(self, session: Any) -> Any:
            self.at_work = 1
            while True:
                await asyncio.sleep(0)
                found.append(session._closed)

    draft = Busy(ScriptedWriter(rounds.STEPS))
    pipe = over(draft)
    stream = pipe.stream("x")
    rounds.wait_for(lambda: draft.at_work == 1)
    pipe.close()
    assert found and not any(found)
    assert rounds.open_sessions(pipe) == 0
    with pytest.raises(EngineClosedError):
        stream.result()


def test_its_loop_is_made_where_it_takes_no_signals_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' loops take them, when they are made in the main thread, from the loop that runs there."""
    made: list[threading.Thread] = []
    new = asyncio.new_event_loop

    def seen() -> asyncio.AbstractEventLoop:
        made.append(threading.current_thread())
        return new()

    monkeypatch.setattr(asyncio, "new_event_loop", seen)
    with over(Awaited(ScriptedWriter(["only"]))) as pipe:
        assert pipe.generate("x").text == "only"
    assert len(made) == 1
    assert threading.current_thread() not in made


def test_a_loop_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio, "new_event_loop", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        over(Awaited(ScriptedWriter(["only"])))


class Raising(Awaited):
    """Its work, opening or closing raises something."""

    def __init__(self, model: Any, error: BaseException, where: str) -> None:
        super().__init__(model)
        self._error, self._where = error, where

    def open(self, *given: Any) -> Any:
        if self._where == "open":
            raise self._error
        return self.model.open(*given)

    async def write(self, session: Any) -> Any:
        if self._where == "write":
            raise self._error
        return await super().write(session)

    async def aclose(self) -> None:
        await super().aclose()
        if self._where == "aclose":
            raise self._error


@pytest.mark.parametrize("where", ["write", "open"])
def test_a_cancellation_of_its_own_fails_a_request_alone(where: str) -> None:
    draft = Raising(ScriptedWriter(rounds.STEPS), asyncio.CancelledError(), where)
    with over(draft) as pipe:
        with pytest.raises(asyncio.CancelledError):
            pipe.generate("x")
        draft._where = ""
        assert pipe.generate("x").text == "".join(rounds.STEPS)


@pytest.fixture
def own_garbage() -> Iterator[None]:
    """What is collected here is no other test's: asyncio would tell of that."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("own_garbage")
@pytest.mark.parametrize("where", ["write", "open"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_thread_reaches_all_callers(
    where: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    waiting = Awaited(ScriptedWriter(rounds.STEPS), pause=10**6)
    pipe = over(Raising(ScriptedWriter(rounds.STEPS), error(), where), target=waiting)
    other = pipe.stream("y", threshold=1.1)
    rounds.wait_for(lambda: waiting.at_work == 1)
    for result in (lambda: pipe.generate("x"), other.result):
        with pytest.raises(error):
            result()
    rounds.wait_for(lambda: pipe.closed)
    pipe._engine._thread.join(PATIENCE)
    assert waiting.closed
    gc.collect()
    assert [record.name for record in caplog.records] == ["rsd_integrations.engine.thread"]


@pytest.mark.usefixtures("own_garbage")
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_thread_several_times_reaches_all_callers(error: type[BaseException]) -> None:
    class Together(Awaited):
        """Ends the thread once four requests are at work, in the same turn of the loop."""

        async def write(self, session: Any) -> Any:
            self.at_work += 1
            if self.at_work == 4:
                told.set()
            await told.wait()
            raise error

    told, found = asyncio.Event(), list[type[BaseException]]()
    pipe = over(Together(ScriptedWriter(rounds.STEPS)))

    def ask() -> None:
        try:
            pipe.generate("x")
        except BaseException as raised:
            found.append(type(raised))

    for _ in range(4):
        threading.Thread(target=ask, daemon=True).start()
    rounds.wait_for(lambda: len(found) == 4)
    assert error in found
    assert {*found} <= {error, EngineClosedError}
    pipe._engine._thread.join(PATIENCE)
    assert not pipe._engine._thread.is_alive()
    gc.collect()


@pytest.mark.parametrize("error", [RuntimeError(), SystemExit(), asyncio.CancelledError()], ids=repr)
def test_a_connection_that_cannot_be_closed_keeps_no_other(error: BaseException) -> None:
    backend = RemoteBackend(
        Raising(ScriptedWriter(rounds.STEPS), error, "aclose"),
        Awaited(ScriptedWriter(rounds.STEPS)),
        Awaited(ScriptedScorer([1.0])),
    )
    pipe = RSDPipeline(backend)
    pipe.generate("x")
    pipe.close()
    closed: list[Any] = [backend.draft, backend.target, backend.prm]
    assert [model.closed for model in closed] == [True] * 3


def test_a_connection_that_never_closes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Awaited):
        async def aclose(self) -> None:
            await asyncio.sleep(10**6)

    monkeypatch.setattr(tasks, "_CLOSING", 0.05)
    pipe = over(Endless(ScriptedWriter(rounds.STEPS)))
    pipe.close()
    assert pipe._engine._thread.is_alive() is False


def test_a_listener_that_raises_keeps_no_other_waiting() -> None:
    draft = Awaited(ScriptedWriter(rounds.STEPS), pause=10**6)
    pipe = over(draft)

    def bad(item: Any) -> None:
        raise KeyboardInterrupt

    pipe._submit("x", None)(bad)
    stream = pipe.stream("y")
    rounds.wait_for(lambda: draft.at_work == 2)
    pipe.close()
    with pytest.raises(EngineClosedError):
        stream.result()


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_panic_is_an_error_of_its_request(candidates: int) -> None:
    class PanicException(BaseException):
        pass

    PanicException.__module__ = "pyo3_runtime"
    draft = Raising(ScriptedWriter(rounds.STEPS), PanicException("it gave up"), "write")
    with over(draft) as pipe:
        with pytest.raises(BackendError, match="it gave up"):
            pipe.generate("x", draft_candidates=candidates, temperature=1.0)
        draft._where = ""
        assert pipe.generate("x").text == "".join(rounds.STEPS)


def test_a_request_is_submitted_while_the_pipeline_closes() -> None:
    """Either it is answered or it is told; nobody waits for ever."""
    for turn in range(30):
        pipe = over(Awaited(ScriptedWriter(rounds.STEPS)))
        outcomes: list[str] = []

        def call(pipe: RSDPipeline = pipe, outcomes: list[str] = outcomes) -> None:
            try:
                outcomes.append(pipe.generate("x").finish_reason)
            except EngineClosedError:
                outcomes.append("closed")

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(turn / 10000)
        pipe.close()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(outcomes) == 4
        assert set(outcomes) <= {"stop", "closed"}


def test_a_task_that_is_cancelled_gives_up_its_question() -> None:
    draft = Awaited(ScriptedWriter(rounds.STEPS), pause=10**6)

    async def main(pipe: RSDPipeline) -> None:
        task = asyncio.create_task(pipe.agenerate("x"))
        while not draft.at_work:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with over(draft) as pipe:
        asyncio.run(main(pipe))
        rounds.wait_for(lambda: rounds.open_sessions(pipe) == 0)
        assert len(draft.left) == 1
