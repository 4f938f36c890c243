"""Any chat model as the judge of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rsd_integrations.encoding import encode_plain
from rsd_integrations.errors import ModelError
from rsd_integrations.prm.base import Feed, Head, PRMFormat
from rsd_integrations.prm.readout import softmax
from rsd_integrations.prm.registry import register_prm_format
from rsd_integrations.prm.turns import AnswerTurn, chat_prompt
from rsd_integrations.types import Message

REQUEST = (
    "Rate the last paragraph of the answer above as one step of its reasoning. Is it correct, does it "
    "follow from what comes before, and does it bring the solution closer? Give one digit from 0 "
    "(wrong or useless) to 9 (certainly right and useful)."
)
LEAD = "Score: "


@register_prm_format
class JudgeFormat(PRMFormat):
    """A chat model is asked for a digit from 0 to 9; the reward is the expected digit / 9.

    The model sees the conversation under its chat template, the answer so far in the assistant's
    turn, and behind it, for the reading alone, a user turn with the request and the beginning of the
    verdict. The digits' logits are read at once, nothing is generated. Text in the answer cannot break
    out of its turn, but it can still sway the judge: prefer a PRM where that matters.

    Options: "request" (the user turn), "lead" (the beginning of the verdict).

    Source: SpecReason (arXiv 2504.07891), which accepts scores of 7 and more.
    """

    name: ClassVar[str] = "judge"
    head: ClassVar[Head] = "lm"
    threshold: ClassVar[float | None] = 0.7
    accepts: ClassVar[frozenset[str] | None] = frozenset({"request", "lead"})

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tokenizer, options)
        request: Message = {"role": "user", "content": str(self.options.get("request", REQUEST))}
        # The verdict must come at once, so templates that can leave thinking out are told to.
        self._turn = AnswerTurn(tokenizer, [request], add_generation_prompt=True, enable_thinking=False)
        lead, self._digits = _digits(tokenizer, self._turn.space + str(self.options.get("lead", LEAD)))
        self._probe = self._turn.tail + lead

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """Never: a PRM that looks like a chat model must not be asked for digits."""
        return False

    @property
    def columns(self) -> tuple[int, ...]:
        """The ids of the ten digits."""
        return self._digits

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The conversation, up to the answer."""
        return chat_prompt(self.tokenizer, messages, enable_thinking=False)

    def step(self, body: str, index: int) -> Feed:
        """The step, then the request for a verdict."""
        text = "\n\n" + body if index else body
        ids = self._turn.encode(text, first=index == 0) + self._probe
        return Feed(ids, read=len(ids) - 1, probe=len(self._probe))

    def reward(self, outputs: Sequence[float]) -> float:
        """The expected digit / 9."""
        expected = sum(digit * share for digit, share in enumerate(softmax(outputs)))
        return min(1.0, expected / 9)


def _digits(tokenizer: Any, lead: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the lead, and for each digit the one token that writes it after the lead.

    A space before a digit is a token of its own in some vocabularies and part of the digit's in
    others, so what the ten texts share is the lead.
    """
    texts = [encode_plain(tokenizer, f"{lead}{digit}") for digit in range(10)]
    shared = texts[0][:-1]
    if any(ids[:-1] != shared for ids in texts) or len({ids[-1] for ids in texts}) < 10:
        raise ModelError(
            f"the digits after {lead!r} are not one token each in this tokenizer.",
            hint='Choose another prm_format, or set "lead" in rsd_prm.',
        )
    return shared, tuple(ids[-1] for ids in texts)
