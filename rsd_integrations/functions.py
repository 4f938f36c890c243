"""A function in place of a PRM: unit tests of code, a checker of arithmetic, a judge behind an API."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rsd_integrations.errors import ConfigError, RewardError, RSDError
from rsd_integrations.limits import check_count
from rsd_integrations.protocols import Kept, ModelInfo, Scored, ScorerSession, ScoreStep, Tally
from rsd_integrations.types import Prompt

__all__ = ["FunctionScorer", "RemoteFunctionScorer", "RewardFunction", "reward_function"]

_TURN = 0.001
"""Seconds that other requests wait in each round while a function is at work."""


@dataclass(frozen=True)
class RewardFunction:
    """A function that scores steps, in place of a PRM: ``prm=RewardFunction(check, threshold=0.5)``.

    ``prm=check`` alone will do where the defaults are right. Calls of several requests run side by side, each
    in a thread of a pool or, where it is ``async def``, on an event loop; other requests go on meanwhile.

    Args:
        function: ``(prompt, steps) -> reward``. The prompt is a text or chat messages; steps are the texts of
            the answer's steps so far, without delimiters, of which the last is to be scored; the reward is a
            number in [0, 1].
        name: in messages and traces; the function's own if empty.
        threshold: what ``threshold=None`` means; 0.7 if None.
        max_concurrency: most calls at a time.

    Raises:
        ConfigError: it is no function of two arguments, or a setting is out of bounds.
    """

    function: Callable[[Prompt, tuple[str, ...]], Any]
    name: str = ""
    threshold: float | None = None
    max_concurrency: int = 8

    def __post_init__(self) -> None:
        check_count("max_concurrency", self.max_concurrency, 1)
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold={self.threshold!r} is not in [0, 1].", hint="Rewards are.")
        try:
            inspect.signature(self.function).bind("prompt", ("step",))
        except TypeError as error:
            raise ConfigError(
                f"the reward function {self.label!r} does not take what it is called with: {error}.",
                hint="It is given two arguments: the prompt and a tuple of the steps' texts.",
            ) from error
        except ValueError:
            pass  # Of some builtins nobody knows what they take.

    @property
    def label(self) -> str:
        """Its name."""
        return self.name or getattr(self.function, "__qualname__", type(self.function).__name__)

    @property
    def awaited(self) -> bool:
        """Whether it has to be awaited."""
        call = getattr(self.function, "__call__", None)  # noqa: B004 - of objects that are called
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)


def reward_function(prm: Any) -> RewardFunction | None:
    """What scores steps in place of a PRM, if it is a function.

    Raises:
        ConfigError: it is one that takes other arguments.
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
    call: Future[Any] | None = None
    """At work on its reward."""

    def fork(self) -> _Session:
        return _Session(self.prompt)

    def behind(self, step: ScoreStep) -> tuple[str, ...]:
        """The steps, the one to be scored last."""
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
    """What both scorers share."""

    def __init__(self, given: RewardFunction) -> None:
        self.info = ModelInfo(
            given.label, parameters=0, pair_flops=0, window=sys.maxsize, threshold=given.threshold
        )
        self._given = given
        self._pool = ThreadPoolExecutor(given.max_concurrency, thread_name_prefix="rsd-reward")
        self._room = asyncio.Semaphore(given.max_concurrency)

    def open(self, prompt: Prompt) -> _Session:
        """Begin a request."""
        return _Session(prompt)

    async def _awaited(self, *called: Any) -> Any:
        async with self._room:
            return await self._given.function(*called)

    @contextmanager
    def _naming(self, steps: tuple[str, ...]) -> Iterator[None]:
        """Say at which step the function failed."""
        try:
            yield
        except RSDError:
            raise
        except Exception as error:
            raise RewardError(
                f"the reward function {self.info.name!r} failed for step {len(steps) - 1}, "
                f"{steps[-1]!r:.200}: {type(error).__name__}: {error}.",
                hint="Have it return a number in [0, 1] for any step, 0.0 where nothing can be made of one.",
            ) from error


class FunctionScorer(_Functions):
    """A function as the PRM of models in this process (a ``Scorer``)."""

    def __init__(self, given: RewardFunction) -> None:
        super().__init__(given)
        self._loop: asyncio.AbstractEventLoop | None = None

    def score(
        self, sessions: Sequence[ScorerSession], work: Sequence[ScoreStep]
    ) -> list[Scored | Exception | None]:
        """The rewards that are there; the others' calls go on."""
        asked = [session for session in sessions if isinstance(session, _Session)]
        steps = [session.behind(step) for session, step in zip(asked, work, strict=True)]
        for session, so_far in zip(asked, steps, strict=True):
            session.call = session.call or self._call(session.prompt, so_far)
        wait([session.call for session in asked if session.call], timeout=_TURN)
        return [self._result(session, so_far) for session, so_far in zip(asked, steps, strict=True)]

    def _call(self, *called: Any) -> Future[Any]:
        if self._given.awaited:
            return asyncio.run_coroutine_threadsafe(self._awaited(*called), self._running())
        return self._pool.submit(self._given.function, *called)

    def _running(self) -> asyncio.AbstractEventLoop:
        """One loop for all calls: clients of APIs belong to the loop that they were first used on."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(self._loop,), name="rsd-reward", daemon=True).start()
        return self._loop

    def _result(self, session: _Session, steps: tuple[str, ...]) -> Scored | Exception | None:
        if session.call is None or not session.call.done():
            return None
        call, session.call = session.call, None
        try:
            with self._naming(steps):
                return Scored(call.result(), 0)
        except RSDError as error:
            return error

    def close(self) -> None:
        """Give the threads back, once the calls at work are over."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped, and end what is left on it."""
    loop.run_forever()
    loop.run_until_complete(_cancel(asyncio.all_tasks(loop)))
    loop.close()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class RemoteFunctionScorer(_Functions):
    """A function as the PRM beside models behind servers (a ``RemoteScorer``)."""

    async def score(self, session: ScorerSession, step: ScoreStep) -> Scored:
        """The reward of a step.

        Raises:
            RewardError: the function failed.
        """
        assert isinstance(session, _Session)
        steps = session.behind(step)
        with self._naming(steps):
            if self._given.awaited:
                return Scored(await self._awaited(session.prompt, steps), 0)
            loop = asyncio.get_running_loop()
            call = partial(self._given.function, session.prompt, steps)
            return Scored(await loop.run_in_executor(self._pool, call), 0)

    async def aclose(self) -> None:
        """Give the threads back, once the calls at work are over."""
        self._pool.shutdown(wait=False, cancel_futures=True)
