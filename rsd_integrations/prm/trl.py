"""Token classifiers, as TRL's PRMTrainer makes them; the pocket trio's PRM is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rsd_integrations.encoding import encode_plain
from rsd_integrations.errors import ModelError
from rsd_integrations.prm.base import Feed, Head, PRMFormat
from rsd_integrations.prm.detection import has_architecture, label_count
from rsd_integrations.prm.readout import softmax
from rsd_integrations.prm.registry import register_prm_format
from rsd_integrations.prm.turns import chat_prompt, conversation_text
from rsd_integrations.types import Message


@register_prm_format
class TRLFormat(PRMFormat):
    r"""Prompt, then each step's tokens and the separator's; P(good) at the separator's last token.

    Prompt, steps and separator are encoded apart and joined, as PRMTrainer does. With "chat" the
    prompt is the whole conversation under the chat template, up to the answer. Without, it is the
    beginning-of-sequence token, if there is one, and ``conversation_text``, as PRMTrainer writes it.

    Rewards are read where a step was fed, never searched for, so separators within a step change
    nothing but what the model sees; control tokens spelled in a text stay text.

    Options: "separator" (default "\n", PRMTrainer's); "chat" (default false, as PRMTrainer applies no
    template); "positive" (index of the good label, default 1, the second of two).

    Source: PRMTrainer.tokenize_row of TRL 1.13, the last with a PRMTrainer (trl.experimental.prm).
    """

    name: ClassVar[str] = "trl"
    head: ClassVar[Head] = "token"
    labels: ClassVar[tuple[int, ...]] = (2,)
    threshold: ClassVar[float | None] = 0.5
    accepts: ClassVar[frozenset[str] | None] = frozenset({"separator", "chat", "positive"})

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tokenizer, options)
        separator = str(self.options.get("separator", "\n"))
        self._separator = encode_plain(tokenizer, separator)
        if not self._separator:
            raise ModelError(
                f"the PRM's tokenizer has no token for the separator {separator!r}.",
                hint="Set the separator that the PRM was trained with in rsd_prm of its config.json.",
            )
        self._chat = bool(self.options.get("chat", False))
        self._positive = self._number("positive", 1)

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """A token classifier with two labels."""
        return has_architecture(config, "ForTokenClassification") and label_count(config) in cls.labels

    def with_config(self, config: Any) -> PRMFormat:
        """This format. Where the option "positive" says which label is good, there may be any number."""
        return self if "positive" in self.options else super().with_config(config)

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The conversation, or the question."""
        if self._chat:
            return chat_prompt(self.tokenizer, messages)
        bos = self.tokenizer.bos_token_id
        start = () if bos is None else (int(bos),)
        return start + encode_plain(self.tokenizer, conversation_text(messages))

    def step(self, body: str, index: int) -> Feed:
        """The step's tokens, then the separator's."""
        ids = encode_plain(self.tokenizer, body) + self._separator
        return Feed(ids, read=len(ids) - 1)

    def reward(self, outputs: Sequence[float]) -> float:
        """Probability of the good label.

        Raises:
            ConfigError: the model has no label with the index "positive".
        """
        if not 0 <= self._positive < len(outputs):
            raise self._unfit("positive", 1)
        return softmax(outputs)[self._positive]
