"""One request in a draft or target model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rsd_integrations.backends.shared.writing import StepText
from rsd_integrations.backends.torch.guesses import Guesses
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.sampling import Before, Draws, Row, draw, penalized
from rsd_integrations.backends.torch.slot_session import SlotSession
from rsd_integrations.errors import BackendError
from rsd_integrations.output import Output
from rsd_integrations.protocols import DraftStep, End, GuessStep, Kept, Sampling, TargetStep, Written
from rsd_integrations.text.thoughts import ReasoningTags

if TYPE_CHECKING:
    from rsd_integrations.backends.torch.writer import TorchWriter


def _nobody() -> float:
    raise AssertionError("what is greedy draws no number")


_GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=None, draw=_nobody)


class TorchWriterSession(SlotSession):
    """One request in a draft or target model (a ``WriterSession``)."""

    def __init__(
        self,
        writer: TorchWriter,
        prompt: tuple[int, ...],
        output: Output,
        tags: ReasoningTags | None,
    ) -> None:
        super().__init__(writer.runner, prompt, writer.info.sliding_window)
        self.tags = tags
        self._writer = writer
        self._output = output
        self._text = StepText(writer, output, tags)
        self.reader = self._text.reader
        self._guesses = Guesses()
        self._known: list[int] = []
        """First tokens of the next step, drawn and cached before it was begun."""
        self._before = Before()
        """The tokens so far, for a penalty on them."""
        self._end: End | None = None
        self._draws = Draws(_GREEDY.draw)
        self.work: DraftStep | TargetStep | GuessStep | None = None

    def fork(self) -> TorchWriterSession:
        """Another session of the same request; each copies what the other has read."""
        prompt = tuple(self.tokens[: self.prompt_tokens])
        other = TorchWriterSession(self._writer, prompt, self._output, self.tags)
        other.join(self)
        return other

    def begin(self, work: DraftStep | TargetStep | GuessStep) -> None:
        """Take a step to write."""
        self.work = work
        if isinstance(work, GuessStep):
            if work.sampling is None:
                self.follow(work.tokens)
            else:
                # It goes on behind its own step, and behind what is already known there.
                self.tokens += self._known
            self._known = []
            return
        if self._draws.source is not work.sampling.draw:
            self._draws = Draws(work.sampling.draw)
        self._text.begin()
        self._before.begin()
        rejected = work.rejected if isinstance(work, TargetStep) else None
        if rejected is None:
            self._guesses = Guesses()
        else:
            same = rejected.vocabulary == self._writer.vocabulary
            own = self._text.own_tokens(rejected)
            self._guesses = Guesses(own, more=same, trusted=self._guesses.trusted)

    @property
    def wanted(self) -> int:
        """How many of the draft's guesses it would take now."""
        return min(self._guesses.wanted, self._room - 1) if self.in_progress else 0

    def guess(self, tokens: Sequence[int]) -> None:
        """Take guesses from the draft."""
        self._guesses.give(tokens)

    def drop_guesses(self) -> bool:
        """Make no more guesses in this step. Whether there were any."""
        any_left = bool(self._guesses.next(self._room - 1))
        self._guesses = Guesses(trusted=self._guesses.trusted)
        return any_left

    @property
    def so_far(self) -> tuple[int, ...]:
        """The tokens of the step in progress."""
        return tuple(self.tokens[self.base :])

    def next_feed(self) -> SlotFeed:
        """What the model has to see next, guesses included."""
        if isinstance(self.work, GuessStep):
            return self.feed()
        # One fewer than there is room for: a token behind the last guess is drawn too.
        return self.feed(guesses=self._guesses.next(self._room - 1))

    @property
    def _by_itself(self) -> bool:
        """Whether tokens are drawn one at a time, as a constraint or a penalty depends on those before."""
        return self._text.constraint is not None or self._sampling.repetition_penalty != 1.0

    @property
    def samples(self) -> bool:
        """Whether its tokens are sampled (temperature above 0), from the model's logits as they are."""
        return self._sampling.temperature > 0.0 and not self._by_itself

    def row(self, read: Read) -> Row:
        """What to draw its tokens from."""
        # Draws behind its own step are only looked at: the next step takes them, if ever.
        before = self.in_progress - len(self.work.tokens) if isinstance(self.work, GuessStep) else 0
        return Row(read.kept_R, self._sampling, self._draws.look(before + len(read.fetched))[before:])

    def take(self, read: Read, tokens: Sequence[int], asked: int) -> Written | None:
        """Take the tokens drawn behind the last token and behind each guess, until a guess proves wrong; or
        all that were drawn in a burst, until the step ends.

        Args:
            read: what was read there.
            tokens: those drawn; where each depends on the others, they are drawn here instead.
            asked: number of guesses.

        Raises:
            BackendError: the constraint allows no token.
        """
        right, written = 0, None
        for place, drawn in enumerate(tokens):
            if isinstance(self.work, GuessStep):
                written, fed = self._guess_one(drawn), read.own > 0
            else:
                token = self._drawn(read.kept_R[place]) if self._by_itself else drawn
                if self.samples:
                    self._draws.take()
                written = self.push(token)
                fed = self._guesses.drawn(token) or read.own > 0
            if written is not None or not fed or right == len(tokens) - 1:
                break
            right += 1
            self.cached += 1
        if asked:
            self._guesses.verified(right, asked)
        return written

    @property
    def goes_on(self) -> bool:
        """Whether it can write on behind the step it has finished. Not with a constraint or a penalty."""
        if not isinstance(self.work, DraftStep) or self._by_itself:
            return False
        return self._end == "delimiter" or (self._end == "limit" and not self.work.closing)

    def recall(self) -> Written | None:
        """Take the tokens that are known already. Returns the step if it ends there, or has no more room."""
        if self.full:
            return self.written("limit")
        while self._known:
            if self.samples:
                self._draws.take()
            written = self.push(self._known.pop(0))
            if written is not None:
                return written
        return None

    def _guess_one(self, token: int) -> Written | None:
        self.tokens.append(token)
        return self.written("limit") if self.full or token in self._writer.eos_ids else None

    def _drawn(self, logits_V: torch.Tensor) -> int:
        sampling, logits_V = self._sampling, logits_V.float()
        if sampling.repetition_penalty != 1.0:
            before_L = self._before.ids(self.tokens, self.base, logits_V.device)
            logits_V = penalized(logits_V, before_L, sampling.repetition_penalty)
        if self._text.constraint is not None:
            allowed_V = self._text.constraint.allowed(len(logits_V)).to(logits_V.device)
            logits_V = logits_V.masked_fill(~allowed_V, -torch.inf)
            if logits_V.max() == -torch.inf:
                raise BackendError(
                    f"{self._writer.info.name!r} rules out every token that the answer's form allows here.",
                    hint="Use another model, or ask for another form.",
                )
        return draw(logits_V, replace(sampling, draw=self._draws.take))

    @property
    def _sampling(self) -> Sampling:
        """How its tokens are drawn. Guesses of the target's tokens are greedy."""
        assert self.work is not None
        return self.work.sampling or _GREEDY

    @property
    def in_progress(self) -> int:
        """Tokens written for the step in progress."""
        return len(self.tokens) - self.base

    @property
    def _room(self) -> int:
        """Tokens by which the step may still grow."""
        assert self.work is not None
        if isinstance(self.work, GuessStep):
            most = len(self.work.tokens) + self.work.count
        else:
            most = self.work.max_tokens
        return min(most, self._writer.info.window - self.base) - self.in_progress

    @property
    def steady(self) -> int:
        """Tokens it may still take, if each will simply be the likeliest one and be fed alone; else 0."""
        if self._sampling.temperature > 0.0 or (self._by_itself and not isinstance(self.work, GuessStep)):
            return 0
        guessed = bool(self._guesses.next(1)) or self._guesses.wanted > 0
        return 0 if guessed or self._text.holds else self._room

    @property
    def ending(self) -> frozenset[str]:
        """Characters one of which is in the last token of a step, if a delimiter or stop string ends it."""
        assert self.work is not None
        return frozenset() if isinstance(self.work, GuessStep) else self.work.boundary.last

    @property
    def full(self) -> bool:
        """Whether the step may not grow any more."""
        return self._room <= 0

    def push(self, token: int) -> Written | None:
        """Take the next token. Returns the step if it ends there."""
        assert isinstance(self.work, DraftStep | TargetStep)
        self.tokens.append(token)
        ended = self._text.push(token, self.work.boundary)
        if ended is not None:
            return self.written(*ended)
        return self.written("limit") if self.full else None

    def written(self, end: End, cut: int | None = None) -> Written:
        """The step in progress as it stands."""
        assert self.work is not None
        self._end = end
        if isinstance(self.work, GuessStep):
            return Written("", self.so_far[len(self.work.tokens) :], end, None, self._writer.vocabulary)
        text = self._text.whole(end, closing=self.work.closing)
        return Written(text, self.so_far, end, cut, self._writer.vocabulary)

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Put the committed step in place of the one in progress."""
        if own:
            self._text.keep()
            if isinstance(self.work, GuessStep):
                self._known = self.settle(self.base + len(self.work.tokens))
            else:
                self.keep()
        else:
            self._known = []
            back, step = self._text.replace(kept.written)
            if back:
                self.base -= back
                self._before = Before()
            self.replace(step)
        self.work = None
