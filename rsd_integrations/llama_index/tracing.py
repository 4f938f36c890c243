"""Steps told to LlamaIndex: spans and events of its instrumentation, attributes of OpenTelemetry spans.

All of it happens in a copy of the context the model was called in. There the model's own span is the current
one, also while a stream is read elsewhere, long after LlamaIndex has ended that span.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from llama_index.core.workflow import Context
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags
from llama_index_instrumentation.span import active_span_id
from workflows.errors import WorkflowRuntimeError

from rsd_integrations.adapters.calls import CallSettings
from rsd_integrations.adapters.steps import notify
from rsd_integrations.adapters.story import Closed, Failed, Happening, Opened, Part, Story, Told
from rsd_integrations.llama_index.events import instrumentation_event, workflow_event
from rsd_integrations.types import Step

_dispatcher = get_dispatcher(__name__)

_WORDS = frozenset({"source", "finish_reason"})
"""Strings that are none of a prompt's or an answer's."""

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Made = TypeVar("Made")


def typed(decorator: Callable[..., Any]) -> Callable[[Decorated], Decorated]:
    """A decorator of LlamaIndex's, typed as keeping what it decorates: its own result is ``Any``."""
    return decorator


@dataclass(frozen=True)
class _Span:
    """A span that is open, and its OpenTelemetry one if a handler made that."""

    id: str
    bound: inspect.BoundArguments
    otel: Any


class StepSpans:
    """Tells LlamaIndex of one generation (a ``Teller``).

    Args:
        call: the call's settings, with the threshold resolved.
        context: a copy of the context the model was called in.
        to_workflow: whether a workflow that makes the call gets the steps in its event stream.
    """

    def __init__(self, call: CallSettings, context: contextvars.Context, *, to_workflow: bool) -> None:
        self.story = Story(call)
        self._threshold = call.config.threshold_in_force
        self._context = context
        self._open: list[_Span] = []
        self._parent = context.get(active_span_id)
        writer = context.run(_workflow_writer, self._threshold) if to_workflow else None
        self._listeners = (call.on_step, writer)

    def ask(self, request: Callable[[], Made]) -> Made:
        """Make the request where the model's own span is the current one."""
        return self._context.run(request)

    def tell(self, happenings: Iterable[Happening]) -> None:
        """Open and close spans, emit events."""
        for happening in happenings:
            self._context.run(self._one, happening)
            if isinstance(happening, Told):
                notify(self._listeners, happening.step)

    async def atell(self, happenings: Iterable[Happening]) -> None:
        """The same: LlamaIndex's handlers are synchronous."""
        self.tell(happenings)

    def _one(self, happening: Happening) -> None:
        match happening:
            case Opened(part, inputs):
                self._enter(part, inputs)
            case Closed(_, outputs, step):
                span = self._leave()
                _mark(span.otel, outputs)
                _dispatcher.span_exit(span.id, span.bound, result=outputs if step is None else step)
            case Failed(_, error):
                span = self._leave()
                _dispatcher.span_drop(span.id, span.bound, err=error)
            case Told(step):
                _dispatcher.event(instrumentation_event(step, self._threshold, self._current))

    @property
    def _current(self) -> str | None:
        return self._open[-1].id if self._open else self._parent

    def _enter(self, part: Part, inputs: Mapping[str, Any]) -> None:
        names = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in inputs]
        bound = inspect.Signature(names).bind(**inputs)
        span_id, tags, outer = f"rsd_{part}-{uuid4()}", dict(active_instrument_tags.get()), _otel_span()
        _dispatcher.span_enter(span_id, bound, parent_id=self._current, tags=tags)
        # Unless a handler made an OpenTelemetry span of this one, the current one is somebody else's.
        own = _otel_span()
        self._open.append(_Span(span_id, bound, None if own is outer else own))
        active_span_id.set(span_id)
        _mark(self._open[-1].otel, inputs)

    def _leave(self) -> _Span:
        span = self._open.pop()
        active_span_id.set(self._current)
        return span


def _otel_span() -> Any:
    """The current OpenTelemetry span, where that is in use."""
    otel = sys.modules.get("opentelemetry.trace")
    return None if otel is None else otel.get_current_span()


def _mark(span: Any, values: Mapping[str, Any]) -> None:
    """Write values on an OpenTelemetry span, as ``rsd.*`` attributes. Texts are among the span's inputs and
    outputs: who hides these (openinference) would not find them under names of ours.
    """
    for name, value in values.items():
        if span is not None and (isinstance(value, int | float) or name in _WORDS):
            span.set_attribute(f"rsd.{name}", value)


def _workflow_writer(threshold: float | None) -> Callable[[Step], object] | None:
    """Writes steps into the event stream of the workflow whose step makes the call; None if none does."""
    try:
        context: Context[Any] = Context.get_step_context()
        asyncio.get_running_loop()
    except (WorkflowRuntimeError, RuntimeError):  # No workflow; or a thread other than its loop's.
        return None
    return lambda step: context.write_event_to_stream(workflow_event(step, threshold))
