"""Reads committed steps: which of their text is answer, which is thinking, which is a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError
from rsd_integrations.output import Output
from rsd_integrations.protocols import Written
from rsd_integrations.text.calls import CallReader
from rsd_integrations.text.segment import CallSplitter, HoldBack, Unbroken
from rsd_integrations.text.thoughts import ReasoningSplitter, ReasoningTags
from rsd_integrations.types import FinishReason, InvalidToolCall, Role, Step, ToolCall


@dataclass(slots=True)
class Outcome:
    """How the answer turned out. ``delta``, ``reasoning_delta`` and ``late_calls``: what was held back until
    its end, and is in no event yet.
    """

    finish_reason: FinishReason = "stop"
    text: str = ""
    reasoning: str | None = None
    delta: str = ""
    reasoning_delta: str = ""
    late_calls: list[ToolCall | InvalidToolCall] = field(default_factory=list)
    calls: list[ToolCall | InvalidToolCall] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    completion_tokens: int = 0
    draft_generated: int = 0
    draft_discarded: int = 0
    target_generated: int = 0
    scored: int = 0
    scored_discarded: int = 0


def check_thoughts(tags: Mapping[Role, ReasoningTags | None]) -> None:
    """Refuse models that could not continue each other's text: one begins its answer in the middle of its
    thinking and the other does not, or they mark thinking in different ways.

    Raises:
        ConfigError: they differ in this.
    """
    opened = [role for role, found in tags.items() if found is not None and found.open_in_prompt]
    if opened and len(opened) < len(tags):
        others = " and ".join(role for role in tags if role not in opened)
        raise ConfigError(
            f"the prompt of the {opened[0]} ends within its thinking, that of the {others} does not: they "
            "could not continue each other's text.",
            hint="Take two models that think alike, give both tokenizers one chat_template, or set "
            "chat_template_kwargs.",
        )
    marks = {role: (found.opening, found.closing) for role, found in tags.items() if found is not None}
    if len({*marks.values()}) > 1:
        told = " and ".join(f"the {role} {''.join(mark)!r}" for role, mark in marks.items())
        raise ConfigError(
            f"the models mark their thinking in different ways: {told}. They could not continue each other's "
            "text.",
            hint="Take two models that think alike, or give one a chat_template without such marks.",
        )


class Reading:
    """Sorts committed text into what may be shown, what is thought and what is called."""

    def __init__(
        self, config: RSDConfig, tags: ReasoningTags | None, output: Output, reader: CallReader | None
    ) -> None:
        self._held = HoldBack(tuple(config.stop))
        self._splitter = ReasoningSplitter(tags)
        self._reader = reader if output.tools else None
        self._calls = CallSplitter(self._reader.unbroken) if self._reader else None
        self.single = bool(output.tools) and not output.parallel
        self.unbroken = self._reader.unbroken if self._reader else None
        if output.schema is not None:
            # A document fills the answer, behind the thinking if there is any.
            self.unbroken = Unbroken()
            if tags is not None:
                self.unbroken = Unbroken(tags.closing, behind="" if tags.open_in_prompt else tags.opening)
        self.outcome = Outcome()

    def push(self, written: Written) -> tuple[str, str, list[ToolCall | InvalidToolCall]]:
        """Take a committed step, return the (answer, reasoning, calls) that became certain."""
        held = self._held
        text = held.push(written.text) if written.cut is None else held.finish(written.text, written.cut)
        return self._read(text)

    def finish(self) -> None:
        """Release what was held back into ``outcome``."""
        outcome = self.outcome
        outcome.delta, outcome.reasoning_delta, outcome.late_calls = self._read(
            self._held.finish(), final=True
        )
        if not self._splitter.seen_reasoning:
            outcome.reasoning = None

    def _read(self, text: str, *, final: bool = False) -> tuple[str, str, list[ToolCall | InvalidToolCall]]:
        delta, reasoning = self._splitter.push(text, final=final)
        found: list[ToolCall | InvalidToolCall] = []
        if self._calls is not None and self._reader is not None:
            delta, texts = self._calls.push(delta, final=final)
            for call in texts:
                read = self._reader.read(call)
                delta += call if read is None else ""
                found += read or ()
        if self.single:  # One call in all, even if the model wrote a list of them.
            found = found[: 1 - len(self.outcome.calls)]
        self.outcome.text += delta
        self.outcome.reasoning = (self.outcome.reasoning or "") + reasoning
        self.outcome.calls += found
        return delta, reasoning, found
