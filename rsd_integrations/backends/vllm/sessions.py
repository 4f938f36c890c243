"""The tokens of one request in one model behind servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsd_integrations.backends.shared.scoring import StepFeeds
from rsd_integrations.backends.shared.writing import StepText
from rsd_integrations.backends.vllm.ahead import Ahead
from rsd_integrations.backends.vllm.form import Form
from rsd_integrations.output import Output
from rsd_integrations.protocols import (
    DraftStep,
    End,
    GuessStep,
    Kept,
    Sampling,
    Tally,
    TargetStep,
    WindowFull,
    Written,
)
from rsd_integrations.text.segment import StepBoundary
from rsd_integrations.text.thoughts import ReasoningTags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsd_integrations.backends.vllm.scorer import VLLMScorer
    from rsd_integrations.backends.vllm.writer import VLLMWriter


class TokenSession:
    """Committed tokens, then those of the step in progress. Servers hold no state but their prefix cache.

    Args:
        prompt: its tokens.
        key: of the request, so that one server gets all its questions.
        window: of sliding-window attention, for counting.
    """

    def __init__(self, prompt: tuple[int, ...], window: int | None, key: int) -> None:
        self.key = key
        self.prompt_tokens = len(prompt)
        self.tokens = list(prompt)
        self.base = len(prompt)
        """Length of the committed part."""
        self.read = 0
        """Length of the part that a server has read."""
        self.tally = Tally()
        self._window = window

    def count(self, cached: int | None, length: int) -> None:
        """Count what a server has read.

        Args:
            cached: tokens that it had in its cache; None if it does not say: then
                those that it has read before count.
            length: number of tokens that it knows now.
        """
        start = min(self.read if cached is None else cached, length)
        self.tally.add(start, length - start, self._window)
        self.read = length

    def forget(self) -> None:
        """Tokens that a server wrote, and that were not taken, do not count as read."""
        self.read = min(self.read, len(self.tokens))

    def put(self, tokens: Sequence[int]) -> None:
        """Commit these tokens in place of the step in progress."""
        self.tokens[self.base :] = tokens
        self.read = min(self.read, self.base)
        self.base = len(self.tokens)

    def close(self) -> None:
        """Nothing is held."""


class VLLMWriterSession(TokenSession):
    """One request in a draft or target model (a ``protocols.WriterSession``)."""

    wanted = 0

    def __init__(
        self,
        writer: VLLMWriter,
        prompt: tuple[int, ...],
        output: Output,
        tags: ReasoningTags | None,
        key: int,
    ) -> None:
        super().__init__(prompt, writer.info.sliding_window, key)
        self.tags = tags
        self._writer = writer
        self._output = output
        self._text = StepText(writer, output, tags)
        self.reader = self._text.reader
        constraint = self._text.constraint
        self.form = None if constraint is None else Form(writer.tooling, constraint, output, tags)
        self.work: DraftStep | TargetStep | None = None
        self.ahead: Ahead | None = None
        """What the draft writes behind a step that waits for its reward."""
        self.ahead_room = 0
        self._ends: End | None = None
        self._kept = True
        self._unused: float | None = None

    def fork(self) -> VLLMWriterSession:
        """Another session of the same request; the server knows the prompt of both."""
        prompt = tuple(self.tokens[: self.prompt_tokens])
        return VLLMWriterSession(self._writer, prompt, self._output, self.tags, self.key)

    def begin(self, work: DraftStep | TargetStep | GuessStep) -> None:
        """Take a step to write, or (a ``GuessStep``) permission to write on behind the last one."""
        if isinstance(work, GuessStep):
            self.ahead_room = min(work.count, self._writer.info.window - len(self.tokens))
            return
        self.work, self._ends = work, None
        self._text.begin()

    @property
    def goes_on(self) -> bool:
        """Whether it may write on behind its finished step, and that is likely to be wanted: after a rejected
        step not before another one is kept.
        """
        may = self._writer.ahead and self.form is None and self._kept and self.ahead is None
        return may and self._ends not in (None, "eos", "stop")

    def draw(self) -> float | None:
        """A random number for the next question, None if greedy; one used in vain is used again."""
        if self.sampling.temperature == 0.0:
            return None
        unused, self._unused = self._unused, None
        return self.sampling.draw() if unused is None else unused

    def leave_ahead(self) -> None:
        """Drop what was written behind the step in progress. Safe to repeat."""
        if self.ahead is not None:
            self.ahead.leave()
            self._unused, self.ahead = self.ahead.draw, None

    def guess(self, tokens: Sequence[int]) -> None:
        """Nothing to take: servers do their own speculation."""

    @property
    def boundary(self) -> StepBoundary:
        """Where the step in progress ends."""
        assert self.work is not None
        return self.work.boundary

    @property
    def sampling(self) -> Sampling:
        """How its tokens are drawn."""
        assert self.work is not None
        return self.work.sampling

    @property
    def text(self) -> str:
        """The text of the step in progress."""
        return self._text.shown

    @property
    def so_far(self) -> tuple[int, ...]:
        """The tokens of the step in progress."""
        return tuple(self.tokens[self.base :])

    @property
    def room(self) -> int:
        """Tokens by which the step may grow."""
        assert self.work is not None
        most = min(self.work.max_tokens, self._writer.info.window - self.base)
        return most - (len(self.tokens) - self.base)

    def push(self, token: int) -> Written | None:
        """Take the next token; the step if it ends there."""
        assert self.work is not None
        self.tokens.append(token)
        ended = self._text.push(token, self.work.boundary)
        if ended is not None:
            return self.written(*ended)
        return self.written("limit") if self.room <= 0 else None

    def written(self, end: End, cut: int | None = None) -> Written:
        """The step in progress as it stands."""
        assert self.work is not None
        self._ends = end
        text = self._text.whole(end, closing=self.work.closing)
        return Written(text, self.so_far, end, cut, self._writer.vocabulary)

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Put the committed step in place of the one in progress."""
        self._kept = own
        if own:
            self._text.keep()
            self.base = len(self.tokens)
        else:
            self.leave_ahead()
            back, step = self._text.replace(kept.written)
            self.base -= back
            self.put(step)
        if self.form is not None:
            self.form.commit(kept.written.text)
        self.work = None

    def close(self) -> None:
        """Nothing is held but what is written ahead."""
        self.leave_ahead()


class VLLMScorerSession(TokenSession):
    """One request in a PRM (a ``protocols.ScorerSession``): the steps' tokens, one step after the other."""

    def __init__(self, scorer: VLLMScorer, prompt: tuple[int, ...], key: int) -> None:
        super().__init__(prompt, scorer.info.sliding_window, key)
        self._scorer = scorer
        self._feeds = StepFeeds(scorer.format)

    def fork(self) -> VLLMScorerSession:
        """Another session of the same request."""
        return VLLMScorerSession(self._scorer, tuple(self.tokens[: self.prompt_tokens]), self.key)

    def lay_out(self, body: str) -> tuple[list[int], int]:
        """All tokens up to where the reward of a step is read, and how many of them are the step's.

        Args:
            body: as of ``ScoreStep``.

        Raises:
            WindowFull: they do not fit.
        """
        start, feed = self._feeds.lay_out(self.base, body)
        if start + len(feed.ids) > self._scorer.info.window:
            raise WindowFull
        return [*self.tokens[:start], *feed.ids[: feed.read + 1]], len(feed.ids) if body else 0

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Go on behind the committed step."""
        if not kept.body:
            return
        read = self.read
        self.put(self._feeds.commit(self.base, kept.body))
        if own:
            self.read = min(read, self.base)
