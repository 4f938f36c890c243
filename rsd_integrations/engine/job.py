"""One request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rsd_integrations.accounting import RoleCount, usage
from rsd_integrations.algorithm import Outcome, Story, rsd
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import PromptError
from rsd_integrations.protocols import (
    Backend,
    DraftStep,
    Kept,
    ModelInfo,
    ScorerSession,
    TargetStep,
    Work,
    WriterSession,
)
from rsd_integrations.types import Generation, Prompt, StepEvent

__all__ = ["Job", "Request", "Sink"]

Sink = Callable[[StepEvent | BaseException | None], None]
"""Takes a job's events, then its exception if it failed, then None. Called on the engine thread."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate. ``deadline``: ``time.monotonic()`` at which it is cancelled."""

    prompt: Prompt
    config: RSDConfig
    seed: int
    deadline: float | None = None


class Job:
    """A request with its sessions, its story and the work the story waits for.

    Used by the engine thread alone, but for ``cancel``.
    """

    def __init__(self, request: Request, sink: Sink) -> None:
        self.request = request
        self.work: Work | None = None
        self.rounds_waited = 0
        self._sink = sink
        self._cancelled = False
        self._submitted = time.perf_counter()

    def cancel(self) -> None:
        """Ask the engine to end this job before its next round. Any thread; safe to repeat."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled or its time is up."""
        deadline = self.request.deadline
        return self._cancelled or (deadline is not None and time.monotonic() >= deadline)

    def start(self, backend: Backend) -> None:
        """Open its sessions and run its story to the first work.

        Raises:
            PromptError: the prompt cannot be rendered or leaves no room.
        """
        prompt = self.request.prompt
        self._models = backend.draft.info, backend.target.info, backend.prm.info
        self.draft: WriterSession = backend.draft.open(prompt)
        self.target: WriterSession = backend.target.open(prompt)
        self.prm: ScorerSession = backend.prm.open(prompt)
        config = self.request.config
        self._story: Story = rsd(
            config,
            seed=self.request.seed,
            max_tokens=self._budget(),
            tags=self.draft.tags if config.mode == "draft" else self.target.tags,
            clock=time.perf_counter,
        )
        self.resume()

    def _budget(self) -> int:
        """Tokens the answer may take: max_tokens, or all that the windows in use leave."""
        config = self.request.config
        sessions = (self.draft, self.target, self.prm)
        used = {"draft": (0,), "target": (1,), "rsd": (0, 1, 2)}[config.mode]
        rooms = [_room(self._models[i], sessions[i].prompt_tokens, config.max_tokens) for i in used]
        return min(rooms) if config.max_tokens is None else config.max_tokens

    def resume(self, result: Any = None) -> None:
        """Send a result (or throw an exception) into the story and run it to its next work.

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
                self.work = None
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
        if isinstance(work, DraftStep):
            self.draft.begin(work)
        elif isinstance(work, TargetStep):
            self.target.begin(work)
        self.work, self.rounds_waited = work, 0

    def _commit(self, kept: Kept) -> None:
        self.draft.commit(kept, own=kept.source == "draft")
        self.target.commit(kept, own=kept.source == "target")
        self.prm.commit(kept, own=kept.source == "draft")

    def _finish(self, outcome: Outcome) -> None:
        generation = self._generation(outcome)
        self.close()
        self.emit(
            StepEvent(
                type="finished",
                index=len(outcome.steps),
                threshold=generation.threshold,
                delta=outcome.delta,
                reasoning_delta=outcome.reasoning_delta,
                generation=generation,
            )
        )
        self._sink(None)

    def _generation(self, outcome: Outcome) -> Generation:
        # A cancelled step was written without ever reaching the story.
        drafting = self.draft.in_progress if isinstance(self.work, DraftStep) else 0
        rewriting = self.target.in_progress if isinstance(self.work, TargetStep) else 0
        draft, target, prm = self._models
        return Generation(
            text=outcome.text,
            reasoning=outcome.reasoning,
            steps=tuple(outcome.steps),
            usage=usage(
                RoleCount(
                    draft,
                    self.draft.tally,
                    generated=outcome.draft_generated + drafting,
                    discarded=outcome.draft_discarded + drafting,
                ),
                RoleCount(
                    target,
                    self.target.tally,
                    generated=outcome.target_generated + rewriting,
                    discarded=rewriting,
                ),
                RoleCount(prm, self.prm.tally, generated=outcome.scored, discarded=outcome.scored_discarded),
                prompt_tokens=self.target.prompt_tokens,
                completion_tokens=outcome.completion_tokens,
            ),
            finish_reason=outcome.finish_reason,
            seed=self.request.seed,
            threshold=self.request.config.threshold,
        )

    def emit(self, event: StepEvent) -> None:
        """Hand an event to whoever listens."""
        elapsed = 1000 * (time.perf_counter() - self._submitted)
        self._sink(event.model_copy(update={"elapsed_ms": elapsed}))

    def fail(self, error: BaseException) -> None:
        """End with an exception."""
        self.close()
        self._sink(error)
        self._sink(None)

    def close(self) -> None:
        """Free its sessions and forget them: a result may outlive the models. Safe to repeat."""
        self.work = None
        self.__dict__.pop("_story", None)
        for name in ("draft", "target", "prm"):
            if session := self.__dict__.pop(name, None):
                session.close()


def _room(info: ModelInfo, prompt_tokens: int, max_tokens: int | None) -> int:
    """Tokens that fit behind the prompt.

    Raises:
        PromptError: none, or fewer than ``max_tokens``.
    """
    room = info.window - prompt_tokens
    if room < (1 if max_tokens is None else max_tokens):
        asked = "" if max_tokens is None else f" + {max_tokens} max_tokens"
        raise PromptError(
            f"{prompt_tokens} prompt tokens{asked} do not fit the window of {info.window} tokens "
            f"of {info.name!r}.",
            hint="Shorten the prompt, lower max_tokens, or raise max_length if the model allows it.",
        )
    return room
