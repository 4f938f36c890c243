"""Functions in place of a PRM, in this process and beside servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations import RewardFunction, RSDConfig, RSDPipeline, functions
from rsd_integrations.conformance import ScorerKit
from rsd_integrations.engine import tasks
from rsd_integrations.engine.batch import SCORE_ROUNDS
from rsd_integrations.errors import ConfigError, EngineClosedError, RewardError, TimedOutError
from rsd_integrations.functions import FunctionScorer, RemoteFunctionScorer
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.protocols import Backend, Scored, Scorer, ScoreStep
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter
from rsd_integrations.types import Generation, Prompt
from tests.awaited import Awaited
from tests.gated import wait_for

DRAFT = ["one\n\n", "two\n\n", "three"]
TARGET = ["ONE\n\n", "TWO\n\n", "THREE"]


def two_is_bad(prompt: Prompt, steps: tuple[str, ...]) -> float:
    return 0.1 if steps[-1] == "two" else 0.9


def over(function: Any, *, remote: bool = False, draft: Any = DRAFT, at_once: int = 8) -> RSDPipeline:
    writers: Any = ScriptedWriter(draft), ScriptedWriter(TARGET)
    given = function if isinstance(function, RewardFunction) else RewardFunction(function)
    if remote:
        return RSDPipeline(RemoteBackend(*map(Awaited, writers), RemoteFunctionScorer(given), at_once))
    return RSDPipeline(Backend(*writers, FunctionScorer(given), at_once))


async def awaited(prompt: Prompt, steps: tuple[str, ...]) -> float:
    await asyncio.sleep(0)
    return two_is_bad(prompt, steps)


class Awaiting:
    async def __call__(self, prompt: Prompt, steps: tuple[str, ...]) -> float:
        return await awaited(prompt, steps)


class TestKit(ScorerKit):
    """As the kit has it for all scorers: no step leaves a trace but the committed ones."""

    @pytest.fixture(params=["quick", "slow", "async"])
    def scorer(self, request: pytest.FixtureRequest) -> Iterator[Scorer]:
        def quick(prompt: Prompt, steps: tuple[str, ...]) -> float:
            return len(f"{prompt}{steps}") % 7 / 7

        def slow(prompt: Prompt, steps: tuple[str, ...]) -> float:
            time.sleep(0.005)
            return quick(prompt, steps)

        async def later(prompt: Prompt, steps: tuple[str, ...]) -> float:
            await asyncio.sleep(0.005)
            return quick(prompt, steps)

        made = FunctionScorer(RewardFunction({"quick": quick, "slow": slow, "async": later}[request.param]))
        yield made
        made.close()


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("function", [two_is_bad, awaited, Awaiting()], ids=["sync", "async", "object"])
def test_a_function_keeps_and_rejects(function: Any, remote: bool) -> None:
    with over(function, remote=remote) as pipe:
        out = pipe.generate("count", temperature=0.0)
        assert out.text == "one\n\nTWO\n\nthree"
        assert [step.reward for step in out.steps] == [0.9, 0.1, 0.9]
        assert out.usage.prm.flops.total == out.usage.prm.generated == 0
        assert pipe.recommended_threshold == 0.7
        assert pipe.score("count", ["one\n\n", "two"]) == [0.9, 0.1]


@pytest.mark.parametrize("remote", [False, True])
def test_scores_that_take_too_long_time_out(remote: bool) -> None:
    async def slow(prompt: Prompt, steps: tuple[str, ...]) -> float:
        await asyncio.sleep(60)
        return 1.0

    with over(slow, remote=remote) as pipe:
        for asked in (
            lambda: pipe.score("count", ["one\n\n"], timeout=0.2),
            lambda: asyncio.run(pipe.ascore("count", ["one\n\n"], timeout=0.2)),
        ):
            with pytest.raises(TimedOutError, match="not scored in time"):
                asked()
        with pytest.raises(ConfigError, match="timeout=-1"):
            pipe.score("count", ["one\n\n"], timeout=-1)


@pytest.mark.parametrize("remote", [False, True])
def test_it_sees_the_prompt_and_the_committed_steps(remote: bool) -> None:
    seen: list[Any] = []

    def spy(prompt: Prompt, steps: tuple[str, ...]) -> float:
        seen.append((prompt, steps))
        return two_is_bad(prompt, steps)

    chat = [{"role": "user", "content": "count"}]
    with over(spy, remote=remote) as pipe:
        pipe.generate(chat)
    assert seen == [(chat, ("one",)), (chat, ("one", "two")), (chat, ("one", "TWO", "three"))]


@pytest.mark.parametrize("remote", [False, True])
def test_calls_of_several_requests_run_side_by_side(remote: bool) -> None:
    both = threading.Barrier(2, timeout=20)

    def meet(prompt: Prompt, steps: tuple[str, ...]) -> float:
        both.wait()
        return 0.9

    with over(meet, remote=remote) as pipe:
        for stream in [pipe.stream("count") for _ in range(2)]:
            assert stream.result().acceptance_rate == 1.0


@pytest.mark.parametrize("remote", [False, True])
def test_the_best_of_several_candidates_is_kept(remote: bool) -> None:
    pieces = iter(["bad", "good", "worse", "end"] * 10)
    with over(
        lambda prompt, steps: {"good": 0.9, "bad": 0.1}.get(steps[-1], 0.0),
        remote=remote,
        draft=lambda prompt, index, text: None if index else f"{next(pieces)}\n\n",
    ) as pipe:
        [step, *_] = pipe.generate("count", draft_candidates=3, max_steps=1, temperature=1.0).steps
    assert step.text == "good\n\n"
    assert [(one.text, one.reward) for one in step.candidates] == [
        ("bad\n\n", 0.1),
        ("good\n\n", 0.9),
        ("worse\n\n", 0.0),
    ]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_slow_function_does_not_hold_up_others(kind: str) -> None:
    """Whoever waits for a reward waits alone: another answer begins and ends meanwhile."""
    go_on = threading.Event()

    def slow(prompt: Prompt, steps: tuple[str, ...]) -> float:
        if prompt == "slow":
            assert go_on.wait(20)
        return 0.9

    async def slowly(prompt: Prompt, steps: tuple[str, ...]) -> float:
        while prompt == "slow" and not go_on.is_set():
            await asyncio.sleep(0.001)
        return 0.9

    with over(slow if kind == "sync" else slowly) as pipe:
        waiting = pipe.stream("slow")
        assert pipe.generate("quick").text == "one\n\ntwo\n\nthree"
        go_on.set()
        assert waiting.result().text == "one\n\ntwo\n\nthree"


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_at_most_so_many_calls_at_a_time(kind: str, remote: bool) -> None:
    now, most = [0], [0]
    lock, go_on = threading.Lock(), threading.Event()

    def count(by: int) -> None:
        with lock:
            now[0] += by
            most[0] = max(most[0], now[0])

    def called(prompt: Prompt, steps: tuple[str, ...]) -> float:
        count(1)
        assert go_on.wait(60)
        count(-1)
        return 0.9

    async def called_async(prompt: Prompt, steps: tuple[str, ...]) -> float:
        count(1)
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        count(-1)
        return 0.9

    given = RewardFunction(called if kind == "sync" else called_async, max_concurrency=2)
    with over(given, remote=remote) as pipe:
        streams = [pipe.stream("count") for _ in range(6)]
        for stream in streams:
            while next(stream).type != "proposed":
                pass
        wait_for(lambda: now[0] > 1)
        time.sleep(0.05)  # More would have come by then.
        go_on.set()
        assert {stream.result().finish_reason for stream in streams} == {"stop"}
    assert most[0] == 2


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda prompt, steps: None, "returned None, which is no number"),
        (lambda prompt, steps: "0.5", "returned '0.5', which is no number"),
        (lambda prompt, steps: 1.5, "returned 1.5, which is no number"),
        (lambda prompt, steps: 1 + 2e-6, "returned 1.000002, which is no number"),
        (lambda prompt, steps: -2e-6, "returned -2e-06, which is no number"),
        (lambda prompt, steps: float("nan"), "returned nan, which is no number"),
        (
            lambda prompt, steps: awaited(prompt, (*steps,)),  # Nobody can tell that it is to be awaited.
            r"returned <coroutine .*nobody awaits.* Make it async",
        ),
        (lambda prompt, steps: {}["x"], "failed: KeyError: 'x'"),
    ],
)
def test_what_is_no_reward_is_refused(function: Callable[..., Any], told: str, remote: bool) -> None:
    told = rf"^the reward function '<lambda>' {told}"  # And no more, such as the step's text.
    with over(function, remote=remote) as pipe, pytest.raises(RewardError, match=told):
        pipe.generate("count")


def test_a_function_goes_by_its_name() -> None:
    assert RewardFunction(two_is_bad).label == "two_is_bad"
    assert RewardFunction(Awaiting()).label == "Awaiting"
    with (
        over(RewardFunction(lambda prompt, steps: None, name="sums")) as pipe,
        pytest.raises(RewardError, match="the reward function 'sums' returned None"),
    ):
        pipe.generate("count")


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("given", "reward"), [(1.0000002384185791, 1.0), (-1.2e-7, 0.0)])
def test_rounding_puts_no_reward_out_of_bounds(given: float, reward: float, remote: bool) -> None:
    """A cosine similarity in float32, or a weighted mean of other rewards."""
    with over(lambda prompt, steps: given, remote=remote) as pipe:
        assert pipe.score("count", ["one"]) == [reward]


class Odd(BaseException):
    """As pytest's ``Failed``."""


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        Odd("x"),
        asyncio.CancelledError(),
        StopIteration(),
        KeyboardInterrupt(),
        GeneratorExit(),
    ],
    ids=repr,
)
def test_whatever_a_function_raises_is_its_own_request_s(
    error: BaseException, kind: str, remote: bool
) -> None:
    """Code that is tested may exit, or fail as pytest does: others go on."""

    def fails(prompt: Prompt, steps: tuple[str, ...]) -> float:
        if prompt == "bad":
            raise error
        return 0.9

    async def fails_later(prompt: Prompt, steps: tuple[str, ...]) -> float:
        await asyncio.sleep(0)
        return fails(prompt, steps)

    with over(fails if kind == "sync" else fails_later, remote=remote) as pipe:
        for _ in range(2):
            streams = [pipe.stream(prompt) for prompt in ("good", "bad", "good")]
            assert streams[0].result().text == streams[2].result().text == "one\n\ntwo\n\nthree"
            with pytest.raises(
                RewardError, match=r"failed: .*; it was asked about step 1 .* 3 characters"
            ) as told:
                streams[1].result()
            assert "'one'" not in str(told.value), "traces that hide answers show errors"


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_function_that_asks_its_own_pipeline_is_told(kind: str, remote: bool) -> None:
    pipes: list[RSDPipeline] = []

    def asks(prompt: Prompt, steps: tuple[str, ...]) -> float:
        return float(bool(pipes[0].generate("is that right?").text))

    async def asks_later(prompt: Prompt, steps: tuple[str, ...]) -> float:
        return float(bool((await pipes[0].agenerate("is that right?")).text))

    with over(asks if kind == "sync" else asks_later, remote=remote) as pipe:
        pipes.append(pipe)
        with pytest.raises(RewardError, match=r"called by its own reward function"):
            pipe.generate("count")
        pipes[0] = other = over(two_is_bad)  # Another may be asked.
        assert pipe.generate("count").acceptance_rate == 1.0
        other.close()


TENANT: ContextVar[Any] = ContextVar("TENANT", default=None)


def of_its_tenant(prompt: Prompt, steps: tuple[str, ...]) -> float:
    """1 in the context of the one who asks, 0 elsewhere; what it sets is nobody else's."""
    seen = TENANT.get()
    TENANT.set("left by a call")
    return float(seen == prompt)


async def of_its_tenant_later(prompt: Prompt, steps: tuple[str, ...]) -> float:
    await asyncio.sleep(0.001)
    return of_its_tenant(prompt, steps)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("function", [of_its_tenant, of_its_tenant_later], ids=["sync", "async"])
@pytest.mark.parametrize("candidates", [1, 2])
def test_it_runs_in_the_context_of_who_asks(function: Any, remote: bool, candidates: int) -> None:
    """Also where another request made room for this one."""

    async def ask(pipe: RSDPipeline, name: str) -> list[float | None]:
        TENANT.set(name)
        out = await pipe.agenerate(name, draft_candidates=candidates, temperature=1.0)
        rewards = [one.reward for step in out.steps for one in step.candidates or [step]]
        rewards += await pipe.ascore(name, ["one\n\n", "two"])
        assert TENANT.get() == name
        return rewards

    async def ask_all(pipe: RSDPipeline) -> list[list[float | None]]:
        return await asyncio.gather(*(ask(pipe, f"tenant {number}") for number in range(4)))

    numbers = itertools.count()  # Candidates that are alike would be scored once.

    def draft(prompt: Prompt, index: int, text: str) -> str:
        return f"{next(numbers)}" if index == 2 else f"{next(numbers)}\n\n"

    with over(function, remote=remote, draft=draft, at_once=candidates) as pipe:
        assert asyncio.run(ask_all(pipe)) == [[1.0] * (3 * candidates + 2)] * 4


def test_connections_to_servers_belong_to_no_caller() -> None:
    """They outlive his request, and would hold what his context holds."""
    seen = []

    class Watching(Awaited):
        async def write(self, session: Any) -> Any:
            seen.append(TENANT.get(None))
            return await super().write(session)

    writers = Watching(ScriptedWriter(DRAFT)), Awaited(ScriptedWriter(TARGET))
    scorer = RemoteFunctionScorer(RewardFunction(two_is_bad))
    with RSDPipeline(RemoteBackend(*writers, scorer, max_batch_size=1)) as pipe:
        context = copy_context()
        context.run(TENANT.set, "one")
        context.run(pipe.generate, "count")
    assert set(seen) == {None}


class Value:
    """What a context variable holds."""


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("function", [two_is_bad, awaited], ids=["sync", "async"])
@pytest.mark.parametrize("how", ["to its end", "failed", "late"])
def test_a_context_is_held_as_long_as_its_request_lives(function: Any, remote: bool, how: str) -> None:
    """Not longer, though streams and the pipeline are."""

    def fails(*_: Any) -> Exception:
        return OSError("it broke")

    def ask(pipe: RSDPipeline) -> tuple[Any, weakref.ref[Value]]:
        TENANT.set(value := Value())
        held = weakref.ref(value)
        del value
        stream = pipe.stream("count", timeout=0.0001 if how == "late" else 100)
        with pytest.raises(OSError, match="it broke") if how == "failed" else contextlib.nullcontext():
            assert stream.result().finish_reason in ("stop", "cancelled")
        # The error of one that failed holds the frames that it went through, as any does.
        return None if how == "failed" else stream, held

    with over(function, remote=remote, draft=fails if how == "failed" else DRAFT) as pipe:
        streams, held = zip(*[copy_context().run(ask, pipe) for _ in range(3)], strict=True)

        def gone() -> bool:
            gc.collect()
            return not any(value() for value in held)

        wait_for(gone)
        assert len(streams) == 3


def test_a_failure_is_its_own_request_s() -> None:
    def fails(prompt: Prompt, steps: tuple[str, ...]) -> float:
        if prompt == "bad":
            raise OSError("no judge there")
        return 0.9

    with over(fails) as pipe:
        streams = [pipe.stream(prompt) for prompt in ("good", "bad", "good")]
        assert streams[0].result().text == streams[2].result().text == "one\n\ntwo\n\nthree"
        with pytest.raises(RewardError, match=r"OSError: no judge there"):
            streams[1].result()


def test_a_cancelled_request_does_not_wait_for_its_reward() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(prompt: Prompt, steps: tuple[str, ...]) -> float:
        asked.set()
        go_on.wait(20)
        return 0.9

    with over(slow) as pipe:
        stream = pipe.stream("count")
        assert asked.wait(20)
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"
        go_on.set()


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_closing_leaves_no_thread_and_no_call(kind: str, remote: bool) -> None:
    asked, ended, go_on = threading.Event(), threading.Event(), threading.Event()
    before = set(threading.enumerate())

    def waits(prompt: Prompt, steps: tuple[str, ...]) -> float:
        asked.set()
        assert go_on.wait(20)
        ended.set()
        return 0.9

    async def for_ever(prompt: Prompt, steps: tuple[str, ...]) -> float:
        asked.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return 0.9

    pipe = over(waits if kind == "sync" else for_ever, remote=remote)
    stream = pipe.stream("count")
    assert asked.wait(20)
    ours = [one for one in threading.enumerate() if one not in before and one.name.startswith("rsd-reward")]
    assert len(ours) == (0 if remote and kind == "async" else 1)
    pipe.close()
    with pytest.raises(EngineClosedError):
        stream.result()
    go_on.set()
    assert ended.wait(20)
    for thread in ours:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("whose", ["function", "scorer"])
def test_what_does_not_let_itself_be_ended_keeps_no_pipeline_open(
    whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_CLOSING", 0.1)
    asked, go_on = threading.Event(), threading.Event()

    async def stays(prompt: Prompt, steps: tuple[str, ...]) -> float:
        asked.set()
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return 0.9

    class Staying(Awaited):
        async def score(self, session: Any, step: Any) -> Any:
            return Scored(await stays("", ()), 1)

    pipe = over(stays, remote=True)
    if whose == "scorer":
        parts: Any = ScriptedWriter(DRAFT), ScriptedWriter(TARGET), ScriptedScorer([0.9])
        pipe = RSDPipeline(RemoteBackend(Awaited(parts[0]), Awaited(parts[1]), Staying(parts[2])))
    stream = pipe.stream("count")
    assert asked.wait(20)
    closing = threading.Thread(target=pipe.close)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    with pytest.raises(EngineClosedError):
        stream.result()
    go_on.set()


def test_what_does_not_let_itself_be_ended_goes_quietly() -> None:
    """Python's collector closes what was left of it."""
    script = """
import asyncio, gc, threading
from rsd_integrations import RSDPipeline
from rsd_integrations.engine import tasks
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter
from tests.awaited import Awaited

tasks._CLOSING = 0.1
asked = threading.Event()

class Staying(Awaited):
    async def score(self, session, step):
        asked.set()
        while True:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                pass

writers = [Awaited(ScriptedWriter(["a"])) for _ in range(2)]
pipe = RSDPipeline(RemoteBackend(*writers, Staying(ScriptedScorer([0.9]))))
stream = pipe.stream("count")
assert asked.wait(20)
pipe.close()
del pipe, stream
gc.collect()
"""
    root = Path(__file__).parent.parent
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root)
    assert "KeyError" not in done.stderr


@pytest.mark.parametrize("remote", [False, True])
def test_a_closed_scorer_is_refused(remote: bool) -> None:
    pipe = over(two_is_bad, remote=remote)
    pipe.close()
    with pytest.raises(ConfigError, match=r"was closed with its pipeline"):
        RSDPipeline(pipe.backend)


@pytest.mark.parametrize("function", [lambda: 0.9, lambda prompt: 0.9, lambda a, b, c: 0.9, 3])
def test_functions_that_take_something_else_are_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match=r"does not take what it is called with|callable"):
        RewardFunction(function)


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"threshold=1.2 is not in \[0, 1\]"):
        RewardFunction(two_is_bad, threshold=1.2)
    with pytest.raises(ConfigError, match=r"threshold='0.5' is not in"):
        RewardFunction(two_is_bad, threshold="0.5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"max_concurrency=0"):
        RewardFunction(two_is_bad, max_concurrency=0)


class TestWithRealModels:
    """The pocket trio's writers and a function, by all the ways in."""

    QUESTION = (
        "Ava has 12 marbles. She buys 9 more. Ben gives her 5 more. How many marbles does Ava have now?"
    )

    @staticmethod
    def nothing_is_good(prompt: Prompt, steps: tuple[str, ...]) -> float:
        return 0.2

    @staticmethod
    def told(out: Generation) -> list[tuple[str, float | None]]:
        return [(step.source, step.reward) for step in out.steps]

    def test_in_place_of_the_prm(self) -> None:
        config = RSDConfig(temperature=0.0)
        with RSDPipeline.pocket() as pocket:
            target = pocket.generate(self.QUESTION, config=config, threshold=1.1).text
        with RSDPipeline.pocket(prm=self.nothing_is_good) as pipe:
            out = pipe.generate(self.QUESTION, config=config)
            assert out.text == target
            assert {*self.told(out)} == {("target", 0.2)}
            kept = pipe.generate(self.QUESTION, config=config, threshold=0.1)
            assert {*self.told(kept)} == {("draft", 0.2)}
        with RSDPipeline.pocket(prm=RewardFunction(self.nothing_is_good, threshold=0.1)) as pipe:
            assert pipe.generate(self.QUESTION, config=config).text == kept.text

    def test_the_draft_writes_on_meanwhile(self) -> None:
        """More than it would for a PRM that gathers steps, and the answer is the same."""
        ahead: list[int] = []
        engine: Any = None

        def patient(prompt: Prompt, steps: tuple[str, ...]) -> float:
            def written() -> int:
                going_on = engine._live[0].going_on
                return 0 if going_on is None else len(going_on.session.so_far)

            if len(steps) == 1:
                wait_for(lambda: written() > 2 * SCORE_ROUNDS)
                ahead.append(written())
            return 0.9

        config = RSDConfig(temperature=0.0)
        with RSDPipeline.pocket(prm=lambda prompt, steps: 0.9) as pipe:
            at_once = pipe.generate(self.QUESTION, config=config)
        with RSDPipeline.pocket(prm=patient) as pipe:
            engine = pipe._engine
            waited = pipe.generate(self.QUESTION, config=config)
        assert ahead[0] > 2 * SCORE_ROUNDS
        assert waited.text == at_once.text
        assert waited.usage.draft == at_once.usage.draft, "what was written ahead was used"

    def test_in_adapters(self) -> None:
        from rsd_integrations.pocket import pocket_paths

        paths = pocket_paths()
        models: dict[str, Any] = {"draft": paths.draft, "target": paths.target, "prm": self.nothing_is_good}
        chat, llm = ChatRSD(**models, temperature=0.0), RSDLLM(**models, temperature=0.0)
        assert chat.source is llm.source, "the same models, the same pipeline"
        answer = chat.invoke(self.QUESTION)
        assert answer.response_metadata["rsd"]["acceptance_rate"] == 0.0
        assert answer.content == llm.complete(self.QUESTION).text
        assert "nothing_is_good" in chat.model_names["prm"]

    @pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
    @pytest.mark.parametrize("prm", [two_is_bad, RewardFunction(two_is_bad, threshold=0.3)])
    def test_a_function_of_a_module_is_pickled(self, kind: Any, prm: Any) -> None:
        made = kind(draft="a", target="b", prm=prm)
        again = pickle.loads(pickle.dumps(made))
        assert again.prm == prm
        assert again.source is made.source

    def test_an_object_that_is_called_may_have_methods_of_any_name(self) -> None:
        class Judge:
            def open(self) -> None: ...

            def __call__(self, prompt: Prompt, steps: tuple[str, ...]) -> float:
                return 0.2

        with RSDPipeline.pocket(prm=Judge()) as pipe:
            assert {*self.told(pipe.generate(self.QUESTION))} == {("target", 0.2)}

    def test_equal_functions_share_a_pipeline(self) -> None:
        """Methods are made anew each time they are named."""

        class Service:
            def judge(self, prompt: Prompt, steps: tuple[str, ...]) -> float:
                return 0.9

        one, two = Service(), Service()
        made = [ChatRSD(draft="a", target="b", prm=service.judge) for service in (one, one, two)]
        assert made[0].source is made[1].source
        assert made[0].source is not made[2].source

    def test_functions_of_what_cannot_be_a_key_are_themselves(self) -> None:
        class Service(list[int]):
            def __call__(self, prompt: Prompt, steps: tuple[str, ...]) -> float:
                return 0.9

        made = [ChatRSD(draft="a", target="b", prm=RewardFunction(Service())) for _ in range(2)]
        assert made[0].source is not made[1].source

    @pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
    def test_a_key_of_servers_is_none_of_a_function_s(self, kind: Any) -> None:
        url = "http://127.0.0.1:9"
        made = kind(draft=url, target=url, prm=two_is_bad, api_key="k")
        assert {name for name in made._spec() if name.endswith("kwargs")} == {"draft_kwargs", "target_kwargs"}

    def test_another_is_refused_by_name(self) -> None:
        with pytest.raises(ConfigError, match=r"prm=<function .*<lambda>.* Define it in a module by"):
            pickle.dumps(ChatRSD(draft="a", target="b", prm=lambda prompt, steps: 0.9))

    def test_loading_options_are_refused(self) -> None:
        for options in ({"prm_kwargs": {"dtype": "float32"}}, {"prm_format": "trl"}):
            with pytest.raises(ConfigError, match=rf"{next(iter(options))} is for a prm that is loaded"):
                RSDPipeline.pocket(prm=self.nothing_is_good, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("first", ["cancel", "close"])
def test_an_async_function_may_clean_up(first: str, remote: bool) -> None:
    asked, cleaned = threading.Event(), threading.Event()

    async def cleans_up(prompt: Prompt, steps: tuple[str, ...]) -> float:
        asked.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()
        return 0.9

    with over(cleans_up, remote=remote) as pipe:
        stream = pipe.stream("count")
        assert asked.wait(20)
        if first == "cancel":
            stream.cancel()
            assert stream.result().finish_reason == "cancelled"
    assert cleaned.wait(20)


def test_a_long_call_is_waited_for_in_its_first_round_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()

    def judge(prompt: Prompt, steps: tuple[str, ...]) -> float:
        return float(gate.wait(60))

    scorer = FunctionScorer(RewardFunction(judge))
    session = scorer.open("p")
    assert scorer.score([session], [ScoreStep("a")]) == [None]
    monkeypatch.setattr(functions, "_TURN", 30.0)
    opens = threading.Timer(20.0, gate.set)
    opens.start()
    assert scorer.score([session], [ScoreStep("a")]) == [None]  # Else it waits until the gate opens.
    opens.cancel()
    gate.set()
    scorer.close()
