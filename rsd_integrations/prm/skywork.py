"""Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rsd_integrations.encoding import encode_plain
from rsd_integrations.errors import ModelError
from rsd_integrations.prm.base import Feed, Head, PRMFormat
from rsd_integrations.prm.detection import has_architecture, model_name
from rsd_integrations.prm.readout import sigmoid
from rsd_integrations.prm.registry import register_prm_format
from rsd_integrations.prm.turns import conversation_text
from rsd_integrations.types import Message


@register_prm_format
class SkyworkFormat(PRMFormat):
    r"""Question and line break, then each step's tokens and one step token; a value head read there.

    No chat template: the model knows only a question, which is ``conversation_text``. Each line of a
    step is a step to this model, as its own code splits answers at every step token (a blank line would
    be a step token alone, and is left out here); the reward is that of the last line. A
    beginning-of-sequence token spelled in a text stays text.

    Options: "separator", the step token's text. The default "\n" is the model card's; the reference
    code of RSD sent "\n\n", for which its threshold 0.7 was chosen.

    Source: SkyworkAI/skywork-o1-prm-inference and BaohaoLiao/RSD.
    """

    name: ClassVar[str] = "skywork"
    head: ClassVar[Head] = "value"
    threshold: ClassVar[float | None] = 0.7
    accepts: ClassVar[frozenset[str] | None] = frozenset({"separator"})

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tokenizer, options)
        self.separator = str(self.options.get("separator", "\n"))
        ids = encode_plain(tokenizer, self.separator)
        if tokenizer.bos_token_id is None or not ids:
            missing = "beginning-of-sequence token" if ids else f"token for the separator {self.separator!r}"
            raise ModelError(
                f"the PRM's tokenizer has no {missing}, which this format needs.",
                hint="Load the tokenizer that came with the PRM, or choose another prm_format.",
            )
        self.separator_id = ids[-1]

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """By the architecture or the model's name."""
        name = model_name(config)
        return has_architecture(config, "Qwen2ForPrmModel") or ("skywork" in name and "open-prm" in name)

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Beginning of sequence, question, line break."""
        question = conversation_text(messages) + "\n"
        return (int(self.tokenizer.bos_token_id), *encode_plain(self.tokenizer, question))

    def step(self, body: str, index: int) -> Feed:
        """Each line of the step and a step token."""
        ids: list[int] = []
        for line in body.split(self.separator):
            if line.strip():
                ids += [*encode_plain(self.tokenizer, line), self.separator_id]
        return Feed(tuple(ids), read=len(ids) - 1)

    def reward(self, outputs: Sequence[float]) -> float:
        """The value, squashed to 0 to 1."""
        (value,) = outputs
        return sigmoid(value)
