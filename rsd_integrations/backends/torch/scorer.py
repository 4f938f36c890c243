"""A process reward model that scores steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.slot_session import SlotSession
from rsd_integrations.backends.torch.slots import SlotFeed
from rsd_integrations.errors import RewardError
from rsd_integrations.prm.base import Feed, PRMFormat
from rsd_integrations.prompts import as_messages
from rsd_integrations.protocols import Kept, ModelInfo, Scored, ScorerSession, ScoreStep, WindowFull
from rsd_integrations.types import Prompt

__all__ = ["TorchScorer", "TorchScorerSession"]


class TorchScorerSession(SlotSession):
    """One request in a PRM (a ``ScorerSession``): the steps' tokens, each behind the last."""

    def __init__(self, scorer: TorchScorer, prompt: tuple[int, ...]) -> None:
        super().__init__(scorer.runner, prompt, scorer.info.sliding_window)
        self._format = scorer.format
        self._capacity = scorer.info.window
        self._steps = 0
        self._last: tuple[int, Feed] | None = None

    def begin(self, body: str) -> tuple[int, int]:
        """Lay out the tokens to score a step, return (where to read, tokens of the step).

        Raises:
            WindowFull: they do not fit.
        """
        if body:
            start, feed = self.base, self._format.step(body, self._steps)
        else:
            # The last step's reward: it was written by the target, so nobody has asked for it yet.
            assert self._last is not None
            start, feed = self._last
        self.tokens[start:] = feed.ids
        self.cached = min(self.cached, start)
        if len(self.tokens) > self._capacity:
            raise WindowFull
        return start + feed.read, len(feed.ids) if body else 0

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Go on behind the committed step."""
        if not kept.body:
            self.keep(self.base)
            return
        feed = self._format.step(kept.body, self._steps)
        self._last = (self.base, feed)
        if own and len(self.tokens) > self.base:
            self.keep(self.base + len(feed.ids) - feed.probe)
        else:
            self.replace(feed.ids[: len(feed.ids) - feed.probe])
        self._steps += 1


class TorchScorer:
    """A PRM over slots (a ``Scorer``).

    Args:
        runner: over the model, reading the outputs that the format wants.
        format: which tokens to feed, how to read a reward.
    """

    def __init__(self, runner: SlotRunner, format: PRMFormat, info: ModelInfo) -> None:
        self.runner = runner
        self.format = format
        self.info = info

    def open(self, prompt: Prompt) -> TorchScorerSession:
        """Encode a prompt as the format wants it."""
        return TorchScorerSession(self, self.format.prompt(as_messages(prompt)))

    def score(self, sessions: Sequence[ScorerSession], work: Sequence[ScoreStep]) -> list[Scored | Exception]:
        """Score one step for each session, as one batch."""
        results: dict[int, Scored | Exception] = {}
        waiting: dict[int, tuple[TorchScorerSession, int, int]] = {}
        for index, (session, step) in enumerate(zip(sessions, work, strict=True)):
            assert isinstance(session, TorchScorerSession)
            try:
                waiting[index] = (session, *session.begin(step.body))
            except Exception as error:
                results[index] = error
        while waiting:
            self._feed(waiting, results)
        return [results[index] for index in range(len(work))]

    def _feed(
        self,
        waiting: dict[int, tuple[TorchScorerSession, int, int]],
        results: dict[int, Scored | Exception],
    ) -> None:
        """One chunk of each session; those that reach their reading position are done."""
        feeds = {index: session.feed(upto=read + 1) for index, (session, read, _) in waiting.items()}
        outputs = self.runner.run(list(feeds.values()))
        for (index, feed), output in zip(feeds.items(), outputs, strict=True):
            session, read, tokens = waiting[index]
            if isinstance(output, Exception):
                results[index] = output
                del waiting[index]
                continue
            session.fed(feed)
            if _end(feed) == read + 1:
                results[index] = self._scored(output, tokens)
                del waiting[index]

    def _scored(self, output: torch.Tensor, tokens: int) -> Scored | Exception:
        values = [float(value) for value in output.flatten()]
        if any(math.isnan(value) for value in values):
            return Scored(math.nan, tokens)
        try:
            return Scored(float(self.format.reward(values)), tokens)
        except Exception as error:
            return RewardError(
                f"the PRM format {self.format.name!r} cannot read a reward from {values!r}: {error}.",
                hint="Choose another prm_format.",
            )

    def close(self) -> None:
        """Give the memory back."""
        del self.runner, self.format


def _end(feed: SlotFeed) -> int:
    return feed.start + len(feed.tokens)
