"""What a PRM format is: which tokens to feed for a prompt and a step, and how to read a reward.

A format knows a tokenizer and nothing of torch: the backend runs the model and hands over the few
numbers that the format asked for. Adding a PRM is one file: subclass ``PRMFormat``, decorate it
with ``register_prm_format``; in this package ``prm/__init__.py`` has to import that file.

Where a turn of the conversation goes is said in each format's docstring. Formats with chat templates
show the PRM all turns as their template renders them (as one user turn where it refuses them, see
``turns.chat_prompt``); those without show it ``turns.conversation_text``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal, TypeVar

from rsd_integrations.errors import ConfigError, ModelError
from rsd_integrations.prm.detection import label_count
from rsd_integrations.types import Message

Number = TypeVar("Number", int, float)

Head = Literal["lm", "token", "sequence", "value", "process_reward"]
"""Which outputs the model has at each position.

"lm": vocabulary logits (``AutoModelForCausalLM``). "token": label logits
(``AutoModelForTokenClassification``). "sequence": label logits of
``AutoModelForSequenceClassification``, whose score layer is applied at the position that is read.
"value": one number of a ``v_head`` (TRL's value-head models; in a folder its one layer is
``v_head.summary``, a loaded model may have any). "process_reward": two logits of the two-layer ``score``
of Qwen2ForProcessRewardModel.
"""


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens that follow what was fed before.

    ``ids``: the tokens. ``read``: index into ``ids`` of the position whose output gives the reward.
    ``probe``: how many of the last ids serve only to read the reward; they are rolled back
    afterwards, so that the next step follows ``ids[: len(ids) - probe]``.
    """

    ids: tuple[int, ...]
    read: int
    probe: int = 0

    def __post_init__(self) -> None:
        count = len(self.ids)
        if not 0 <= self.read < count or not 0 <= self.probe <= count:
            raise ValueError(f"read={self.read!r} or probe={self.probe!r} is not among its {count} ids")


class PRMFormat(ABC):
    """One way of asking a PRM for the reward of a step.

    Args:
        tokenizer: the PRM's own (a transformers tokenizer).
        options: the ``rsd_prm`` mapping of the model's config.json, if it has one: "format" and
            "threshold" (0 to 1), which all formats know, and what ``accepts`` names.

    Raises:
        ConfigError: an option is unknown or out of range.
        ModelError: the tokenizer lacks a token that the format needs.
    """

    name: ClassVar[str]
    """What users type as ``prm_format=``."""
    head: ClassVar[Head]
    threshold: ClassVar[float | None] = None
    """The threshold known to work for this format's scale; None where none is known."""
    accepts: ClassVar[frozenset[str] | None] = None
    """Options besides "format" and "threshold"; None: any."""
    labels: ClassVar[tuple[int, ...]] = ()
    """How many labels a model of this format may have by its config; (): any."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.options = dict(options or {})
        unknown = set(self.options) - {"format", "threshold"} - (self.accepts or frozenset())
        if self.accepts is not None and unknown:
            raise ConfigError(
                f"PRM format {self.name!r} has no option {sorted(unknown)[0]!r}.",
                hint=f"It takes: {', '.join(sorted({'threshold', *self.accepts}))}.",
            )
        threshold = self.options.get("threshold")
        if threshold is not None and not _is_threshold(threshold):
            raise ConfigError(
                f"the threshold of PRM format {self.name!r} is {threshold!r}.",
                hint="Write a number from 0 to 1 into rsd_prm of the model's config.json, or none.",
            )

    def _number(self, option: str, default: Number, *, zero: bool = True) -> Number:
        """An option's value as a number of its default's kind, which may be zero or not.

        Raises:
            ConfigError: it is none.
        """
        given = self.options.get(option, default)
        with suppress(TypeError, ValueError, OverflowError):
            number = type(default)(given)
            if isfinite(number) and (number or zero):
                return number
        raise self._unfit(option, default)

    def _unfit(self, option: str, default: Any) -> ConfigError:
        given = self.options.get(option, default)
        return ConfigError(
            f"the option {option!r} of PRM format {self.name!r} is {given!r:.80}.",
            hint=f"Write a number such as {default} into rsd_prm of the model's config.json, or none.",
        )

    @classmethod
    @abstractmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        """Whether a model with this transformers config and tokenizer is of this format."""

    def with_config(self, config: Any) -> PRMFormat:
        """This format for the model with this transformers config: itself, if that makes no difference.

        Raises:
            ModelError: the model has another number of labels.
        """
        count = label_count(config)
        if self.labels and count and count not in self.labels:
            raise ModelError(
                f"the PRM has {count} label{'s' if count > 1 else ''}, of which PRM format {self.name!r} can "
                f"make no reward: it reads {' or '.join(map(str, self.labels))}.",
                hint="Choose the prm_format that this PRM was trained for.",
            )
        return self

    @property
    def recommended_threshold(self) -> float | None:
        """The threshold that the model's own config names, or else the format's."""
        threshold = self.options.get("threshold")
        return self.threshold if threshold is None else float(threshold)

    @property
    def columns(self) -> tuple[int, ...] | None:
        """Indices of the outputs that ``reward`` wants, in its order; None for all of them.

        For "lm" heads these are token ids: only their logits leave the device.
        """
        return None

    @abstractmethod
    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the conversation up to the answer, whose steps will follow."""

    @abstractmethod
    def step(self, body: str, index: int) -> Feed:
        """Tokens of step number ``index`` (from 0), given that all earlier steps were fed."""

    @abstractmethod
    def reward(self, outputs: Sequence[float]) -> float:
        """The reward in [0, 1] from the model's raw outputs (logits) at the position read."""


def _is_threshold(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0
