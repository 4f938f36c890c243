"""The story of a generation as traces tell it: which spans open and close, and when a step is told.

Decided once, from the engine's events; an adapter turns it into its framework's runs or spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rsd_integrations.adapters.calls import CallSettings
from rsd_integrations.types import Step, StepEvent

Part = Literal["step", "draft", "score", "target"]


@dataclass(frozen=True)
class Opened:
    """A span begins below the innermost open one."""

    part: Part
    inputs: dict[str, Any]


@dataclass(frozen=True)
class Closed:
    """The innermost open span ends. ``step``: the step it was for, where it is a step's own span."""

    part: Part
    outputs: dict[str, Any]
    step: Step | None = None


@dataclass(frozen=True)
class Failed:
    """The innermost open span ends with an error."""

    part: Part
    error: BaseException


@dataclass(frozen=True)
class Told:
    """A step was committed; its own span is still open."""

    step: Step


Happening = Opened | Closed | Failed | Told


@dataclass
class Story:
    """The story of one generation.

    Args:
        call: the call's settings, with the threshold resolved; ``trace_steps`` says which spans there are.
    """

    call: CallSettings
    _open: list[Part] = field(default_factory=list)
    _index: int = 0

    def begin(self) -> Iterator[Happening]:
        """A step begins."""
        yield from self._start(
            "step", {"index": self._index, "threshold": self.call.config.threshold_in_force}
        )
        yield from self._start("target" if self.call.config.mode == "target" else "draft", {})

    def on(self, event: StepEvent) -> Iterator[Happening]:
        """What an event of the engine opens, closes or tells."""
        match event.type:
            case "proposed":
                # Which of several candidates is the step is known once all are scored.
                proposed = _others(event) or {"text": event.text}
                yield from self._end(proposed)
                if self.call.config.mode == "rsd":
                    yield from self._start("score", proposed)
            case "scored":
                yield from self._end(_verdict(event))
            case "rejected" if self.call.config.mode != "target":
                # The score span of a step without a reward (too long for the PRM) is still open here.
                yield from self._end({"reward": None}, "score")
                yield from self._start("target", {"rejected_text": event.text})
            case "committed" if event.step is not None:
                yield from self._committed(event.step, final=event.final)
            case "finished" if event.generation is not None:
                while self._open:
                    yield Closed(self._open.pop(), {"finish_reason": event.generation.finish_reason})

    def fail(self, error: BaseException) -> Iterator[Happening]:
        """The generation failed or was abandoned: no span stays open."""
        while self._open:
            yield Failed(self._open.pop(), error)

    def _committed(self, step: Step, *, final: bool) -> Iterator[Happening]:
        yield from self._end({"text": step.text}, "target")
        yield Told(step)
        outputs = step.model_dump(mode="json") | {"threshold": self.call.config.threshold_in_force}
        while self._open:
            yield Closed(self._open.pop(), outputs, step)
        self._index += 1
        if not final:
            yield from self.begin()

    def _start(self, part: Part, inputs: dict[str, Any]) -> Iterator[Happening]:
        level = self.call.trace_steps
        if level == "full" or (level == "steps" and part == "step"):
            self._open.append(part)
            yield Opened(part, inputs)

    def _end(self, outputs: dict[str, Any], part: Part | None = None) -> Iterator[Happening]:
        """Close the innermost span, if it is a part of the step (and, if one is named, that part)."""
        innermost = self._open[-1] if self._open else "step"
        if innermost != "step" and part in (None, innermost):
            yield Closed(self._open.pop(), outputs)


def _others(event: StepEvent) -> dict[str, Any]:
    """All candidates, where there are several."""
    return {"candidates": [one.model_dump() for one in event.candidates]} if event.candidates else {}


def _verdict(event: StepEvent) -> dict[str, Any]:
    others = _others(event)
    best = {"text": event.text} if others else {}
    return {
        **others,
        **best,
        "reward": event.reward,
        "threshold": event.threshold,
        "acceptance_probability": event.acceptance_probability,
    }
