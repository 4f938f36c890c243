"""What a step is to LlamaIndex: instrumentation events, and an event of workflow streams."""

from __future__ import annotations

from typing import Any

from llama_index.core.workflow import Event
from llama_index_instrumentation.base import BaseEvent

from rsd_integrations.adapters.steps import ACCEPTED, step_event
from rsd_integrations.types import Step


class RSDStepEvent(BaseEvent):
    """A step was committed. The fields are the threshold and those of ``rsd_integrations.Step``, except
    ``accepted``, which the class of the event says.
    """

    index: int
    source: str
    reward: float | None
    threshold: float | None
    acceptance_probability: float
    text: str
    rejected_text: str | None
    candidates: list[dict[str, Any]]
    draft_tokens: int
    target_tokens: int
    scored_tokens: int
    draft_ms: float
    score_ms: float
    target_ms: float

    @classmethod
    def class_name(cls) -> str:
        """Its name in traces."""
        return cls.__name__


class RSDStepAcceptedEvent(RSDStepEvent):
    """The draft's step was kept."""


class RSDStepRejectedEvent(RSDStepEvent):
    """The step is the target's: the draft's was rejected, or no draft ran (target only)."""


class RSDWorkflowEvent(Event):
    """A committed step in the event stream of a workflow or an agent."""

    name: str
    """"rsd_step_accepted" or "rsd_step_rejected"."""
    data: dict[str, Any]
    """The threshold and the step, except ``accepted``; of JSON types only."""


def instrumentation_event(step: Step, threshold: float | None, span_id: str | None) -> RSDStepEvent:
    """The event of a step, in a span."""
    name, data = step_event(step, threshold)
    kind = RSDStepAcceptedEvent if name == ACCEPTED else RSDStepRejectedEvent
    return kind(span_id=span_id, **data)


def workflow_event(step: Step, threshold: float | None) -> RSDWorkflowEvent:
    """The same for a workflow's stream."""
    name, data = step_event(step, threshold)
    return RSDWorkflowEvent(name=name, data=data)
