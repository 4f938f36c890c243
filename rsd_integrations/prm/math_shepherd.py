"""Math-Shepherd (Mistral) and VersaPRM (Llama): a language model answers "+" or "-" at a separator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rsd_integrations.encoding import encode_opening, encode_plain
from rsd_integrations.prm.base import Feed, Head, PRMFormat
from rsd_integrations.prm.detection import has_architecture, model_name
from rsd_integrations.prm.readout import single_token, softmax
from rsd_integrations.prm.registry import register_prm_format
from rsd_integrations.prm.turns import conversation_text
from rsd_integrations.types import Message

_NUMBERED = re.compile(r"\W*step\s*\d+", re.IGNORECASE)


@register_prm_format
class MathShepherdFormat(PRMFormat):
    r"""Question and steps as plain text, " ки" after each; P("+") against P("-") there.

    No chat template: the model knows only a question, which is ``conversation_text``. Steps begin on
    new lines with "Step 1: " and so on, as in all of the training data; steps that are numbered already
    stay as they are. The separator spelled in a text is cut in two, so it is never one token.

    Options: "separator"; "positive" and "negative" (labels); "lead" (text before the first step);
    "joint" (text before the others); "numbering" (false: add no step numbers).

    Source: the model card of peiyi9979/math-shepherd-mistral-7b-prm.
    """

    name: ClassVar[str] = "math_shepherd"
    head: ClassVar[Head] = "lm"
    threshold: ClassVar[float | None] = 0.5
    accepts: ClassVar[frozenset[str] | None] = frozenset(
        {"separator", "positive", "negative", "lead", "joint", "numbering"}
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "separator": " ки",
        "positive": " +",
        "negative": " -",
        "lead": " ",
        "joint": "\n",
        "numbering": True,
    }

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tokenizer, options)
        chosen = {**self.defaults, **self.options}
        separator = str(chosen["separator"])
        self.separator_id = single_token(tokenizer, separator, "separator")
        self._labels = (
            single_token(tokenizer, str(chosen["positive"]), "label"),
            single_token(tokenizer, str(chosen["negative"]), "label"),
        )
        self._never = (separator.strip() or separator,)
        self._lead, self._joint = str(chosen["lead"]), str(chosen["joint"])
        self._numbering = bool(chosen["numbering"])

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """By the model's name: its architecture is that of any Mistral."""
        return "math-shepherd" in model_name(config) and has_architecture(config, "ForCausalLM")

    @property
    def columns(self) -> tuple[int, ...]:
        """The ids of the two labels."""
        return self._labels

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The question."""
        question = conversation_text(messages).rstrip()
        # As tokenizers cut texts, white space belongs to what follows it, except for line breaks.
        lead = self._lead if "\n" in self._lead else ""
        return encode_opening(self.tokenizer, question + lead, never=self._never, banned=(self.separator_id,))

    def step(self, body: str, index: int) -> Feed:
        """The step, numbered, and the separator."""
        text = body
        if self._numbering and not _NUMBERED.match(body):
            text = f"Step {index + 1}: {body}"
        if index > 0:
            text = self._joint + text
        elif "\n" not in self._lead:
            text = self._lead + text
        ids = encode_plain(self.tokenizer, text, never=self._never, banned=(self.separator_id,))
        return Feed((*ids, self.separator_id), read=len(ids))

    def reward(self, outputs: Sequence[float]) -> float:
        """Probability of "+", of the two labels."""
        good, _ = softmax(outputs)
        return good


@register_prm_format
class VersaPRMFormat(MathShepherdFormat):
    r"""As "math_shepherd", with " \n\n\n\n" after each step, no numbers, and labels without a space.

    Options: as of "math_shepherd".

    Source: mtzig/MultiDomainPRM.
    """

    name: ClassVar[str] = "versaprm"
    defaults: ClassVar[Mapping[str, Any]] = {
        "separator": " \n\n\n\n",
        "positive": "+",
        "negative": "-",
        "lead": " \n\n",
        "joint": "",
        "numbering": False,
    }

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """By the model's name."""
        return "versaprm" in model_name(config) and has_architecture(config, "ForCausalLM")
