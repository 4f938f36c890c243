"""The executor for models in this process: one thread, all live requests in shared rounds."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rsd_integrations.algorithm import Cancelled
from rsd_integrations.engine.job import Job, Task
from rsd_integrations.engine.line import Line
from rsd_integrations.engine.thread import EngineThread, own
from rsd_integrations.errors import BackendError
from rsd_integrations.protocols import Backend, DraftStep, ScoreStep, TargetStep

REWRITE_SHARE = 3
"""The target runs once one in this many of the live requests that may be rewritten waits for it."""

SCORE_SHARE = 2
"""The PRM runs once one in this many of the live requests waits for a reward."""

SCORE_ROUNDS = 4
"""Most rounds a step waits for others to be scored with. Meanwhile the draft writes on behind it."""


READING_ROUNDS = 4
"""What a round counts for those who wait while a draft reads a long prompt."""

_PAUSE = 0.001
"""Seconds between two looks whether a reward is there."""


def _patience(length: int) -> int:
    """Most rounds in all, before it begins and between its tokens, that the rewrite of a step of ``length``
    tokens waits for others, so that the target writes for several at once. 0 for a step that no draft wrote.
    """
    return max(16, 2 * length) if length else 0


class BatchEngine(EngineThread):
    """Owns the models' thread.

    A round lets each model do one batch at most: the PRM scores all steps that wait, the draft and the
    target each write a token for every request that waits for them (small models may write a few). PRM and
    target wait until several requests have gathered, the target also while the draft guesses tokens for one.
    Requests join and leave at any round. Apart from rounding in half precision, what one gets does not depend
    on the others.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend: Backend = backend
        self._score_rounds = SCORE_ROUNDS
        self._scored_elsewhere: bool = getattr(backend.prm, "elsewhere", False)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """What to do before the next round; None: close."""
        self._queued = Line()
        self._live: list[Job] = []
        self._thread.start()

    @property
    def _rows(self) -> int:
        """Rows of the models' batches that the live requests take."""
        return sum(job.request.config.rows for job in self._live)

    def _put(self, job: Job | None) -> None:
        self._inbox.put(None if job is None else partial(self._queued.add, job))

    def _wake(self, job: Job) -> None:
        self._inbox.put(partial(self._end_waiting, job))

    def _run(self) -> None:
        while self._receive():
            self._admit()
            self._end_cancelled()
            self._round()

    def _end(self) -> None:
        self._receive(block=False)
        waiting = [*self._queued]
        for job in waiting:
            self._leave(job)
        for job in [*self._live, *waiting]:
            job.fail(self._end_error())
        self._live = []
        for model in (self._backend.draft, self._backend.target, self._backend.prm):
            with contextlib.suppress(Exception):  # One that fails must not keep the others open.
                model.close()

    def _receive(self, *, block: bool = True) -> bool:
        """Take what was submitted or cancelled, waiting while there is nothing to do. False: close."""
        going = True
        while True:
            try:
                idle = block and going and not self._live and not self._queued
                act = self._inbox.get(block=idle)
            except queue.Empty:
                return going
            if act is None:
                going = False
            else:
                act()

    def _admit(self) -> None:
        for late in self._queued.expired(time.monotonic()):
            self._end_waiting(late)
        room = self._backend.max_batch_size
        for _ in range(room):  # No more in a round: a job that fails at once makes room for the next.
            job = self._queued.first
            if job is None or self._rows + job.request.config.rows > room:
                break
            self._leave(job)
            self._live.append(job)
            self._guard(job, job.drop if job.cancelled else partial(job.start, self._backend))

    def _leave(self, job: Job) -> None:
        """Take a job out of the line, and count it."""
        self._queued.remove(job)
        self._called += 1

    def _end_waiting(self, job: Job) -> None:
        """End a job that was cancelled, or whose time is up, if it still waits for its turn."""
        if job in self._queued:
            self._leave(job)
            self._guard(job, job.drop)

    def _end_cancelled(self) -> None:
        for job in [job for job in self._live if job.cancelled]:
            self._guard(job, partial(job.resume, Cancelled()))

    def _round(self) -> None:
        backend = self._backend
        scoring = self._waiting(ScoreStep)
        if scoring and self._scores_due(scoring):
            steps = [task.piece for task in scoring]
            self._batch(scoring, lambda: backend.prm.score(_sessions(scoring), steps))  # type: ignore[arg-type]
            self._use_time(scoring)
        drafts = self._waiting(DraftStep)
        # Guesses first: all rewrites wait for them, and long prompts are read in the order of the requests.
        drafting = self._guessing() + drafts + self._going_on()
        if drafting:
            self._batch(drafting, lambda: backend.draft.advance(_sessions(drafting)))
        # While the draft guesses for one rewrite, the others wait a few rounds: then all share one forward.
        rewriting = [] if self._guessing() else self._waiting(TargetStep)
        # While no step is being drafted, none will be rejected soon: nothing to wait for.
        if rewriting and (not drafts or self._rewrites_due(rewriting)):
            self._batch(rewriting, lambda: backend.target.advance(_sessions(rewriting)))
            for task in self._waiting(TargetStep):
                self._guard(task.job, partial(task.job.seek_guesses, task))
        elif self._scored_elsewhere and scoring and not drafting:
            time.sleep(_PAUSE)  # Nothing but rewards is waited for.

    def _guessing(self) -> list[Task]:
        return [job.guessing for job in self._live if job.guessing is not None]

    def _going_on(self) -> list[Task]:
        tasks = [job.going_on for job in self._live if job.going_on is not None]
        return [task for task in tasks if task.result is None]

    def _scores_due(self, scoring: Sequence[Task]) -> bool:
        """Whether the PRM should run now. It waits for more steps where that costs the others nothing."""
        if (
            self._scored_elsewhere
            or SCORE_SHARE * len(scoring) >= len(self._live)
            or max(task.job.rounds_waited for task in scoring) >= self._score_rounds
            or not self._waiting(DraftStep)
            or not all(task.job.can_wait for task in scoring)
        ):
            # Scoring a long text takes several rounds; once begun, it does not wait again.
            for task in scoring:
                task.job.rounds_waited = self._score_rounds
            return True
        for task in scoring:
            task.job.rounds_waited += 1
            self._guard(task.job, partial(task.job.go_on, self._score_rounds))
        return False

    def _use_time(self, scoring: Sequence[Task]) -> None:
        """While steps are scored elsewhere, have the draft write on behind them as far as time allows."""
        for task in scoring if self._scored_elsewhere else ():
            if task in task.job.tasks and task.job.can_wait:
                self._guard(task.job, partial(task.job.go_on, task.job.request.config.max_step_tokens))

    def _waiting(self, kind: type) -> list[Task]:
        return [
            task
            for job in self._live
            for task in job.tasks
            if isinstance(task.piece, kind) and task.result is None
        ]

    def _rewrites_due(self, rewriting: Sequence[Task]) -> bool:
        """Whether the target should run now, or wait for more rewrites: a forward pass costs about the same
        for one row as for many. A step that no draft wrote does not wait.
        """
        if REWRITE_SHARE * len(rewriting) >= sum(job.may_be_rewritten for job in self._live) or any(
            task.job.rounds_waited >= _patience(task.job.drafted) for task in rewriting
        ):
            return True
        # Rounds in which a draft reads a long prompt take long.
        rounds = READING_ROUNDS if any(job.is_reading for job in self._live) else 1
        for task in rewriting:
            task.job.rounds_waited += rounds
        return False

    def _batch(self, tasks: Sequence[Task], run: Callable[[], Sequence[Any]]) -> None:
        """Run one batch and hand each job its result; None means it is not done yet."""
        try:
            results = run()
            if len(results) != len(tasks):
                raise BackendError(f"a backend gave {len(results)} results for {len(tasks)} pieces of work.")
        except BaseException as error:  # A backend should fail row by row; one that does not fails them all.
            results = [own(error)] * len(tasks)
        for task, result in zip(tasks, results, strict=True):
            if result is not None:
                self._guard(task.job, partial(task.job.take, task, result))

    def _guard(self, job: Job, act: Callable[[], None]) -> None:
        """A failure fails its own job; a job that waits for nothing more leaves."""
        try:
            act()
        except BaseException as error:
            job.fail(own(error))
        if not job.tasks and job in self._live:
            self._live.remove(job)


def _sessions(tasks: Sequence[Task]) -> list[Any]:
    return [task.session for task in tasks]
