"""Constrained decoding: which tokens may come next, for one session, with a way back.

llguidance does the work; here its grammars are put together from an ``Output``, and its state is kept
beside a session's tokens: what is committed stays, what was rejected is rolled back.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from rsd_integrations.backends.shared.enforceable import check_multiples, enforceable
from rsd_integrations.backends.shared.keyed import KeyedRules
from rsd_integrations.backends.shared.lark import escaped, json_rule
from rsd_integrations.encoding import encode_markup, encode_plain
from rsd_integrations.encoding.plain import added_tokens
from rsd_integrations.errors import BackendError, ConfigError
from rsd_integrations.output import Output
from rsd_integrations.text.calls import CALL_ID, CallFormat
from rsd_integrations.text.thoughts import ReasoningTags

_KEPT = 32
"""Compiled grammars that are kept."""


class Constraint:
    """What one session may write (a matcher and how far it may have to go back).

    Args:
        matcher: its own.
        eos_ids: tokens that end an answer.
        spell: plain text -> tokens, none of them control tokens.
    """

    def __init__(
        self, matcher: LLMatcher, eos_ids: frozenset[int], spell: Callable[[str], Sequence[int]]
    ) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids
        self._spell = spell
        self._uncommitted = 0

    def allowed(self, size: int) -> torch.Tensor:
        """Which token ids may come next, ``[size]``, bool.

        Raises:
            BackendError: the grammar gave up (too complex).
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        # By numpy: where a GPU writes a token in a millisecond or two, torch's ways to unpack bits are slow.
        bits = np.unpackbits(packed, bitorder="little")[:size]
        allowed = np.zeros(size, np.bool_)
        allowed[: len(bits)] = bits
        if np.count_nonzero(allowed) == 1 and not self.takes(int(allowed.argmax())):
            # Text that a schema prescribes may spell a control token, or the tokenizer may normalise it: what
            # llguidance then allows alone does not fit.
            text = self._matcher.compute_ff_bytes().decode(errors="ignore")
            allowed = np.zeros(size, np.bool_)
            allowed[list(self._spell(text)[:1])] = True
        if self._matcher.is_error() or not allowed.any():
            raise BackendError(
                f"constrained decoding cannot go on: {_reason(self._matcher):.300}.",
                hint="Simplify the schema.",
            )
        return torch.from_numpy(allowed)

    def takes(self, token: int) -> bool:
        """Whether a token may come next."""
        if token in self._eos_ids:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]))

    def push(self, tokens: Iterable[int]) -> None:
        """Take tokens of the step in progress.

        Raises:
            BackendError: one of them was not allowed.
        """
        # An end of sequence ends the answer and is no part of the form; its ids may differ between models.
        for token in (token for token in tokens if token not in self._eos_ids):
            if not self._matcher.consume_token(token):
                raise BackendError(
                    f"a committed token breaks the answer's form: {_reason(self._matcher):.300}.",
                    hint="Draft and target may spell the same text in ways that do not fit together.",
                )
            self._uncommitted += 1

    def keep(self) -> None:
        """Commit the step in progress."""
        self._uncommitted = 0

    def back(self) -> None:
        """Drop the step in progress."""
        if self._uncommitted:
            self._matcher.rollback(self._uncommitted)
        self._uncommitted = 0

    def take_back(self, count: int) -> None:
        """Drop this many committed tokens; none are in progress."""
        if count:
            self._matcher.rollback(count)


class Grammars:
    """Compiles outputs for one tokenizer, and keeps what it compiled. Any thread.

    Args:
        tokenizer: a fast transformers tokenizer.
        eos_ids: tokens that end an answer.
        form: how calls of tools are written; None where nobody knows.
        name: of a model that has it, for messages.
    """

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], form: CallFormat | None, name: str) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._form = form
        self._name = name
        self._compiled: dict[tuple[str, ReasoningTags | None], LLMatcher] = {}
        self._lock = threading.Lock()

    def open(self, output: Output, tags: ReasoningTags | None) -> Constraint:
        """The constraint of a new session.

        Raises:
            ConfigError: a schema cannot be enforced, or it is not known how the model writes calls.
        """
        return Constraint(self._compile(output, tags).deep_copy(), self._eos_ids, self._spell)

    def by_bytes(self, text: str) -> tuple[int, ...] | None:
        """Ordinary tokens whose bytes are just those of a text, which a tokenizer's normaliser might change;
        None where the vocabulary has none.
        """
        tokens = self._vocabulary.greedy_tokenize(text)
        return tuple(tokens) if self._vocabulary.decode_bytes(tokens) == text.encode() else None

    def _spell(self, text: str) -> tuple[int, ...]:
        if tokens := self.by_bytes(text):
            return tokens
        never = (token.content for token in added_tokens(self._tokenizer) if not token.content.isspace())
        return encode_plain(self._tokenizer, text, never=never)

    def check(self, output: Output) -> None:
        """Compile an output, or say why that cannot be done.

        Raises:
            ConfigError: as ``open``.
        """
        self._compile(output, None)

    def _compile(self, output: Output, tags: ReasoningTags | None) -> LLMatcher:
        key = (output.key, tags)
        with self._lock:
            vocabulary, found = self._vocabulary, self._compiled.get(key)
        if found is not None:
            return found
        # Without the lock: the engine's thread, which opens others' sessions, must not wait for it.
        matcher = LLMatcher(vocabulary, self.source(output, tags), log_level=0)
        trial = matcher.deep_copy()
        trial.compute_bitmask()  # A schema that only refers to itself is found here.
        if trial.is_error():
            raise ConfigError(
                f"a schema cannot be enforced while writing: {_reason(trial):.400}",
                hint="Simplify it, or leave strict out, which lets unknown keywords pass."
                if output.strict
                else "Simplify it.",
            )
        with self._lock:
            while len(self._compiled) >= _KEPT:
                del self._compiled[next(iter(self._compiled))]
            return self._compiled.setdefault(key, matcher)

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        try:
            return from_tokenizer(self._tokenizer, eos_token=sorted(self._eos_ids))
        except Exception as error:  # Not a fast tokenizer, or of a kind that is not known there.
            raise ConfigError(
                f"the tokenizer of {self._name!r} cannot be used for constrained decoding: {error!s:.300}",
                hint="Use a model with a fast tokenizer (tokenizer.json).",
            ) from error

    def source(self, output: Output, tags: ReasoningTags | None, *, thought: bool = False) -> str:
        """Lark source: thinking if there may be any, then calls, a document or text.

        Args:
            thought: the thinking is over, and nothing has been written behind it yet.
        """
        check_multiples([output.schema, *(schema for _, schema in output.functions)])
        apart = bool(tags and tags.lead)  # Thoughts, words and calls are messages of their own.
        started = ['start: "\\n"* answer' if thought and not apart else "start: answer"]
        rules = self._thinking(tags) if tags and not thought else started
        answers: list[str] = []
        if output.tools and (output.choice == "required" or output.strict or output.schema is not None):
            answers.append("calls")
            rules += self._calls(output)
        if output.schema is not None and output.choice == "auto":
            answers += self._said("document", tags, thought)
            schema = enforceable(output.schema, strict=output.strict)
            rules.append(f"document: {json_rule(schema, strict=output.strict)}")
        elif output.choice == "auto":
            answers = (
                [*answers, *self._said("words", tags, thought)] if apart else ["words", "words_and_calls"]
            )
            rules += self._words()
        rules.append(f"answer: {' | '.join(answers)}")
        return LLMatcher.grammar_from_lark("\n".join(rules))

    def _thinking(self, tags: ReasoningTags) -> list[str]:
        """Rules for the thinking: free text up to the closing tag. The prompt may have opened it."""
        token = self._token(tags.closing)
        thought = "thought" if tags.open_in_prompt else f"({self._literal(tags.opening)} thought)?"
        rules = [f"start: {thought} answer"]
        behind = self._literal(tags.lead) if tags.lead else '"\\n"*'
        if token is None:
            closing = json.dumps(tags.closing)
            return [*rules, f"thought: thoughts {behind}", f"thoughts[suffix={closing}]: /(.|\\n)*/"]
        return [*rules, f"thought: THOUGHT {token} {behind}", "THOUGHT: /(.|\\n)*/"]

    def _said(self, rule: str, tags: ReasoningTags | None, thought: bool) -> list[str]:
        """How words or a document are written: between marks, which only headers make obligatory."""
        if tags is None or not tags.answer or (tags.lead and thought):  # Its header is there already.
            return [rule]
        marked = f"{self._literal(tags.answer)} {rule} {self._literal(tags.end)}"
        return [marked] if tags.lead else [marked, rule]

    def _calls(self, output: Output) -> list[str]:
        form = self._form
        if form is None or form.between is None:
            raise ConfigError(
                f"it is not known how {self._name!r} writes calls of tools, so none can be forced.",
                hint='Use tool_choice="auto" without strict, or a model whose template writes its calls.',
            )
        functions, between = output.functions, self._literal(form.between)
        keyed = None
        if form.keyed is not None:
            keyed = KeyedRules(form, form.keyed, self._pieces, strict=output.strict)
        rules = []
        for index, (name, described) in enumerate(functions):
            schema = enforceable(described, strict=output.strict, place=name)
            if keyed is None:
                arguments = json_rule(schema, strict=output.strict)
            else:
                arguments = keyed.arguments(f"call_{index}", name, schema)
            # A name is text, even where it spells markup.
            rules.append(f"call_{index}: {json.dumps(name)} {between} {arguments}")
        rules += keyed.rules if keyed else []
        call = " | ".join(f"call_{index}" for index in range(len(functions)))
        more = f" ({self._literal(form.again)} call)*" if output.parallel and form.again is not None else ""
        rules.append(f"call: {call}")
        rules.append(f"called: call{more} {self._literal(form.after)}")
        rules.append(f"calls: {self._literal(form.before)} called")
        return rules

    def _words(self) -> list[str]:
        """Rules for text without calls, and for text with calls behind it."""
        assert self._form is not None
        before, opening = self._form.before, self._form.opening
        rules = ["words: WORDS", "words_and_calls: words calls"]
        if not opening:
            return [*rules, r"WORDS: /\s*([^{\[\s](.|\n)*)?/"]
        if self._token(opening):
            return [*rules, r"WORDS: /(.|\n)*/"]
        # One terminal with what begins a call: else no lexer could tell where the text ends.
        rest = self._literal(before[before.index(opening) + len(opening) :])
        return [
            rules[0],
            f"words_and_calls: OPENED {rest} called\nOPENED: WORDS {json.dumps(opening)}",
            rf"WORDS: /(.|\n)*/ & ~/(.|\n)*{escaped(opening)}(.|\n)*/",
        ]

    def _literal(self, text: str) -> str:
        """A fixed text: markup as the tokens it is, the rest as text."""
        parts: list[str] = []
        for piece in text.split(CALL_ID):
            parts += [*self._pieces(piece), "/[a-zA-Z0-9]{9}/"]
        return " ".join(parts[:-1])

    def _pieces(self, text: str) -> list[str]:
        parts: list[str] = []
        plain: list[int] = []
        for token in [*encode_markup(self._tokenizer, text), None]:
            if token is not None and not self._vocabulary.is_special_token(token):
                plain.append(token)
                continue
            if plain:
                parts.append(json.dumps(self._text(plain)))
            plain = []
            if token is not None:
                parts.append(f"<[{token}]>")
        return parts

    def _text(self, tokens: Sequence[int]) -> str:
        return self._vocabulary.decode_str(list(tokens))

    def _token(self, text: str) -> str | None:
        """A text that is one token of markup, as a grammar names it; None of others."""
        ids = encode_markup(self._tokenizer, text)
        return f"<[{ids[0]}]>" if len(ids) == 1 and self._vocabulary.is_special_token(ids[0]) else None


def _reason(matcher: LLMatcher) -> str:
    """Why it gave up, without the state that it was in."""
    return re.split(r"\n<(?:state|backtrace)>", str(matcher.get_error() or "no token fits"))[0]
