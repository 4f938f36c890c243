"""Qwen2.5-Math-PRM-7B and -72B, Qwen2.5-Math-7B-PRM800K, and ReasonFlux-PRM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rsd_integrations.encoding import token_id
from rsd_integrations.errors import ModelError
from rsd_integrations.prm.base import Feed, Head, PRMFormat
from rsd_integrations.prm.detection import has_architecture, model_name
from rsd_integrations.prm.readout import softmax
from rsd_integrations.prm.registry import register_prm_format
from rsd_integrations.prm.turns import AnswerTurn, chat_prompt
from rsd_integrations.types import Message


@register_prm_format
class QwenFormat(PRMFormat):
    r"""The steps in the assistant's turn, "<extra_0>" after each; P(good) of two classes there.

    The model sees the whole conversation under its chat template. A system turn asking for
    step-by-step reasoning and \boxed{}, as on the model card, is added if there is none.
    A separator spelled in a message or a step stays text.

    Options: "separator"; "system" (text of the added system turn, null for none).

    Source: the model cards of Qwen/Qwen2.5-Math-PRM-7B and Qwen/Qwen2.5-Math-7B-PRM800K.
    """

    name: ClassVar[str] = "qwen"
    head: ClassVar[Head] = "process_reward"
    threshold: ClassVar[float | None] = 0.7
    accepts: ClassVar[frozenset[str] | None] = frozenset({"separator", "system"})
    system: ClassVar[str | None] = r"Please reason step by step, and put your final answer within \boxed{}."

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tokenizer, options)
        self.separator = str(self.options.get("separator", "<extra_0>"))
        separator_id = token_id(tokenizer, self.separator)
        if separator_id is None:
            raise ModelError(
                f"the PRM's tokenizer has no token {self.separator!r}, which this format reads rewards at.",
                hint="Load the tokenizer that came with the PRM, or choose another prm_format.",
            )
        self.separator_id = separator_id
        self._system = self.options.get("system", self.system)
        self._turn = AnswerTurn(tokenizer)

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """By the architecture, except for ReasonFlux, which has the same."""
        known = has_architecture(config, "Qwen2ForProcessRewardModel")
        return known and "reasonflux" not in model_name(config)

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The conversation, with a system turn in front if it has none."""
        turns = list(messages)
        if self._system and not any(turn.get("role") == "system" for turn in turns):
            turns.insert(0, {"role": "system", "content": self._system})
        return chat_prompt(self.tokenizer, turns, never=(self.separator,))

    def step(self, body: str, index: int) -> Feed:
        """The step and its separator."""
        ids = self._turn.encode(body, first=index == 0, never=(self.separator,))
        return Feed((*ids, self.separator_id), read=len(ids))

    def reward(self, outputs: Sequence[float]) -> float:
        """Probability of the second of two classes."""
        _, good = softmax(outputs)
        return good


@register_prm_format
class ReasonFluxFormat(QwenFormat):
    """As "qwen", options included, but without a system turn of our own."""

    name: ClassVar[str] = "reasonflux"
    threshold: ClassVar[float | None] = None
    system: ClassVar[str | None] = None

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """By the architecture and the model's name."""
        return has_architecture(config, "Qwen2ForProcessRewardModel") and "reasonflux" in model_name(config)
