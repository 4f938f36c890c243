"""A causal language model that writes steps: draft or target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rsd_integrations.backends.torch.detokenize import Detokenizer
from rsd_integrations.backends.torch.guesses import Guesses
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Output as Read
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.sampling import Draws, Row, draw, draw_rows
from rsd_integrations.backends.torch.slot_session import SlotSession, to_feed
from rsd_integrations.backends.torch.tooling import Tooling
from rsd_integrations.encoding import encode_plain
from rsd_integrations.errors import BackendError
from rsd_integrations.output import Output
from rsd_integrations.protocols import (
    FREE,
    DraftStep,
    End,
    GuessStep,
    Kept,
    ModelInfo,
    TargetStep,
    WriterSession,
    Written,
)
from rsd_integrations.segment import ReasoningTags
from rsd_integrations.types import Prompt

__all__ = ["TorchWriter", "TorchWriterSession"]

Render = Callable[[Prompt, Output], tuple[int, ...]]


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
        self.reader = writer.tooling.reader(output)
        self.constraint = writer.tooling.constraint(output, tags)
        self._writer = writer
        self._output = output
        markup = writer.tooling.markup_ids if self.reader else frozenset()
        self._detokenizer = Detokenizer(writer.tokenizer, writer.hidden_ids - markup)
        self._text = ""
        self._guesses = Guesses()
        self._known: list[int] = []
        """The next tokens of the step to write, drawn and cached before it was begun."""
        self._end: End | None = None
        self._draws = Draws(_nobody)
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
                # Of its own step, and what is known behind it is behind it still.
                self.tokens += self._known
            self._known = []
            return
        if self._draws.source is not work.sampling.draw:
            self._draws = Draws(work.sampling.draw)
        self._text = ""
        rejected = work.rejected if isinstance(work, TargetStep) else None
        if rejected is None:
            self._guesses = Guesses()
        else:
            same = rejected.vocabulary == self._writer.vocabulary
            own = self._as_own_tokens(rejected)
            self._guesses = Guesses(own, more=same, trusted=self._guesses.trusted)
        self._detokenizer.mark()

    @property
    def wanted(self) -> int:
        """How many of the draft's guesses it would take now."""
        return min(self._guesses.wanted, self._room - 1) if self.in_progress else 0

    def guess(self, tokens: Sequence[int]) -> None:
        """Take guesses of the draft's."""
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

    def _as_own_tokens(self, written: Written) -> tuple[int, ...]:
        return self._writer.as_own_tokens(written, markup=self.reader is not None)

    def next_feed(self) -> SlotFeed:
        """What the model has to see next, guesses included."""
        if isinstance(self.work, GuessStep):
            return self.feed()
        # The token behind the last guess is drawn too.
        return self.feed(guesses=self._guesses.next(self._room - 1))

    @property
    def samples(self) -> bool:
        """Whether its tokens are drawn by chance, with nothing forbidden."""
        return self._temperature > 0.0 and self.constraint is None

    def row(self, read: Read) -> Row:
        """What to draw its tokens from."""
        assert self.work is not None and self.work.sampling is not None
        # What it draws behind its own step is taken with the next one only, if ever.
        before = self.in_progress - len(self.work.tokens) if isinstance(self.work, GuessStep) else 0
        return Row(read.kept_R, self.work.sampling, self._draws.look(before + len(read.fetched))[before:])

    def take(self, read: Read, tokens: Sequence[int], asked: int) -> Written | None:
        """Take the tokens drawn at the last token and at each guess, until one proves wrong.

        Args:
            read: what was read there.
            tokens: those drawn; where some are forbidden they are drawn here, one knowing the others.
            asked: number of guesses.

        Raises:
            BackendError: the constraint allows no token.
        """
        if isinstance(self.work, GuessStep):
            return self._guess_one(tokens[0])
        right, written = 0, None
        for place, drawn in enumerate(tokens):
            token = drawn if self.constraint is None else self._constrained(read.kept_R[place])
            if self.samples:
                self._draws.take()
            written = self.push(token)
            guessed = self._guesses.drawn(token)
            if written is not None or not guessed or right == asked:
                break
            right += 1
            self.cached += 1
        if asked:
            self._guesses.verified(right, asked)
        return written

    @property
    def goes_on(self) -> bool:
        """Whether it can write on behind the step it has finished. A constraint would have to go back."""
        return isinstance(self.work, DraftStep) and self.constraint is None and self._end == "delimiter"

    def recall(self) -> Written | None:
        """Take the tokens that are known already; the step if it ends there."""
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

    def _constrained(self, logits_V: torch.Tensor) -> int:
        assert isinstance(self.work, DraftStep | TargetStep) and self.constraint is not None
        allowed_V = self.constraint.allowed(len(logits_V)).to(logits_V.device)
        sampling = replace(self.work.sampling, draw=self._draws.take)
        return draw(logits_V.float().masked_fill(~allowed_V, -torch.inf), sampling)

    @property
    def _temperature(self) -> float:
        """Guesses of the target's tokens are greedy."""
        return self.work.sampling.temperature if self.work is not None and self.work.sampling else 0.0

    @property
    def in_progress(self) -> int:
        """Tokens written for the step in progress."""
        return len(self.tokens) - self.base

    @property
    def _room(self) -> int:
        """Tokens by which the step may grow."""
        assert self.work is not None
        if isinstance(self.work, GuessStep):
            most = len(self.work.tokens) + self.work.count
        else:
            most = self.work.max_tokens
        return min(most, self._writer.info.window - self.base) - self.in_progress

    @property
    def steady(self) -> bool:
        """Whether the token drawn next is the likeliest, and goes on alone if it does not end the step."""
        greedy = self._temperature == 0.0 and (self.constraint is None or isinstance(self.work, GuessStep))
        return greedy and self._room > 1 and not self._guesses.next(1)

    @property
    def full(self) -> bool:
        """Whether the step may not grow any more."""
        return self._room <= 0

    def push(self, token: int) -> Written | None:
        """Take the next token; the step if it ends there."""
        assert isinstance(self.work, DraftStep | TargetStep)
        self.tokens.append(token)
        if self.constraint is not None:
            self.constraint.push([token])
        checked = len(self._text)
        self._text += self._detokenizer.push([token])
        if token in self._writer.eos_ids:
            return self.written("eos")
        cut = self.work.boundary.find(self._text, checked)
        if cut is not None:
            return self.written(cut.kind, cut.end if cut.kind == "stop" else None)
        return self.written("limit") if self.full else None

    def written(self, end: End, cut: int | None = None) -> Written:
        """The step in progress as it stands."""
        assert self.work is not None
        self._end = end
        if isinstance(self.work, GuessStep):
            return Written("", self.so_far[len(self.work.tokens) :], end, None, self._writer.vocabulary)
        if end == "eos" or (end == "limit" and self.work.closing):
            self._text += self._detokenizer.rest()
        return Written(self._text, tuple(self.tokens[self.base :]), end, cut, self._writer.vocabulary)

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Put the committed step in place of the one in progress."""
        if own and isinstance(self.work, GuessStep):
            self._known = self.settle(self.base + len(self.work.tokens))
        elif own:
            self.keep()
        else:
            self._known = []
            self._detokenizer.back()
            step = self._as_own_tokens(kept.written)
            self.replace(step)
            self._detokenizer.push(step)
            if self.constraint is not None:
                self.constraint.back()
                self.constraint.push(step)
        if self.constraint is not None:
            self.constraint.keep()
        self._detokenizer.mark()
        self.work = None


class TorchWriter:
    """A draft or target model over slots (a ``Writer``).

    Args:
        runner: over the model, reading logits.
        tokenizer: the model's.
        render: prompt and output -> token ids, by the model's own chat template.
        tags_of: rendered prompt -> thinking markup, None where the model has none.
        eos_ids: tokens that end an answer.
        hidden_ids: tokens without text.
        vocabulary: fingerprint of the tokenizer; writers with the same one share token ids.
        tooling: how the model is shown tools and how what it writes is constrained and read.
    """

    def __init__(
        self,
        runner: SlotRunner,
        tokenizer: Any,
        info: ModelInfo,
        *,
        render: Render,
        tags_of: Callable[[tuple[int, ...]], ReasoningTags | None],
        eos_ids: frozenset[int],
        hidden_ids: frozenset[int],
        vocabulary: str,
        tooling: Tooling,
    ) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.info = info
        self.eos_ids = eos_ids
        self.hidden_ids = hidden_ids
        self.vocabulary = vocabulary
        self.tooling = tooling
        self._render = render
        self._tags_of = tags_of

    def open(self, prompt: Prompt, output: Output = FREE) -> TorchWriterSession:
        """Render and encode a prompt; the window is checked by the engine, which knows max_tokens."""
        tokens = self._render(prompt, output)
        return TorchWriterSession(self, tokens, output, self._tags_of(tokens))

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template shows tools to the model."""
        return self.tooling.takes_tools

    def check(self, output: Output) -> None:
        """Refuse an output that it cannot write."""
        self.tooling.check(output)

    def encode(self, text: str) -> tuple[int, ...]:
        """A text in this model's tokens, special ones never among them."""
        return encode_plain(self.tokenizer, text)

    def count(self, prompt: Prompt, output: Output = FREE) -> int:
        """Length of a rendered prompt."""
        return len(self._render(prompt, output))

    def as_own_tokens(self, written: Written, *, markup: bool = False) -> tuple[int, ...]:
        """A step in this model's tokens: the ids themselves where the vocabulary is the same.

        Args:
            markup: tokens that mark calls of tools may arise.
        """
        if written.vocabulary == self.vocabulary:
            return written.token_ids
        return self.tooling.encode(written.text) if markup else self.encode(written.text)

    def advance(self, sessions: Sequence[WriterSession]) -> list[Written | Exception | None]:
        """One forward and at most one new token for each session."""
        own = [session for session in sessions if isinstance(session, TorchWriterSession)]
        results: list[Written | Exception | None] = [
            session.written("limit") if session.full else session.recall() for session in own
        ]
        going = [index for index, result in enumerate(results) if result is None]
        rows = [going[place] for place in to_feed([own[index] for index in going])]
        for index, result in zip(rows, self._write([own[index] for index in rows]), strict=True):
            results[index] = result
        return results

    def _write(self, sessions: Sequence[TorchWriterSession]) -> list[Written | Exception | None]:
        feeds = [session.next_feed() for session in sessions]
        ahead = all(session.steady for session in sessions)
        results: list[Written | Exception | None] = [None] * len(sessions)
        ready: dict[int, Read] = {}
        for index, read in enumerate(self.runner.run(feeds, ahead=ahead)):
            if isinstance(read, Exception):
                results[index] = read
                continue
            sessions[index].fed(feeds[index], read)
            if -1 in read.fetched:
                sessions[index].unread(feeds[index])
                # Behind a wrong guess nothing need be finite: once more without.
                if not sessions[index].drop_guesses():
                    results[index] = _not_finite(self.info.name)
            elif sessions[index].cached == len(sessions[index].tokens):
                ready[index] = read
        try:
            tokens = _tokens({index: (sessions[index], read) for index, read in ready.items()})
        except Exception:  # Whose it is shows when they are drawn one by one.
            tokens = {}
        for index, read in ready.items():
            try:
                drawn = tokens[index] if index in tokens else _tokens({index: (sessions[index], read)})[index]
                results[index] = sessions[index].take(read, drawn, feeds[index].more)
            except Exception as error:  # It is this session's own.
                results[index] = error
        return results

    def close(self) -> None:
        """Give the memory back."""
        del self.runner, self._render, self._tags_of, self.tooling


def _tokens(ready: Mapping[int, tuple[TorchWriterSession, Read]]) -> dict[int, list[int]]:
    """The token at each place of each: the likeliest, or drawn by chance, for all sessions at once."""
    rows = {index: session.row(read) for index, (session, read) in ready.items() if session.samples}
    drawn = draw_rows(list(rows.values())) if rows else []
    return {index: read.fetched for index, (_, read) in ready.items()} | dict(zip(rows, drawn, strict=True))


def _not_finite(name: str) -> BackendError:
    return BackendError(
        f"{name!r} gave NaN or infinite logits.", hint="Try another dtype (float16 overflows in some models)."
    )


def _nobody() -> float:
    raise AssertionError("no step was begun")
