"""RLHFlow's Llama3.1-8B-PRM-Deepseek-Data and -Mistral-Data: a chat about the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rsd_integrations.encoding import control_tokens, encode_markup, encode_plain
from rsd_integrations.errors import ModelError
from rsd_integrations.prm.base import Feed, Head, PRMFormat
from rsd_integrations.prm.detection import has_architecture, model_name
from rsd_integrations.prm.readout import label_id, softmax
from rsd_integrations.prm.registry import register_prm_format
from rsd_integrations.prm.turns import conversation_text, render_turns
from rsd_integrations.types import Message

_MARKS = ("Rsdfirst", "Rsdverdict", "Rsdsecond", "Rsdagain")


@register_prm_format
class RLHFlowFormat(PRMFormat):
    """Each step is a user turn (the first also holds the question); P("+") of the answer to it.

    Earlier steps count as answered "+". The question is ``conversation_text``: roles of the
    conversation itself have no place in this chat. Control tokens spelled in a text stay text.

    Source: RLHFlow/RLHF-Reward-Modeling (math-rm) and the model cards.
    """

    name: ClassVar[str] = "rlhflow"
    head: ClassVar[Head] = "lm"
    threshold: ClassVar[float | None] = 0.5
    accepts: ClassVar[frozenset[str] | None] = frozenset()

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tokenizer, options)
        self._labels = (label_id(tokenizer, "+"), label_id(tokenizer, "-"))
        opening, header, closing, again = _frame(tokenizer)
        if header != again:
            raise ModelError(
                f"the PRM's chat template writes turns differently: {header!r} and then {again!r}.",
                hint="Choose another prm_format.",
            )
        # A space at the end of a piece belongs to the token that follows it.
        (self._opening, self._ask_space), (header, plus_space), (closing, self._next_space) = map(
            _split_space, (opening, header, closing)
        )
        self._header = encode_markup(tokenizer, header)
        self._verdict = encode_plain(tokenizer, plus_space + "+") + encode_markup(tokenizer, closing)
        self._never = control_tokens(tokenizer)

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """By the model's name: its architecture is that of any Llama or Mistral."""
        name = model_name(config)
        known = any(part in name for part in ("-prm-deepseek-data", "-prm-mistral-data"))
        return known and has_architecture(config, "ForCausalLM")

    @property
    def columns(self) -> tuple[int, ...]:
        """The ids of "+" and "-"."""
        return self._labels

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The beginning of the first user turn: the question."""
        question = self._ask_space + conversation_text(messages).strip()
        opening = encode_markup(self.tokenizer, self._opening, opening=True)
        return opening + encode_plain(self.tokenizer, question, never=self._never)

    def step(self, body: str, index: int) -> Feed:
        """The verdict on the last step, this step as a user turn, and the header of the answer."""
        if index == 0:
            ids = encode_plain(self.tokenizer, " " + body, never=self._never)
        else:
            said = encode_plain(self.tokenizer, self._next_space + body, never=self._never)
            ids = self._verdict + said
        return Feed(ids + self._header, read=len(ids) + len(self._header) - 1)

    def reward(self, outputs: Sequence[float]) -> float:
        """Probability of "+", of the two labels."""
        good, _ = softmax(outputs)
        return good


def _frame(tokenizer: Any) -> tuple[str, str, str, str]:
    """What the chat template writes before, between and after user and assistant texts."""
    roles = ("user", "assistant", "user", "assistant")
    turns: list[Message] = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=True)]
    rest = render_turns(tokenizer, turns)
    parts: list[str] = []
    for mark in _MARKS:
        part, found, rest = rest.partition(mark)
        if not found:
            raise ModelError(
                f"the PRM's chat template does not show all turns in order (no {mark!r}).",
                hint="Choose another prm_format.",
            )
        parts.append(part)
    return parts[0], parts[1], parts[2], parts[3]


def _split_space(text: str) -> tuple[str, str]:
    bare = text.rstrip(" ")
    return bare, text[len(bare) :]
