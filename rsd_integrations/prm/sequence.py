"""Outcome reward models: a classifier over the question and the answer so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

from rsd_integrations.prm.base import Feed, Head, PRMFormat
from rsd_integrations.prm.detection import has_architecture, label_count
from rsd_integrations.prm.readout import sigmoid, softmax
from rsd_integrations.prm.registry import register_prm_format
from rsd_integrations.prm.turns import AnswerTurn, chat_prompt
from rsd_integrations.types import Message


@register_prm_format
class SequenceFormat(PRMFormat):
    r"""The conversation and the answer so far under the chat template, read at the last token.

    The tokens that end the assistant's turn are put behind the last step only for the reading. The
    model sees all turns as its template renders them; steps are joined by blank lines. As in transformers,
    the last token is the last that is not the ``pad_token_id`` of the model's config, if that has one:
    where the end of a turn is also the pad token, the reward is read before it.

    Such models judge whole answers: a partial one gets an unusual score, and one logit has no
    natural zero. Choose a threshold by measuring (no preset is known), or shift the scale with the
    options "center" and "scale": sigmoid((logit - center) / scale).

    Source: the model cards of sequence-classification reward models, e.g. Skywork-Reward.
    """

    name: ClassVar[str] = "sequence"
    head: ClassVar[Head] = "sequence"
    labels: ClassVar[tuple[int, ...]] = (1, 2)
    accepts: ClassVar[frozenset[str] | None] = frozenset({"center", "scale"})

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tokenizer, options)
        self._turn = AnswerTurn(tokenizer)
        self._center = self._number("center", 0.0)
        self._scale = self._number("scale", 1.0, zero=False)
        self._pad: int | None = None

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """A sequence classifier with one or two labels."""
        return has_architecture(config, "ForSequenceClassification") and label_count(config) in cls.labels

    def with_config(self, config: Any) -> PRMFormat:
        """This format, told which token pads: the config's, not the tokenizer's, is what models go by."""
        super().with_config(config)
        told = copy(self)
        told._pad = getattr(getattr(config, "get_text_config", lambda: config)(), "pad_token_id", None)
        return told

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The conversation, up to the answer."""
        return chat_prompt(self.tokenizer, messages)

    def step(self, body: str, index: int) -> Feed:
        """The step, then the end of the turn for the reading."""
        text = "\n\n" + body if index else body
        ids = self._turn.encode(text, first=index == 0) + self._turn.tail
        last = len(ids) - 1
        read = next((place for place in range(last, -1, -1) if ids[place] != self._pad), last)
        return Feed(ids, read=read, probe=len(self._turn.tail))

    def reward(self, outputs: Sequence[float]) -> float:
        """Sigmoid of one logit, or probability of the second of two labels."""
        if len(outputs) == 1:
            return sigmoid((outputs[0] - self._center) / self._scale)
        _, good = softmax(outputs)
        return good
