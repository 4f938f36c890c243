"""Any order of asking, reading, leaving and failing: what engines owe each request, whoever else is there.

Nothing depends on time: models wait at a gate, the clock is the test's, and an engine is looked at when it
can do nothing more by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rsd_integrations import RSDPipeline
from rsd_integrations.engine import batch, job
from rsd_integrations.errors import BackendError, EngineClosedError, TimedOutError
from rsd_integrations.functions import FunctionScorer, RemoteFunctionScorer, RewardFunction
from rsd_integrations.output import Output
from rsd_integrations.protocols import Backend, DraftStep, GuessStep, TargetStep, Written
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter
from rsd_integrations.types import ROLES
from tests.gated import PATIENCE, wait_for

NUMBER: ContextVar[int] = ContextVar("NUMBER", default=-1)
"""Of the request: its sessions are opened in its caller's context."""
ROUND = 3
"""Most batches of a round, which goes on when a request is cancelled or another leaves room."""


class Gate:
    """Whatever comes here waits until it is let through."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: list[Future[None]] = []
        self.passed = 0
        self.open = False

    def come(self) -> Future[None]:
        one: Future[None] = Future()
        with self.lock:
            if self.open:
                one.set_result(None)
            else:
                self.waiting.append(one)
        return one

    @property
    def held(self) -> list[Future[None]]:
        with self.lock:
            self.waiting = [one for one in self.waiting if not one.cancelled()]
            return [*self.waiting]

    def let_through(self, which: int = 0) -> None:
        if held := self.held:
            one = held[which % len(held)]
            with self.lock:
                self.waiting.remove(one)
                self.passed += 1
            if one.set_running_or_notify_cancel():
                one.set_result(None)

    def take_down(self) -> None:
        with self.lock:
            self.open = True
        while self.held:
            self.let_through()


class Pool:
    """In place of a pool of functions: tells how many are at work, until whoever waits for one was told."""

    def __init__(self, *_: Any) -> None:
        self.busy = self.begun = 0
        self.threads = ThreadPoolExecutor(64)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        made: Future[Any] = Future()
        self.busy += 1
        self.begun += 1
        self.threads.submit(self._run, made, function, args)
        return made

    def _run(self, made: Future[Any], function: Callable[..., Any], args: Any) -> None:
        if made.set_running_or_notify_cancel():
            made.set_result(function(*args))
        self.busy -= 1

    def shutdown(self, **options: Any) -> None:
        self.threads.shutdown(**options)


@dataclass(frozen=True)
class Setting:
    """A pipeline of this machine."""

    rounds: bool
    """Whether the models are those of this process; else they are awaited."""
    prm: str
    window: int
    size: int


@dataclass(frozen=True)
class Ask:
    """A request."""

    prompt: str
    fields: tuple[tuple[str, Any], ...] = ()
    tools: bool = False
    steps: tuple[str, ...] = ()
    """To be scored, if there are any."""


class World:
    """The models of a pipeline: what they have in common, and what they noted."""

    def __init__(self, setting: Setting, *, gated: bool) -> None:
        self.setting = setting
        self.gate, self.judges = Gate(), Gate()
        if not gated:
            self.gate.take_down()
            self.judges.take_down()
        self.wrong: list[str] = []
        self.sessions: list[Any] = []
        self.begun: list[int] = []
        """Requests in the order of their starts."""
        self.faults: dict[tuple[str, str], tuple[bool, Exception]] = {}
        """What fails next, by role and method: for all that are there, or for one."""
        self.hit: dict[int, list[Exception]] = {}
        self.thread: Any = None
        self.pool = Pool()
        make = InRounds if setting.rounds else Behind
        writers = [
            make(self, role, ScriptedWriter(script(role), window=setting.window, parameters=size))
            for role, size in (("draft", setting.window), ("target", 1000))  # Guesses pay with a small draft.
        ]
        scorer = make(self, "prm", self._scorer())
        kind: Any = Backend if setting.rounds else RemoteBackend
        self.pipe = RSDPipeline(kind(*writers, scorer, setting.size))
        self.thread = self.pipe._engine._thread

    def _scorer(self) -> Any:
        if self.setting.prm == "scripted":
            return ScriptedScorer(reward, window=self.setting.window)

        def judge(prompt: Any, steps: tuple[str, ...]) -> float:
            if self.setting.prm == "slow":
                self.judges.come().result(PATIENCE)
            return reward(prompt, len(steps), steps[-1])

        async def awaited(prompt: Any, steps: tuple[str, ...]) -> float:
            await asyncio.wrap_future(self.judges.come())
            return reward(prompt, len(steps), steps[-1])

        made = FunctionScorer if self.setting.rounds else RemoteFunctionScorer
        function: Any = awaited if self.setting.prm == "async" else judge
        scorer = made(RewardFunction(function, "judge", max_concurrency=64))
        scorer._pool = self.pool  # type: ignore[assignment]
        return scorer

    def settle_functions(self) -> None:
        """Wait until those that score have nothing left to do but to wait at the gate."""
        soon(lambda: self.setting.prm == "async" or self.pool.busy == len(self.judges.held))
        loop = getattr(self.pipe.backend.prm, "_loop", None)
        if loop is not None:
            idle(loop)

    def settle(self) -> None:
        """Wait until nothing more happens by itself."""
        engine: Any = self.pipe._engine
        begun = -1
        while begun < self.pool.begun:
            begun = self.pool.begun
            self.settle_functions()
            if self.setting.rounds:
                soon(self._stands)
            else:
                idle(engine._loop)

    def _stands(self) -> bool:
        """Whether the engine of rounds waits for its models, or for requests."""
        engine: Any = self.pipe._engine
        probe: Future[bool] = Future()
        engine._inbox.put(lambda: probe.set_result(not engine._live and not engine._queued))
        soon(lambda: bool(self.gate.held) or probe.done())
        return bool(self.gate.held) or probe.result()

    def fault(self, role: str, what: str, numbers: Sequence[int]) -> tuple[bool, Exception] | None:
        """The error that is due here, if these requests can be hit by one."""
        everybody, _ = self.faults.get((role, what), (True, None))
        if what == "work" and self.setting.rounds and not everybody and len({*numbers}) < 2:
            return None  # One among several is to fail.
        found = self.faults.pop((role, what), None)
        for number in numbers if found and found[0] else numbers[:1]:
            if found:
                self.hit.setdefault(number, []).append(found[1])
        return found

    def note(self, session: Any, what: str) -> None:
        self.wrong.append(f"{session.role} of request {session.number}: {what}")


def apart(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """A call in a thread that nobody has to wait for."""
    made: Future[Any] = Future()

    def run() -> None:
        try:
            made.set_result(function(*args))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return made


def soon(condition: Callable[[], bool]) -> None:
    """Wait for what other threads are about to do."""
    for _ in range(200):
        if condition():
            return
        time.sleep(0)
    wait_for(condition)


LOOKING = threading.Lock()
"""Two that look at a loop would keep each other busy."""


def idle(loop: Any) -> None:
    """Wait until an event loop has nothing to do."""
    probe: Future[None] = Future()

    def look() -> None:
        if loop._ready:
            loop.call_soon(look)
        else:
            probe.set_result(None)

    with LOOKING:
        loop.call_soon_threadsafe(look)
        probe.result(PATIENCE)


def script(role: str) -> Callable[..., str | None]:
    """Short steps that depend on all that was written before; the prompt says how many."""

    def steps(prompt: Any, index: int, text: str, output: Output) -> str | None:
        number = zlib.crc32(f"{role}{prompt}{index}{text}".encode())
        if index >= int(prompt[0]):
            return None
        if output.tools and number % 5 == 0:
            return '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        return f"{role[0]}{number % 30}" + "\n\n" * (number % 7 > 0)

    return steps


def reward(prompt: Any, index: int, body: str) -> float:
    if "bad" in prompt and index:
        return float("nan")
    return zlib.crc32(f"{prompt}{body}".encode()) % 11 / 10


FALLIBLE = frozenset(("begin", "commit", "fork", "guess"))
USED = FALLIBLE | {"push", "goes_on", "wanted", "so_far", "tags", "reader"}


class Watched:
    """A session that notes misuse, counts what it writes, and may fail."""

    world: World
    role: str
    number: int

    def __getattribute__(self, name: str) -> Any:
        if name in USED:
            world = self.world
            if self.closes:
                world.note(self, f"{name} of a closed session")
            if world.thread not in (None, threading.current_thread()):
                world.note(self, f"{name} in another thread")
            if name in FALLIBLE and (found := world.fault(self.role, name, [self.number])):
                raise found[1]
        return object.__getattribute__(self, name)

    def watch(self, world: World, role: str, number: int, place: int = 0) -> Any:
        self.world, self.role, self.number, self.place = world, role, number, place
        self.closes = self.forks = self.written = self.scored = 0
        self.piece: Any = None
        self.done: Written | None = None
        self.told = self.committing = False
        self.kept: list[Any] = []
        world.sessions.append(self)
        return self

    def fork(self) -> Any:
        self.forks += 1
        made = super().fork()  # type: ignore[misc]
        made.__class__ = type(self)
        return made.watch(self.world, self.role, self.number, self.forks)

    def begin(self, work: Any) -> None:
        if isinstance(work, GuessStep) and work.sampling and not self.goes_on:
            self.world.note(self, "goes on where it cannot")
        self.piece, self.done, self.told, self.left = work, None, False, getattr(work, "count", 0)
        if isinstance(work, GuessStep):
            return
        super().begin(work)  # type: ignore[misc]
        if work.sampling.temperature and isinstance(self._script, str):
            self._script: Any = "abc"[int(3 * work.sampling.draw())] + self._script

    def push(self) -> Any:
        if self.piece is None or self.done is not None:
            self.world.note(self, "nothing to write")
        if isinstance(self.piece, GuessStep):
            self.left -= 1
            self.tally.add(0, 1)
            return Written("", (63,) * self.piece.count, "limit") if self.left <= 0 else None
        if self.wanted:
            self.world.note(self, "not told of guesses")
        before = len(self.tokens)
        self.done = super().push()  # type: ignore[misc]
        self.written += len(self.tokens) - before
        return self.done

    @property
    def wanted(self) -> int:
        guessable = isinstance(self.piece, TargetStep) and self.piece.rejected and len(self.tokens) == 1
        return 2 if self.world.setting.rounds and guessable and not self.told else 0

    @property
    def goes_on(self) -> bool:
        return isinstance(self.piece, DraftStep) and self.done is not None and self.done.end == "delimiter"

    def guess(self, tokens: Any) -> None:
        self.told = True

    def commit(self, kept: Any, *, own: bool) -> None:
        mine = (kept.source == "target") == (self.role == "target")
        if own != (mine and (self.role == "target" or self.place == kept.candidate)):
            self.world.note(self, f"own={own}")
        self.piece = None
        self.kept.append((kept.source, kept.written))
        self.committing = True
        super().commit(kept, own=own)  # type: ignore[misc]
        self.committing = False

    def close(self) -> None:
        if self.committing:  # A session with a function closes its last call.
            super().close()  # type: ignore[misc]
            return
        self.closes += 1
        if self.world.thread is not threading.current_thread():
            self.world.note(self, "closed in another thread")
        super().close()  # type: ignore[misc]
        if found := self.world.fault(self.role, "close", [self.number]):
            raise found[1]


class Model:
    """A model whose sessions are watched."""

    def __init__(self, world: World, role: str, model: Any) -> None:
        self.world, self.role, self.model = world, role, model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def open(self, *given: Any) -> Any:
        number = NUMBER.get()
        if number not in self.world.begun:
            self.world.begun.append(number)
        if found := self.world.fault(self.role, "open", [number]):
            raise found[1]
        session = self.model.open(*given)
        session.__class__ = type("Watched", (Watched, type(session)), {})
        return session.watch(self.world, self.role, number)


class InRounds(Model):
    """One of this process."""

    def advance(self, sessions: Sequence[Any]) -> Any:
        return self._round(sessions, lambda: self.model.advance(sessions))

    def score(self, sessions: Sequence[Any], work: Sequence[Any]) -> Any:
        results = self._round(sessions, lambda: self.model.score(sessions, work))
        self.world.settle_functions()
        for place, (session, step) in enumerate(zip(sessions, work, strict=True)):
            if results[place] is None:  # It may have been a moment late.
                (results[place],) = self.model.score([session], [step])
            session.scored += getattr(results[place], "tokens", 0)
        return results

    def _round(self, sessions: Sequence[Any], run: Callable[[], Any]) -> Any:
        if len({*map(id, sessions)}) < len(sessions):
            self.world.note(sessions[0], "twice in a batch")
        self.world.gate.come().result(PATIENCE)
        working = [one.number for one in sessions if not isinstance(one.piece, GuessStep)]
        found = self.world.fault(self.role, "work", working)
        ahead = self.world.fault(self.role, "ahead", []) if len(working) < len(sessions) else None
        if found and found[0]:
            raise found[1]
        results = [*run()]
        for place, session in enumerate(sessions):
            if found and session.number == working[0]:
                results[place] = found[1]
            if ahead and isinstance(session.piece, GuessStep):  # Which fails without a word.
                results[place] = ahead[1]
        return results


class Behind(Model):
    """One that is awaited."""

    async def write(self, session: Any) -> Any:
        written = None
        while written is None:
            await self._turn(session)
            for _ in range(3):
                if written is None:
                    (written,) = self.model.advance([session])
        return given(written)

    async def score(self, session: Any, step: Any) -> Any:
        await self._turn(session)
        if isinstance(self.model, RemoteFunctionScorer):
            scored = await self.model.score(session, step)
        else:
            scored = given(self.model.score([session], [step])[0])
        session.scored += scored.tokens
        return scored

    async def _turn(self, session: Any) -> None:
        await asyncio.wrap_future(self.world.gate.come())
        if found := self.world.fault(self.role, "work", [session.number]):
            raise found[1]

    def go_on(self, session: Any) -> None:
        if not isinstance(session.piece, GuessStep):
            self.world.note(session, "goes on without having begun")

    async def aclose(self) -> None:
        if isinstance(self.model, RemoteFunctionScorer):
            await self.model.aclose()


def given(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


UNLIKE = ("elapsed_ms", "draft_ms", "score_ms", "target_ms", "id", "forwarded", "flops", "flops_ratio")
"""Fields that may differ from one time to the next."""


def said(error: Exception | None) -> tuple[type, str]:
    """Streams raise copies. Faults have numbers."""
    return type(error), str(error)


def plain(item: Any) -> Any:
    if isinstance(item, dict):
        return {name: plain(value) for name, value in item.items() if name not in UNLIKE}
    return [plain(one) for one in item] if isinstance(item, list | tuple) else item


def submit(pipe: RSDPipeline, ask: Ask, timeout: float | None, how: str) -> Any:
    """A stream, or whatever a call comes to."""
    if ask.steps:
        return pipe.score(ask.prompt, ask.steps, timeout=timeout)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    output = Output.of(tools=[tool]) if ask.tools else None
    made = getattr(pipe, how)(ask.prompt, timeout=timeout, output=output, **dict(ask.fields))
    return made


@cache
def alone(ask: Ask, setting: Setting) -> tuple[list[Any], Any, Exception | None]:
    """Events and result of a request that has no company, and its error."""
    world = World(setting, gated=False)
    events: list[Any] = []
    result = error = None
    with world.pipe:
        try:
            result = submit(world.pipe, ask, None, "stream")
            if not ask.steps:
                events += (plain(event.model_dump()) for event in result)
                result = result.result()
        except Exception as failed:
            error = failed
    return events, result, error


@dataclass(eq=False)
class Asked:
    """A request of the machine."""

    number: int
    ask: Ask
    how: str
    deadline: float | None
    called: Future[Any] | None = None
    stream: Any = None
    end: Any = None
    """Of a stream: it may have been dropped."""
    events: list[Any] = field(default_factory=list)
    left: int | None = None
    """Batches before it was left, or its time was up."""
    never: bool = False
    """Whether it was left before its start."""
    closed: bool = False
    """Whether its stream is read no more."""

    @property
    def over(self) -> bool:
        if self.called is not None:
            return self.called.done()
        return self.end.generation is not None or self.end.error is not None

    @property
    def rows(self) -> int:
        fields = dict(self.ask.fields)
        target = fields.get("weighting", "step") == "step" and (fields.get("threshold") or 0) > 1
        return 1 if target else fields.get("draft_candidates", 1)


def broken(reward: float) -> float:
    raise ZeroDivisionError("no weight")


FIELDS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2)},
    optional={
        "threshold": st.sampled_from([0.5, 0.7, 0.3, 1.0, 0.0, 1.1]),
        "weighting": st.sampled_from(["step", "clip", "constant", "logistic", broken]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "draft_candidates": st.integers(1, 3),
        "max_tokens": st.sampled_from([1, 5, 12]),
        "max_steps": st.sampled_from([1, 2]),
        "max_step_tokens": st.sampled_from([1, 3]),
        "stop": st.sampled_from([("1",), ("\n\nd", "2\n"), ("t2",)]),
        "speculation": st.booleans(),
    },
)
PROMPTS = st.sampled_from(["3", "1", "2", "4", "3 bad", "0", "2" + 30 * "x"])
SETTINGS = st.builds(
    Setting,
    rounds=st.booleans(),
    prm=st.sampled_from(["slow", "scripted", "async", "quick"]),
    window=st.sampled_from([20, 1000]),
    size=st.sampled_from([3, 5, 2, 1]),
)
TIMES = st.sampled_from([None, 1.0, 5.0, 100.0])
STEPS = st.lists(st.sampled_from(["a", "b\n\n", " ", 20 * "c"]), min_size=1, max_size=4).map(tuple)
WRITTEN = st.builds(Ask, PROMPTS, FIELDS.map(lambda fields: tuple(fields.items())), st.booleans())
SEVERAL = st.lists(
    st.tuples(WRITTEN, TIMES, st.sampled_from(["stream", "astream", "stream", "astream", "generate"]))
    | st.tuples(st.builds(Ask, PROMPTS, steps=STEPS), TIMES, st.just("generate")),
    min_size=2,
    max_size=4,
)
WHICH = st.integers(0, 30)
WORK = st.tuples(st.integers(0, 12), st.integers(0, 7))
"""Batches behind each act, and which of those that wait are let through."""
PLACES = [
    *((role, what) for role in ROLES for what in ("work", "work", "work", "open", "commit", "close")),
    *(("draft", what) for what in ("begin", "fork", "ahead", "ahead", "ahead")),
    *(("target", what) for what in ("begin", "guess")),
    ("prm", "fork"),
]


class Company(RuleBasedStateMachine):
    """Requests that share a pipeline."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.now, self.faults = 1000.0, 0
        self.room_since: dict[int, int] = {}
        self.stack = ExitStack()
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=time.perf_counter, sleep=time.sleep)
        for module in (job, batch):
            self.stack.enter_context(patch.object(module, "time", clock))
        self.loop = asyncio.new_event_loop()
        self.stack.callback(self.loop.close)

    @initialize(setting=SETTINGS, closing=st.booleans(), asks=SEVERAL, work=WORK)
    def make(self, setting: Setting, closing: bool, asks: list[Any], work: tuple[int, int]) -> None:
        self.setting, self.closing = setting, closing
        self.world = World(setting, gated=True)
        self.pipe = self.world.pipe
        self.engine: Any = self.pipe._engine
        if not setting.rounds:
            self.engine._loop.time = lambda: self.now
        self.ask(asks, work)

    @property
    def unfinished(self) -> list[Asked]:
        return [one for one in self.asked if not one.over]

    @rule(asks=SEVERAL, work=WORK)
    def ask(self, asks: list[tuple[Ask, float | None, str]], work: tuple[int, int]) -> None:
        for ask, timeout, how in asks:
            fields = dict(ask.fields)
            if "draft_candidates" in fields:
                fields["draft_candidates"] = min(fields["draft_candidates"], self.setting.size)
                fields["temperature"] = 1.0
            self._submit(replace(ask, fields=tuple(fields.items())), timeout, how)
        assert self.pipe.count_tokens("abc") == len(self.pipe.token_ids("abc")) == 3
        self._work(*work)

    def _submit(self, ask: Ask, timeout: float | None, how: str) -> None:
        deadline = None if timeout is None else self.now + timeout
        one = Asked(len(self.asked), ask, how, deadline)
        context = copy_context()
        context.run(NUMBER.set, one.number)

        async def coming() -> Any:
            return submit(self.pipe, ask, timeout, how)

        if how == "generate":
            before = self.engine._submitted
            one.called = apart(context.run, submit, self.pipe, ask, timeout, how)
            soon(lambda: self.engine._submitted > before)
        elif how == "astream":
            one.stream = context.run(self.loop.run_until_complete, coming())
        else:
            one.stream = context.run(submit, self.pipe, ask, timeout, how)
        one.end = one.stream and one.stream._end
        self.asked.append(one)
        self.world.settle()

    def _work(self, batches: int, which: int) -> None:
        for _ in range(batches):
            if self.world.gate.held:
                self.world.gate.let_through(which)
                self.world.settle()
        if which % 2:
            self.world.judges.let_through(which)
            self.world.settle()

    @rule(which=WHICH, count=st.integers(1, 10), work=WORK)
    def read(self, which: int, count: int, work: tuple[int, int]) -> None:
        one = self.asked[which % len(self.asked)]
        if one.stream is not None and not one.closed:
            self.loop.run_until_complete(asyncio.sleep(0))  # What has arrived is put into its queue.
            self._read(one, min(count, one.stream._items.qsize()))
        self._work(*work)

    def _read(self, one: Asked, count: int) -> None:
        async def anext_() -> Any:
            return await anext(one.stream, None)

        for _ in range(count):
            try:
                if one.how == "astream":
                    event = self.loop.run_until_complete(asyncio.wait_for(anext_(), PATIENCE))
                else:
                    event = apart(next, one.stream, None).result(PATIENCE)
            except Exception as error:
                if said(error) != said(one.end.error):
                    raise
                return
            if event is None:
                return
            one.events.append(event)

    @rule(which=WHICH, how=st.sampled_from(["cancel", "close", "drop"]), work=WORK)
    def leave(self, which: int, how: str, work: tuple[int, int]) -> None:
        streams = [one for one in self.asked if one.stream is not None]
        streams = [one for one in streams if not one.over] or streams
        if not streams:
            return
        one = streams[which % len(streams)]
        self._left(one)
        if how == "cancel":
            one.stream.cancel()
        elif how == "drop":
            one.stream, one.closed = None, True
        else:
            one.closed = True
            self.loop.run_until_complete(one.stream.aclose()) if one.how == "astream" else one.stream.close()
        self.world.settle()
        self._work(*work)

    def _left(self, one: Asked) -> None:
        if not one.over and one.left is None:
            one.left, one.never = self.world.gate.passed, one.number not in self.world.begun

    @rule(seconds=st.sampled_from([1.0, 10.0]), work=WORK)
    def pass_time(self, seconds: float, work: tuple[int, int]) -> None:
        for one in self.asked:
            if one.deadline is not None and one.deadline <= self.now + seconds:
                self._left(one)
        self.now += seconds
        if not self.setting.rounds:
            self.engine._loop.call_soon_threadsafe(lambda: None)  # It looks at its timers.
        self.world.settle()
        self._work(*work)

    @rule(
        places=st.lists(st.sampled_from(PLACES), min_size=1, max_size=4), everybody=st.booleans(), work=WORK
    )
    def fail(self, places: list[tuple[str, str]], everybody: bool, work: tuple[int, int]) -> None:
        for place in places:
            self.faults += 1
            self.world.faults[place] = everybody, BackendError(f"fault {self.faults} at {place}.")
        self._work(*work)

    @invariant()
    def nobody_misuses_a_session(self) -> None:
        assert not self.world.wrong

    @invariant()
    def its_numbers_are_right(self) -> None:
        soon(lambda: self._running() + self.pipe.requests.waiting == len(self.unfinished))
        begun = [one for one in self.unfinished if one.number in self.world.begun]
        rows = sum(one.rows if self.setting.rounds else 1 for one in begun)
        assert len(begun) == self._running() <= rows <= self.setting.size
        assert self.pipe.requests.waiting >= 0

    def _running(self) -> int:
        return self.pipe.requests.running

    @invariant()
    def they_come_in_order(self) -> None:
        assert self.world.begun == sorted(self.world.begun)
        assert not [one.number for one in self.asked if one.never and one.number in self.world.begun]

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        soon(lambda: bool(self.world.gate.held or self.world.judges.held or not self.unfinished))
        passed, late = self.world.gate.passed, ROUND if self.setting.rounds else 0
        assert not [one for one in self.unfinished if one.left is not None and passed - one.left > late]
        begun = [one for one in self.unfinished if one.number in self.world.begun]
        waiting = [one for one in self.unfinished if one not in begun]
        rows = sum(one.rows if self.setting.rounds else 1 for one in (*begun, *waiting[:1]))
        if waiting and rows <= self.setting.size:
            assert passed - self.room_since.setdefault(waiting[0].number, passed) <= late

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self._end()
        finally:
            if hasattr(self, "world"):
                self.world.gate.take_down()
                self.world.judges.take_down()
                self.pipe.close()
            self.stack.close()

    def _end(self) -> None:
        self.world.settle()
        cut = {one.number for one in self.unfinished} if self.closing else set()
        closing = None
        if self.closing:
            closing = apart(self.pipe.close)
            soon(lambda: self.engine._closed)
        self.world.gate.take_down()
        self.world.judges.take_down()
        if closing:
            closing.result(PATIENCE)
        for one in self.asked:
            self._check(one, one.number in cut)
        soon(lambda: self.pipe.requests.running == self.pipe.requests.waiting == 0)
        self.pipe.close()
        assert (self.pipe.requests.running, self.pipe.requests.waiting) == (0, 0)
        assert not self.world.wrong
        assert [session.closes for session in self.world.sessions] == [1] * len(self.world.sessions)
        self._check_closed()

    def _check_closed(self) -> None:
        for call in (
            lambda: self.pipe.generate("1"),
            lambda: self.pipe.stream("1"),
            lambda: self.loop.run_until_complete(self.pipe.agenerate("1")),
            lambda: self.pipe.score("1", ["a"]),
            lambda: self.pipe.count_tokens("1"),
            lambda: self.pipe.token_ids("1"),
        ):
            with pytest.raises(EngineClosedError):
                call()

    def _check(self, one: Asked, cut: bool) -> None:
        """What a request came to, against what it comes to alone."""
        result = error = None
        if one.called is not None:
            error = one.called.exception(PATIENCE)
            result = None if error else one.called.result()
        else:
            if not one.closed:
                self._read(one, 10**6)
                assert one.over
            soon(lambda: one.over)
            error, result = one.end.error, one.end.generation
        events, expected, failure = alone(one.ask, self._setting_alone)
        hits = self.world.hit.get(one.number, [])
        told = [plain(event.model_dump()) for event in one.events]
        self._check_error(one, error, failure, hits, cut=cut)
        whole = error is None and one.left is None
        if result is not None and not one.ask.steps:
            self._check_usage(one, result)
            assert (result.finish_reason == "cancelled") <= (one.left is not None)
            whole = result.finish_reason != "cancelled"
            if one.stream is not None and not one.closed:
                assert "".join(event["delta"] for event in told) == result.text
            assert plain(result.model_dump()) == plain(expected.model_dump()) if whole else True
        elif result is not None:
            assert result == expected
        story = [event for event in told if whole or event["type"] != "finished"]
        assert story == events[: len(story)]

    @property
    def _setting_alone(self) -> Setting:
        prm = "scripted" if self.setting.prm == "scripted" else "quick"
        return Setting(True, prm, self.setting.window, 5)

    def _check_error(self, one: Asked, error: Any, failure: Any, hits: list[Any], *, cut: bool) -> None:
        if error is None:
            assert not hits or hits[0].args[0].endswith("'close').")
            assert failure is None or one.left is not None
        elif isinstance(error, EngineClosedError):
            assert cut
        elif isinstance(error, TimedOutError):
            assert one.ask.steps and one.left is not None
        elif said(error) not in map(said, hits):
            assert said(error) == said(failure)

    def _check_usage(self, one: Asked, result: Any) -> None:
        own = [session for session in self.world.sessions if session.number == one.number]
        kept = max((session.kept for session in own), key=len, default=[])
        committed = {"draft": 0, "target": 0}
        for source, written in kept:
            committed[source] += len(written.token_ids)
        assert result.usage.completion_tokens == sum(committed.values())
        for role in ROLES:
            used, mine = getattr(result.usage, role), [session for session in own if session.role == role]
            assert used.forwarded == sum(session.tally.forwarded for session in mine)
            if role == "prm":
                assert used.generated == sum(session.scored for session in mine)
            else:
                assert used.generated == sum(session.written for session in mine)
                assert used.generated - used.discarded == committed[role]


Company.TestCase.settings = settings(max_examples=40, stateful_step_count=15)
test_company = Company.TestCase
