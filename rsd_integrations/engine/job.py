"""One request on its way through the engine."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Generator
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

from rsd_integrations.algorithm import rsd
from rsd_integrations.config import RSDConfig
from rsd_integrations.engine.accounting import RoleCount, usage
from rsd_integrations.engine.checks import check_size, check_variables, room
from rsd_integrations.output import Output
from rsd_integrations.protocols import (
    FREE,
    Backend,
    DraftStep,
    GuessStep,
    Kept,
    ModelInfo,
    ScoreStep,
    Tally,
    TargetStep,
    Together,
    WindowFull,
    Work,
    Written,
)
from rsd_integrations.reading import Outcome, check_thoughts
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.types import Generation, InvalidToolCall, Prompt, Role, StepEvent, ToolCall

GUESSING_PAYS = 3
"""Ratio of the target's parameters to the draft's from which the draft's guesses are worth its time."""

Sink = Callable[[StepEvent | BaseException | None], None]
"""Takes a job's events, then its exception if it failed, then None. Called on the engine thread."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate. ``deadline``: ``time.monotonic()`` at which it is cancelled."""

    prompt: Prompt
    config: RSDConfig
    seed: int
    deadline: float | None = None
    output: Output = FREE
    steps: tuple[str, ...] | None = None
    """To be scored; None where an answer is to be written."""

    @classmethod
    def now(cls, prompt: Prompt, config: RSDConfig, timeout: float | None, **more: Any) -> Request:
        """With the config's seed or a fresh one, and a deadline by the time that it may take."""
        return cls(
            prompt,
            config,
            seed=secrets.randbits(32) if config.seed is None else config.seed,
            deadline=None if timeout is None else time.monotonic() + timeout,
            **more,
        )


@dataclass(slots=True, eq=False)
class Task:
    """A piece of work that a job waits for, and the session that does it."""

    job: Job
    session: Any
    piece: DraftStep | TargetStep | ScoreStep | GuessStep
    result: Any = None


class Job:
    """A request with its sessions, its story (a generator, as of ``algorithm.rsd``) and its work.

    Made in the caller's thread; then only the engine's may use it, except for ``cancel``.

    Args:
        sink: takes its events.
        wake: called with this job when it is cancelled, by any thread; safe to repeat.
    """

    def __init__(self, request: Request, sink: Sink, wake: Callable[[Job], None]) -> None:
        self.request = request
        self._wake = wake
        self.tasks: list[Task] = []
        """The work its story waits for, done or not; empty once it has ended."""
        self.guessing: Task | None = None
        """The draft's guessing of tokens, which the target waits for to write faster."""
        self.going_on: Task | None = None
        """The draft's writing on behind a step that waits for its reward."""
        self.rounds_waited = 0
        self._sink = sink
        self._story: Generator[Any, Any, Any]
        self._alone = True
        self.drafted = 0
        """Tokens of the draft's last step."""
        self._drafted_last = False
        self._sessions: dict[Role, list[Any]] = {}
        """``WriterSession`` and ``ScorerSession``, by role; draft and PRM have one for each candidate."""
        self._cancelled = False
        self.context = copy_context()
        """The caller's, in which sessions are opened and functions that score are called."""
        self._submitted = time.perf_counter()

    def cancel(self) -> None:
        """Ask the engine to end this job before its next round. Any thread; safe to repeat."""
        self._cancelled = True
        self._wake(self)

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled or its time is up."""
        return self._cancelled or self.time_left == 0.0

    @property
    def time_left(self) -> float | None:
        """Seconds until its time is up; None without a deadline."""
        deadline = self.request.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def drop(self) -> None:
        """End as cancelled instead of starting: nothing is rendered, encoded or opened."""
        self.close()
        self._end(
            Generation(
                text="",
                finish_reason="cancelled",
                seed=self.request.seed,
                threshold=self.request.config.threshold_in_force,
            )
        )

    def start(self, backend: Backend | RemoteBackend) -> None:
        """Open the sessions it needs and run its story to its first piece of work.

        Raises:
            PromptError: the prompt cannot be rendered, or leaves no room (PromptLengthError).
            ConfigError: draft and target differ in how they think, or know no such template variable.
        """
        models: dict[Role, Any] = {"draft": backend.draft, "target": backend.target, "prm": backend.prm}
        self._infos: dict[Role, ModelInfo] = {role: model.info for role, model in models.items()}
        config = self.request.config
        for role in config.roles:
            if role != "prm":
                check_size(models[role], [self.request.prompt, list(self.request.output.tools)])
        check_variables(config.chat_template_kwargs, backend.draft, backend.target)
        rooms = []
        # Usage compares with the target alone, so its prompt is rendered even if it does not run.
        for role in dict.fromkeys((*config.roles, "target")):
            more: list[Any] = [] if role == "prm" else [self.request.output]
            if config.chat_template_kwargs and role != "prm":
                more.append(config.chat_template_kwargs)
            first = self._opened(models[role], *more)
            self._sessions[role] = [first]
            if role in config.roles:
                # Before the next model encodes it too: for a prompt that is far too long that takes long.
                rooms.append(room(self._infos[role], first.prompt_tokens, config.max_tokens))
            if role != "target":
                self._sessions[role] += [first.fork() for _ in range(1, config.rows)]
        check_thoughts({role: self._sessions[role][0].tags for role in config.roles if role != "prm"})
        answering = self._sessions["draft" if config.mode == "draft" else "target"][0]
        self._story = rsd(
            config,
            seed=self.request.seed,
            max_tokens=config.max_tokens or min(rooms),
            tags=answering.tags,
            output=self.request.output,
            reader=answering.reader,
            clock=time.perf_counter,
        )
        self.resume()

    def _opened(self, model: Any, *more: Any) -> Any:
        return self.context.run(model.open, self.request.prompt, *more)

    def resume(self, result: Any = None) -> None:
        """Send a result (or throw an exception) into the story and run it to its next piece of work.

        Raises:
            Exception: whatever the story raises; StopIteration never leaves.
        """
        send: Callable[[Any], Any] = self._story.send
        if isinstance(result, BaseException):
            send = self._story.throw
        try:
            while True:
                item = send(result)
                send, result = self._story.send, None
                self.tasks, self.guessing, self.going_on = [], None, None
                if isinstance(item, StepEvent):
                    self.emit(item)
                elif isinstance(item, Kept):
                    self._commit(item)
                else:
                    self._begin(item)
                    return
        except StopIteration as stop:
            self._finish(stop.value)

    def _begin(self, work: Work) -> None:
        self._alone = not isinstance(work, Together)
        pieces = zip(work.candidates, work.pieces, strict=True) if isinstance(work, Together) else [(0, work)]
        self.tasks = [Task(self, self._sessions[_role(piece)][place], piece) for place, piece in pieces]
        for task in self.tasks:
            if not isinstance(task.piece, ScoreStep):
                task.session.begin(task.piece)
        self.rounds_waited = 0

    def take(self, task: Task, result: Any) -> None:
        """Take the result of one of its tasks; after the last one its story goes on.

        Raises:
            Exception: as ``resume``.
        """
        if task is self.going_on:
            # Even if it failed: the next step, if there is one, is tried all the same.
            task.result = result
            return
        if task is self.guessing:
            # If guessing fails, the target simply goes on without guesses.
            self.guessing = None
            self.tasks[0].session.guess(() if isinstance(result, Exception) else result.token_ids)
            return
        if task not in self.tasks:
            return  # Another task's result has failed or ended the job.
        task.result = result
        if isinstance(task.piece, DraftStep) and isinstance(result, Written):
            self._sampling, self.drafted = task.piece.sampling, len(result.token_ids)
            self._drafted_last = result.end in ("eos", "stop", *(["limit"] if task.piece.closing else []))
        if self._alone or (isinstance(result, Exception) and not isinstance(result, WindowFull)):
            self.resume(result)
        elif all(task.result is not None for task in self.tasks):
            self.resume([task.result for task in self.tasks])

    def seek_guesses(self, rewriting: Task) -> None:
        """Have the draft guess tokens behind the target's own text, where the target wants that and it pays.
        Where it does not pay, the target is told that there will be no guesses.
        """
        wanted = rewriting.session.wanted if "draft" in self._sessions else 0
        sizes = {role: self._infos[role].parameters for role in ("draft", "target")}
        pays = sizes["target"] >= GUESSING_PAYS * sizes["draft"]
        if wanted > 0 and not pays:
            rewriting.session.guess(())
        elif wanted > 0:
            draft = self._sessions["draft"][0]
            piece = GuessStep(rewriting.session.so_far, wanted)
            draft.begin(piece)
            self.guessing = Task(self, draft, piece)

    @property
    def may_be_rewritten(self) -> bool:
        """Whether the target may soon have to rewrite a step of its draft."""
        return self.request.config.mode == "rsd" and not self.is_reading

    @property
    def is_reading(self) -> bool:
        """Whether the draft has still to read the prompt, which takes many rounds if it is long."""
        drafts = self._sessions.get("draft")
        return drafts is not None and not self.drafted and not drafts[0].so_far

    @property
    def can_wait(self) -> bool:
        """Whether its step can wait for its reward at no loss: the draft can write on behind it meanwhile, or
        it would be the last. Not with several candidates, of which at most one is kept.
        """
        going_on = self.going_on is not None or self._sessions["draft"][0].goes_on
        return self._alone and (going_on or self._drafted_last)

    def go_on(self, count: int) -> None:
        """Have the draft write on, where it can, behind its step that waits: at most ``count`` tokens.

        If the step is kept, they are the first tokens of the next one.
        """
        draft = self._sessions["draft"][0]
        if self.going_on is None and draft.goes_on:
            piece = GuessStep(draft.so_far, count, self._sampling)
            draft.begin(piece)
            self.going_on = Task(self, draft, piece)

    def _commit(self, kept: Kept) -> None:
        for role in self.request.config.roles:
            # A rewrite is the only one of its place; of the draft's steps it may be any that was kept.
            number = 0 if role == "target" else kept.candidate
            same = (kept.source == "target") == (role == "target")
            for place, session in enumerate(self._sessions[role]):
                session.commit(kept, own=same and place == number)

    def _finish(self, outcome: Outcome) -> None:
        generation = self._generation(outcome)
        self.close()
        self._end(
            generation,
            delta=outcome.delta,
            reasoning_delta=outcome.reasoning_delta,
            tool_calls=tuple(outcome.late_calls),
        )

    def _end(self, generation: Generation, **rest: Any) -> None:
        """Emit the last event, with what no event has carried yet."""
        self.emit(
            StepEvent(
                type="finished",
                index=len(generation.steps),
                threshold=generation.threshold,
                generation=generation,
                **rest,
            )
        )
        self._sink(None)

    def _generation(self, outcome: Outcome) -> Generation:
        # The story never saw the tokens of a step that was cut short: they are counted here.
        unfinished: dict[Role, int] = {}
        for task in self.tasks:
            scored = isinstance(task.piece, ScoreStep)  # Maybe one candidate was, and another not yet.
            count = getattr(task.result, "tokens", 0) if scored else len(task.session.so_far)
            role = _role(task.piece)
            unfinished[role] = unfinished.get(role, 0) + count
        return Generation(
            text=outcome.text,
            reasoning=outcome.reasoning,
            tool_calls=tuple(call for call in outcome.calls if isinstance(call, ToolCall)),
            invalid_tool_calls=tuple(call for call in outcome.calls if isinstance(call, InvalidToolCall)),
            steps=tuple(outcome.steps),
            usage=usage(
                self._count("draft", outcome.draft_generated, outcome.draft_discarded, unfinished),
                self._count("target", outcome.target_generated, 0, unfinished),
                self._count("prm", outcome.scored, outcome.scored_discarded, unfinished),
                prompt_tokens=self._sessions["target"][0].prompt_tokens,
                completion_tokens=outcome.completion_tokens,
            ),
            finish_reason=outcome.finish_reason,
            seed=self.request.seed,
            threshold=self.request.config.threshold_in_force,
        )

    def _count(self, role: Role, generated: int, discarded: int, unfinished: dict[Role, int]) -> RoleCount:
        tally = Tally()
        for session in self._sessions.get(role, ()):
            tally.forwarded += session.tally.forwarded
            tally.pairs += session.tally.pairs
        more = unfinished.get(role, 0)
        return RoleCount(self._infos[role], tally, generated + more, discarded + more)

    def emit(self, event: StepEvent) -> None:
        """Hand an event to whoever listens."""
        elapsed = 1000 * (time.perf_counter() - self._submitted)
        self._sink(event.model_copy(update={"elapsed_ms": elapsed}))

    def fail(self, error: BaseException) -> None:
        """End with an exception, whatever else goes wrong: somebody waits for it."""
        with contextlib.suppress(Exception):
            self.close()
        self.tell(error)

    def tell(self, error: BaseException) -> None:
        """Tell whoever waits for it that it has failed."""
        self._sink(error)
        self._sink(None)

    def close(self) -> None:
        """Free its sessions, and forget them and the caller's context: a stream may hold this job longer than
        these live. Safe to repeat.

        Raises:
            Exception: the first failure, once all were tried (a broken device fails every one).
        """
        self.tasks, self.guessing, self.going_on = [], None, None
        self.__dict__.pop("_story", None)
        self.context = Context()
        failures: list[Exception] = []
        sessions = [session for role in self._sessions.values() for session in role]
        self._sessions.clear()
        for session in sessions:
            try:
                session.close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]


def _role(piece: DraftStep | TargetStep | ScoreStep | GuessStep) -> Role:
    if isinstance(piece, ScoreStep):
        return "prm"
    return "target" if isinstance(piece, TargetStep) else "draft"
