"""A causal language model that writes steps: draft or target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rsd_integrations.backends.torch.constrain import Constraint
from rsd_integrations.backends.torch.detokenize import Detokenizer
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.sampling import pick
from rsd_integrations.backends.torch.slot_session import SlotSession
from rsd_integrations.backends.torch.tooling import Tooling
from rsd_integrations.calls import CallReader
from rsd_integrations.encoding import encode_plain
from rsd_integrations.errors import BackendError
from rsd_integrations.output import Output
from rsd_integrations.protocols import (
    FREE,
    DraftStep,
    End,
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
        tags: ReasoningTags | None,
        reader: CallReader | None,
        constraint: Constraint | None,
    ) -> None:
        super().__init__(writer.runner, prompt, writer.info.sliding_window)
        self.tags = tags
        self.reader = reader
        self.constraint = constraint
        self._writer = writer
        markup = writer.tooling.markup_ids if reader else frozenset()
        self._detokenizer = Detokenizer(writer.tokenizer, writer.hidden_ids - markup)
        self._text = ""
        self.work: DraftStep | TargetStep | None = None

    def begin(self, work: DraftStep | TargetStep) -> None:
        """Take a step to write."""
        self.work = work
        self._text = ""
        self._detokenizer.mark()

    @property
    def in_progress(self) -> int:
        """Tokens written for the step in progress."""
        return len(self.tokens) - self.base

    @property
    def full(self) -> bool:
        """Whether the step may not grow any more."""
        assert self.work is not None
        room = self._writer.info.window - self.base
        return self.in_progress >= min(self.work.max_tokens, room)

    def push(self, token: int) -> Written | None:
        """Take the next token; the step if it ends there."""
        assert self.work is not None
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
        if end == "eos" or (end == "limit" and self.work.closing):
            self._text += self._detokenizer.rest()
        return Written(self._text, tuple(self.tokens[self.base :]), end, cut, self._writer.vocabulary)

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Put the committed step in place of the one in progress."""
        if own:
            self.keep()
        else:
            self._detokenizer.back()
            step = self._writer.as_own_tokens(kept.written, markup=self.reader is not None)
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
        # A padded vocabulary has ids without a token, which the other model may not even have rows for.
        self._ids = max(tokenizer.get_vocab().values()) + 1
        self._render = render
        self._tags_of = tags_of

    def open(self, prompt: Prompt, output: Output = FREE) -> TorchWriterSession:
        """Render and encode a prompt; the window is checked by the engine, which knows max_tokens."""
        tokens = self._render(prompt, output)
        tags = self._tags_of(tokens)
        return TorchWriterSession(
            self, tokens, tags, self.tooling.reader(output), self.tooling.constraint(output, tags)
        )

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
            session.written("limit") if session.full else None for session in own
        ]
        rows = [index for index, result in enumerate(results) if result is None]
        for index, result in zip(rows, self._write([own[index] for index in rows]), strict=True):
            results[index] = result
        return results

    def _write(self, sessions: Sequence[TorchWriterSession]) -> list[Written | Exception | None]:
        feeds = [session.feed() for session in sessions]
        outputs = self.runner.run(feeds)
        results: list[Written | Exception | None] = [None] * len(sessions)
        ready: list[int] = []
        for index, (session, feed, output) in enumerate(zip(sessions, feeds, outputs, strict=True)):
            if isinstance(output, Exception):
                results[index] = output
                continue
            session.fed(feed)
            if session.cached == len(session.tokens):
                ready.append(index)
        if ready:
            self._pick(sessions, ready, outputs, results)
        return results

    def _pick(
        self,
        sessions: Sequence[TorchWriterSession],
        ready: list[int],
        outputs: Sequence[torch.Tensor | Exception],
        results: list[Written | Exception | None],
    ) -> None:
        logits_NV = torch.stack([output for i in ready if isinstance(output := outputs[i], torch.Tensor)])
        logits_NV = logits_NV[:, : self._ids]
        # NaN, +inf and nothing but -inf have no probabilities, and so no token.
        broken = (~logits_NV.amax(dim=-1).isfinite()).tolist()
        failed: dict[int, Exception] = {}
        for row, index in enumerate(ready):
            try:
                _mask(logits_NV[row], sessions[index].constraint)
            except Exception as error:
                failed[index] = error
        samplings = [work.sampling for i in ready if (work := sessions[i].work) is not None]
        for index, bad, token in zip(ready, broken, pick(logits_NV, samplings), strict=True):
            if bad:
                failed[index] = _not_finite(self.info.name)
            results[index] = failed[index] if index in failed else sessions[index].push(token)

    def close(self) -> None:
        """Give the memory back."""
        del self.runner, self._render, self._tags_of, self.tooling


def _mask(logits_V: torch.Tensor, constraint: Constraint | None) -> None:
    """Forbid what the constraint forbids, in place."""
    if constraint is not None:
        allowed_V = constraint.allowed(len(logits_V))
        logits_V.masked_fill_(~allowed_V.to(logits_V.device), -torch.inf)


def _not_finite(name: str) -> BackendError:
    return BackendError(
        f"{name!r} gave NaN or infinite logits.", hint="Try another dtype (float16 overflows in some models)."
    )
