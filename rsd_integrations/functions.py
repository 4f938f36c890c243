"""A function in place of a PRM: unit tests of code, a checker of arithmetic, a judge behind an API."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any

from rsd_integrations.errors import ConfigError, RewardError
from rsd_integrations.limits import as_reward, check_count, check_takes
from rsd_integrations.protocols import Kept, ModelInfo, Scored, ScorerSession, ScoreStep, Tally
from rsd_integrations.types import Prompt

RewardCall = Callable[[Any, tuple[str, ...]], Any]
"""``(prompt, steps) -> reward``, or an awaitable of one."""

AT_WORK: ContextVar[object] = ContextVar("AT_WORK", default=None)
"""The scorer whose function runs in this thread or task."""

_TURN = 0.001
"""Most seconds that a round, and so all other requests, waits for functions that it has called."""

_LEAVING = 5.0
"""Seconds that abandoned calls may take to end."""


@dataclass(frozen=True)
class RewardFunction:
    """A function that scores steps, in place of a PRM: ``prm=RewardFunction(check, threshold=0.5)``.

    ``prm=check`` alone will do where the defaults are right. Calls for several requests run side by side,
    each in a thread of a pool or, if the function is ``async def``, on an event loop; other requests go on
    meanwhile. Each call sees the context variables of whoever asked for the answer. A function needs time
    limits of its own: one that never returns occupies one of ``max_concurrency`` places for good, and keeps
    the process alive. It must not call the pipeline that it scores for, which might then wait for itself.
    Usage counts no tokens and FLOPs for it, whatever it computes.

    Args:
        function: ``(prompt, steps) -> reward``. The prompt is a text or chat messages; steps are the texts of
            the answer's steps so far, without delimiters, of which the last is to be scored; the reward is a
            number in [0, 1].
        name: shown in messages and traces; the function's own if empty.
        threshold: what ``threshold=None`` means; 0.7 if None.
        max_concurrency: most calls at a time.

    Raises:
        ConfigError: ``function`` does not take two arguments, or a setting is out of bounds.
    """

    function: RewardCall
    name: str = ""
    threshold: float | None = None
    max_concurrency: int = 8

    def __post_init__(self) -> None:
        check_count("max_concurrency", self.max_concurrency, 1)
        if self.threshold is not None and (as_reward(self.threshold) is None or not 0 <= self.threshold <= 1):
            raise ConfigError(
                f"threshold={self.threshold!r} is not in [0, 1].",
                hint="Give a number from 0 to 1, as rewards are.",
            )
        hint = "It is given two arguments: the prompt and a tuple of the steps' texts."
        check_takes(self.function, "", (), what=f"the reward function {self.label!r}", hint=hint)

    @property
    def label(self) -> str:
        """Its name."""
        return self.name or getattr(self.function, "__qualname__", type(self.function).__name__)

    @property
    def awaited(self) -> bool:
        """Whether what it returns has to be awaited."""
        call = getattr(self.function, "__call__", None)  # noqa: B004 - objects may have an async __call__
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)


def reward_function(prm: Any) -> RewardFunction | None:
    """``prm`` as a reward function, if it is a function; None if not.

    Raises:
        ConfigError: it is a function that takes other arguments.
    """
    if isinstance(prm, RewardFunction):
        return prm
    called = callable(prm) and not isinstance(prm, type) and not hasattr(prm, "forward")
    return RewardFunction(prm) if called else None


@dataclass
class _Session:
    """One request (a ``ScorerSession``): its steps so far."""

    prompt: Prompt
    steps: tuple[str, ...] = ()
    prompt_tokens: int = 0
    tally: Tally = field(default_factory=Tally)
    context: Context = field(default_factory=copy_context)
    """The caller's. Calls, which may run side by side, are made in copies of it."""
    call: Future[Scored | RewardError] | None = None
    """Works on the reward of its current step."""

    def fork(self) -> _Session:
        return _Session(self.prompt, context=self.context)

    def behind(self, step: ScoreStep) -> tuple[str, ...]:
        """The steps so far, then the one that is to be scored."""
        return (*self.steps, step.body) if step.body else self.steps

    def commit(self, kept: Kept, *, own: bool) -> None:
        self.close()
        if kept.body:
            self.steps = (*self.steps, kept.body)

    def close(self) -> None:
        if self.call is not None:
            self.call.cancel()
            self.call = None


class _Functions:
    """What both scorers share: calls, whose every outcome is a reward or an error of their own request."""

    def __init__(self, given: RewardFunction) -> None:
        self.info = ModelInfo(
            given.label, parameters=0, pair_flops=0, window=sys.maxsize, threshold=given.threshold
        )
        self.closed = False
        self._given = given
        self._pool = ThreadPoolExecutor(given.max_concurrency, thread_name_prefix="rsd-reward")
        self._room = asyncio.Semaphore(given.max_concurrency)
        self._left: set[asyncio.Future[Any]] = set()
        """Calls that were cancelled, and may still clean up."""

    def open(self, prompt: Prompt) -> _Session:
        """Begin a request."""
        return _Session(prompt)

    def _called(self, prompt: Prompt, steps: tuple[str, ...]) -> Scored | RewardError:
        AT_WORK.set(self)  # In its own context alone.
        try:
            return self._read(self._given.function(prompt, steps), steps)
        except BaseException as error:  # Code under test may exit, or fail as pytest does.
            return self._failed(error, steps)

    def _submit(self, session: _Session, steps: tuple[str, ...]) -> Future[Scored | RewardError]:
        return self._pool.submit(session.context.copy().run, self._called, session.prompt, steps)

    async def _awaited(self, prompt: Prompt, steps: tuple[str, ...]) -> Scored | RewardError:
        AT_WORK.set(self)  # Likewise, as it is a task of its own.
        try:
            return self._read(await self._given.function(prompt, steps), steps)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return self._failed(error, steps)

    async def _in_turn(self, session: _Session, steps: tuple[str, ...]) -> Scored | RewardError:
        """``_awaited`` in a task of its own, to tell a cancellation inside the function from one of the
        request, which does not wait for the function to end.
        """
        async with self._room:
            task = session.context.run(asyncio.ensure_future, self._awaited(session.prompt, steps))
            try:
                await asyncio.wait([task])
            finally:
                self._leave(task)
            return self._failed(asyncio.CancelledError(), steps) if task.cancelled() else task.result()

    def _leave(self, task: asyncio.Future[Any]) -> None:
        """Cancel a call, but only once: a second time would interrupt it in its cleaning up."""
        if not task.done() and task not in self._left:
            self._left.add(task)
            task.add_done_callback(self._left.discard)
            task.cancel()

    def _read(self, given: Any, steps: tuple[str, ...]) -> Scored | RewardError:
        if inspect.isawaitable(given):
            if inspect.iscoroutine(given):
                given.close()
            return self._wrong(f"returned {given!r:.100}, which nobody awaits", steps, "Make it async def.")
        reward = as_reward(given)
        if reward is None:
            return self._wrong(f"returned {given!r:.100}, which is no number in [0, 1]", steps)
        return Scored(reward, 0)

    def _failed(self, error: BaseException, steps: tuple[str, ...]) -> RewardError:
        made = self._wrong(f"failed: {type(error).__name__}: {error}", steps)
        made.__cause__ = error
        return made

    def _wrong(self, what: str, steps: tuple[str, ...], hint: str = "") -> RewardError:
        return RewardError(
            # Not its text: traces that hide answers show errors.
            f"the reward function {self.info.name!r} {what}; it was asked about step {len(steps)} of the "
            f"answer, which has {len(steps[-1])} characters.",
            hint=hint or "Have it return a number in [0, 1] for any step, 0.0 where a step cannot be judged.",
        )


class FunctionScorer(_Functions):
    """A function as the PRM of models in this process (a ``Scorer``)."""

    elsewhere = True
    """The models are free while it scores, and nothing is gained by scoring several steps together."""

    def __init__(self, given: RewardFunction) -> None:
        super().__init__(given)
        self._loop: asyncio.AbstractEventLoop | None = None

    def score(
        self, sessions: Sequence[ScorerSession], work: Sequence[ScoreStep]
    ) -> list[Scored | Exception | None]:
        """The rewards that are ready; None for the others, whose calls go on."""
        calls, begun = [], False
        for session, step in zip(sessions, work, strict=True):
            assert isinstance(session, _Session)
            begun = begun or session.call is None
            session.call = session.call or self._call(session, session.behind(step))
            calls.append(session.call)
        # A call that takes long is not waited for in every round.
        done = wait(calls, timeout=_TURN if begun else 0).done
        for session, call in zip(sessions, calls, strict=True):
            if call in done and isinstance(session, _Session):
                session.call = None
        return [call.result() if call in done else None for call in calls]

    def _call(self, session: _Session, steps: tuple[str, ...]) -> Future[Scored | RewardError]:
        if not self._given.awaited:
            return self._submit(session, steps)
        return asyncio.run_coroutine_threadsafe(self._in_turn(session, steps), self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        """One event loop for all calls: API clients belong to the loop that they were first used on."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(
                target=_serve, args=(self._loop, self._leave), name="rsd-reward", daemon=True
            ).start()
        return self._loop

    def close(self) -> None:
        """Give the threads back, once the calls at work are over."""
        self.closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop, leave: Callable[[asyncio.Future[Any]], None]) -> None:
    """Run a loop until it is stopped, and end what is left on it."""
    loop.run_forever()
    if left := asyncio.all_tasks(loop):
        for task in left:
            leave(task)
        loop.run_until_complete(asyncio.wait(left, timeout=_LEAVING))
    loop.close()


class RemoteFunctionScorer(_Functions):
    """A function as the PRM beside models behind servers (a ``RemoteScorer``)."""

    async def score(self, session: ScorerSession, step: ScoreStep) -> Scored:
        """The reward of a step.

        Raises:
            RewardError: the function failed, or returned no number in [0, 1].
        """
        assert isinstance(session, _Session)
        steps = session.behind(step)
        if self._given.awaited:
            scored = await self._in_turn(session, steps)
        else:
            scored = await asyncio.wrap_future(self._submit(session, steps))
        if isinstance(scored, RewardError):
            raise scored
        return scored

    async def aclose(self) -> None:
        """Give the threads back, once the calls at work are over."""
        self.closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._left:
            await asyncio.wait(self._left, timeout=_LEAVING)
