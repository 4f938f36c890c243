"""A tree of spans, whoever recorded them: (name, children) all the way down."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler

KEPT = ("rsd_step", [("rsd_draft", []), ("rsd_score", [])])
REWRITTEN = ("rsd_step", [("rsd_draft", []), ("rsd_score", []), ("rsd_target", [])])
STEPS = [KEPT, REWRITTEN, KEPT]


@dataclass
class Recorded:
    """One span of LlamaIndex's own."""

    id: str
    parent: str | None
    inputs: dict[str, Any]
    result: Any = None
    error: BaseException | None = None
    open: bool = True

    @property
    def name(self) -> str:
        return self.id.partition("-")[0]


@dataclass
class Record:
    """All of them, and all events."""

    spans: dict[str, Recorded] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)

    def named(self, name: str) -> list[Recorded]:
        return [span for span in self.spans.values() if span.name == name]

    def tree(self, span: Recorded) -> Any:
        return span.name, [self.tree(child) for child in self.spans.values() if child.parent == span.id]

    @property
    def roots(self) -> list[Any]:
        return [self.tree(span) for span in self.spans.values() if span.parent not in self.spans]

    def steps_below(self, name: str) -> list[Any]:
        """The steps under the only span of this name."""
        (span,) = self.named(name)
        return [child for child in self.tree(span)[1] if child[0] == "rsd_step"]


class _Spans(BaseSpanHandler[BaseSpan]):
    record: Any = None

    def new_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        parent_span_id: str | None = None,
        tags: Any = None,
        **kwargs: Any,
    ) -> BaseSpan:
        self.record.spans[id_] = Recorded(id_, parent_span_id, dict(bound_args.arguments))
        return BaseSpan(id_=id_, parent_id=parent_span_id)

    def prepare_to_exit_span(self, id_: str, *args: Any, result: Any = None, **kwargs: Any) -> BaseSpan:
        self.record.spans[id_].open = False
        self.record.spans[id_].result = result
        return BaseSpan(id_=id_)

    def prepare_to_drop_span(
        self, id_: str, *args: Any, err: BaseException | None = None, **kwargs: Any
    ) -> BaseSpan:
        self.record.spans[id_].open = False
        self.record.spans[id_].error = err
        return BaseSpan(id_=id_)


class _Events(BaseEventHandler):
    record: Any

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.record.events.append(event)


@contextmanager
def recording() -> Iterator[Record]:
    """Record what LlamaIndex's root dispatcher is told."""
    record, root = Record(), get_dispatcher()
    handler = _Spans()
    handler.record = record
    spans, events = list(root.span_handlers), list(root.event_handlers)
    root.span_handlers = [*spans, handler]
    root.event_handlers = [*events, _Events(record=record)]
    try:
        yield record
    finally:
        root.span_handlers, root.event_handlers = spans, events


def otel_tree(spans: Any, root: Any = None) -> list[Any]:
    """The same of finished OpenTelemetry spans, in the order they began."""
    below = [
        span
        for span in spans
        if (span.parent.span_id if span.parent else None) == (root.context.span_id if root else None)
    ]
    below.sort(key=lambda span: span.start_time)
    return [(span.name, otel_tree(spans, span)) for span in below]


def find(tree: list[Any], name: str) -> list[Any]:
    """The subtrees of this name."""
    return [found for node in tree for found in ([node] if node[0] == name else []) + find(node[1], name)]
