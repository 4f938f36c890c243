"""What a writer is, wherever its model runs: how its texts become tokens, and tokens text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rsd_integrations.backends.shared.describe import eos_ids, fingerprint, hidden_ids
from rsd_integrations.backends.shared.detokenize import Detokenizer
from rsd_integrations.backends.shared.headers import Messages
from rsd_integrations.backends.shared.reasoning import reasoning_tags
from rsd_integrations.backends.shared.tooling import Calls, Tooling
from rsd_integrations.encoding import chat_template_text, encode_opening, message_text, render_chat
from rsd_integrations.encoding.rendered import doubt
from rsd_integrations.errors import ModelError
from rsd_integrations.output import Output
from rsd_integrations.prompts import as_messages
from rsd_integrations.protocols import FREE, NONE, End, ModelInfo, Written
from rsd_integrations.text.segment import StepBoundary
from rsd_integrations.text.thoughts import ReasoningTags
from rsd_integrations.types import Prompt


@dataclass(frozen=True)
class Language:
    """How one model's texts become tokens, and tokens text.

    Args:
        tokenizer: the model's.
        eos_ids: tokens that end an answer.
        hidden_ids: tokens without text.
        vocabulary: fingerprint of the tokenizer; writers with the same one share token ids.
        size: of the vocabulary.
        tooling: how the model is shown tools and how what it writes is constrained and read.
    """

    tokenizer: Any
    eos_ids: frozenset[int]
    hidden_ids: frozenset[int]
    vocabulary: str
    size: int
    tooling: Tooling

    @classmethod
    def of(cls, tokenizer: Any, name: str, generation_config: Any, calls: Calls) -> Language:
        """Read it off a tokenizer and a generation config.

        Args:
            name: the model's.
            calls: as of ``Tooling``.

        Raises:
            ModelError: nothing ends an answer.
        """
        ends = eos_ids(generation_config, tokenizer)
        if not ends:
            raise ModelError(f"{name!r} names no end-of-sequence token.", hint="Set tokenizer.eos_token.")
        vocabulary = tokenizer.get_vocab()  # Once: a large one takes a quarter of a second.
        return cls(
            tokenizer,
            ends,
            hidden_ids(tokenizer) | ends,
            fingerprint(vocabulary),
            max(vocabulary.values()) + 1,
            Tooling(tokenizer, name, ends, calls),
        )


class StepText:
    """One request's step in progress, whoever writes its tokens: its text, where it ends, and what it may be.

    Args:
        writer: whose tokens they are.
        output: what the answer may be.
        tags: of the thinking.
    """

    def __init__(self, writer: SpeakingWriter, output: Output, tags: ReasoningTags | None) -> None:
        self._writer = writer
        self.reader = writer.tooling.reader(output)
        """Reads calls, if there are tools; tokens that mark calls are then shown as text."""
        self.constraint = writer.tooling.constraint(output, tags)
        """Keeps the answer to the output, if something has to."""
        calling = self.reader is not None
        hidden = writer.hidden_ids - (writer.tooling.markup_ids if calling else frozenset())
        if tags is not None and tags.lead:
            calls = writer.tooling.form if calling else None
            self._detokenizer: Detokenizer = Messages(writer.tokenizer, hidden, tags, calls)
        else:
            self._detokenizer = Detokenizer(writer.tokenizer, hidden)
        self.shown = ""
        """The part of the step's text that is certain."""

    @property
    def holds(self) -> bool:
        """Whether a character is not whole yet."""
        return self._detokenizer.holds

    def own_tokens(self, written: Written) -> tuple[int, ...]:
        """A step in the writer's tokens: the ids themselves where the vocabulary is the same."""
        return written.token_ids if self._shares(written) else self._encode(written.text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return self._writer.tooling.encode(text, calls=self.reader is not None)

    def _shares(self, written: Written) -> bool:
        return written.vocabulary == self._writer.vocabulary

    def begin(self) -> None:
        """Begin a step behind what is committed."""
        self.shown = ""
        self._detokenizer.mark()

    def push(self, token: int, boundary: StepBoundary) -> tuple[End, int | None] | None:
        """Take the next token. How the step ends and where a stop string cuts it, if it ends there.

        Raises:
            BackendError: the constraint does not allow it.
        """
        if self.constraint is not None:
            self.constraint.push([token])
        checked = len(self.shown)
        self.shown += self._detokenizer.push([token])
        if token in self._writer.eos_ids:
            return "eos", None
        cut = boundary.find(self.shown, checked)
        return None if cut is None else (cut.kind, cut.end if cut.kind == "stop" else None)

    def whole(self, end: End, *, closing: bool) -> str:
        """The step's whole text. ``closing``: if a limit ends the step, the answer ends with it."""
        if end == "eos" or (end == "limit" and closing):
            self.shown += self._detokenizer.rest()
        return self.shown

    def keep(self) -> None:
        """Go on behind the step in progress."""
        if self.constraint is not None:
            self.constraint.keep()
        self._detokenizer.mark()

    def replace(self, written: Written) -> tuple[int, tuple[int, ...]]:
        """Go on behind another step in place of the one in progress.

        Text of another vocabulary begins with a whole character, so the bytes of one that a limit cut go.

        Returns:
            How many of the committed tokens go with the step in progress, and the tokens in their place.

        Raises:
            BackendError: the constraint does not allow it.
        """
        if self._shares(written):
            count, shown, tokens = 0, "", written.token_ids
        else:
            # Without new text all stays: else limits of a token or two would let neither end a character.
            count, shown = self._detokenizer.ragged if written.text else (0, "")
            tokens = self._encode(shown + written.text)
        if self.constraint is not None:
            self.constraint.back()
            # An answer's last step is not checked: the other model may spell the end in its own way.
            if written.end != "eos":
                self.constraint.take_back(count)
                self.constraint.push(self._exact_tokens(written, shown))
        self._detokenizer.back(to_whole=count > 0)
        self._detokenizer.push(tokens)
        self.keep()
        return count, tokens

    def _exact_tokens(self, written: Written, before: str) -> tuple[int, ...]:
        if self._shares(written):
            return written.token_ids
        return self._writer.tooling.encode_exactly(before + written.text, calls=self.reader is not None)


class SpeakingWriter:
    """What the engine asks of a writer besides writing.

    Args:
        language: of its model.
    """

    def __init__(self, language: Language, info: ModelInfo) -> None:
        self.info = info
        self.tokenizer = language.tokenizer
        self.eos_ids = language.eos_ids
        self.hidden_ids = language.hidden_ids
        self.vocabulary = language.vocabulary
        self.tooling = language.tooling
        self.takes_tools = language.tooling.takes_tools

    def check(self, output: Output) -> None:
        """Refuse an output that it cannot write."""
        self.tooling.check(output)

    def encode(self, text: str) -> tuple[int, ...]:
        """A text in this model's tokens, special ones never among them."""
        return self.tooling.plain(text)

    def looks_at(self, variable: str) -> bool:
        """Whether its chat template looks at a variable."""
        return re.search(rf"\b{re.escape(variable)}\b", chat_template_text(self.tokenizer)) is not None

    def count(self, prompt: Prompt, output: Output = FREE, variables: Mapping[str, Any] = NONE) -> int:
        """Length of a rendered prompt."""
        return len(render(self.tokenizer, prompt, output, variables))

    def tags(self, rendered: tuple[int, ...]) -> ReasoningTags | None:
        """The thinking markup behind a rendered prompt; None where the model has none."""
        return reasoning_tags(self.tokenizer, rendered)


def render(tokenizer: Any, prompt: Prompt, output: Output, variables: Mapping[str, Any]) -> tuple[int, ...]:
    """A prompt's tokens: a chat by the template; for a model without one a lone text, to be continued."""
    messages = as_messages(prompt)
    if len(messages) == 1 and messages[0]["role"] == "user":
        doubt(tokenizer, message_text(messages[0]))
    if isinstance(prompt, str) and not chat_template_text(tokenizer):
        return encode_opening(tokenizer, prompt)
    return render_chat(tokenizer, messages, tools=output.tools, **variables)
