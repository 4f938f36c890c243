"""Steps told to a run's callback handlers: custom events, and child runs for tracers.

What to tell is decided once, as a list of handler calls; a sync and an async carrier make them.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.callbacks.manager import BaseRunManager, ahandle_event, handle_event
from langchain_core.language_models.base import BaseLanguageModel
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.tracers._streaming import _StreamingCallbackHandler, _V2StreamingCallbackHandler
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer
from langchain_core.utils.uuid import uuid7

from rsd_integrations.adapters.calls import CallSettings
from rsd_integrations.adapters.steps import notify, step_event
from rsd_integrations.engine.streams import AsyncEventStream, EventStream
from rsd_integrations.types import Step, StepEvent

__all__ = ["HandlerCall", "StepReporter", "announced", "atold", "running", "take_running", "told"]

Handlers: TypeAlias = "list[BaseCallbackHandler]"

_STREAMING = (_StreamingCallbackHandler, _V2StreamingCallbackHandler)

_running: ContextVar[BaseRunManager | None] = ContextVar("rsd_running", default=None)


@contextmanager
def running(run: BaseRunManager | None) -> Iterator[None]:
    """Leave a run for ``_stream`` to find: LangChain does not pass it there."""
    token = _running.set(run)
    try:
        yield
    finally:
        _running.reset(token)


def take_running() -> BaseRunManager | None:
    """The run that was left, once."""
    run = _running.get()
    _running.set(None)
    return run


def announced(
    model: BaseLanguageModel[Any],
    config: RunnableConfig | None,
    managers: type[CallbackManager | AsyncCallbackManager],
) -> tuple[RunnableConfig, BaseRunManager]:
    """A config whose run is known before LangChain starts it: its id and its handlers."""
    config = ensure_config(config)
    manager = managers.configure(
        config.get("callbacks"),
        model.callbacks,
        model.verbose,
        config.get("tags"),
        model.tags,
        config.get("metadata"),
        model.metadata,
    )
    run_id = config.get("run_id") or uuid7()
    run = BaseRunManager(
        run_id=run_id,
        handlers=manager.handlers,
        inheritable_handlers=manager.inheritable_handlers,
        parent_run_id=manager.parent_run_id,
        tags=manager.tags,
        inheritable_tags=manager.inheritable_tags,
        metadata=manager.metadata,
        inheritable_metadata=manager.inheritable_metadata,
    )
    return {**config, "callbacks": manager, "run_id": run_id}, run


@dataclass(frozen=True)
class HandlerCall:
    """One callback for some handlers."""

    handlers: Handlers
    event: str
    ignored_by: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Child:
    """A run that was started and not yet ended."""

    name: str
    run_id: UUID
    parent_run_id: UUID


@dataclass
class StepReporter:
    """Turns the events of one generation into calls of its run's handlers.

    Args:
        run: the model's run; without one only ``on_step`` and langgraph are told.
        call: the call's settings, the threshold resolved.
        models: name of each role's model.
    """

    run: BaseRunManager | None
    call: CallSettings
    models: dict[str, str]
    _open: list[_Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._index = 0
        self._threshold = self.call.config.threshold
        self._tracers = [] if self.run is None or self.call.trace_steps == "off" else _tracers(self.run)
        found = (self.call.on_step, _graph_writer(self._threshold))
        self._listeners: list[Callable[[Step], object]] = [listener for listener in found if listener]

    def begin(self) -> Iterator[HandlerCall]:
        """A step begins."""
        yield from self._start("rsd.step", {"index": self._index, "threshold": self._threshold})
        if self.call.config.mode == "target":
            yield from self._start("rsd.target", {})
        else:
            yield from self._start("rsd.draft", {})

    def on(self, event: StepEvent) -> Iterator[HandlerCall]:
        """Something happened."""
        match event.type:
            case "proposed":
                yield from self._end({"text": event.text})
                if self.call.config.mode == "rsd":
                    yield from self._start("rsd.score", {"text": event.text})
            case "scored":
                yield from self._end(_verdict(event))
            case "rejected" if self.call.config.mode != "target":
                # A step without a reward (too long for the PRM) is still being scored here.
                yield from self._end({"reward": None}, "rsd.score")
                yield from self._start("rsd.target", {"rejected_text": event.text})
            case "committed" if event.step is not None:
                yield from self._committed(event.step, final=event.final)
            case "finished" if event.generation is not None:
                yield from self._end_all({"finish_reason": event.generation.finish_reason})

    def fail(self, error: BaseException) -> Iterator[HandlerCall]:
        """The generation failed or was abandoned: no run stays open."""
        while self._open:
            yield self._closing("on_chain_error", error)

    def _committed(self, step: Step, *, final: bool) -> Iterator[HandlerCall]:
        yield from self._end({"text": step.text}, "rsd.target")
        name, data = step_event(step, self._threshold)
        if self.run is not None:
            facts = {"run_id": self.run.run_id, "tags": self.run.tags, "metadata": self.run.metadata}
            yield HandlerCall(
                self.run.handlers, "on_custom_event", "ignore_custom_event", (name, data), facts
            )
        notify(self._listeners, step)
        yield from self._end_all({"accepted": step.accepted, **data})
        self._index += 1
        if not final:
            yield from self.begin()

    def _start(self, name: str, inputs: dict[str, Any]) -> Iterator[HandlerCall]:
        if self.run is None or not self._tracers or (self.call.trace_steps == "steps" and name != "rsd.step"):
            return
        parent = self._open[-1].run_id if self._open else self.run.run_id
        child = _Child(name, uuid7(), parent)
        self._open.append(child)
        facts = {**_ids(child), "tags": list(self.run.inheritable_tags), "metadata": self._metadata(name)}
        yield HandlerCall(
            self._tracers, "on_chain_start", "ignore_chain", (None, inputs), {**facts, "name": name}
        )

    def _end(self, outputs: dict[str, Any], name: str | None = None) -> Iterator[HandlerCall]:
        """End the part of the step that is open, if it is (``name``d so)."""
        innermost = self._open[-1].name if self._open else "rsd.step"
        if innermost != "rsd.step" and name in (None, innermost):
            yield self._closing("on_chain_end", outputs)

    def _end_all(self, outputs: dict[str, Any]) -> Iterator[HandlerCall]:
        while self._open:
            yield self._closing("on_chain_end", outputs)

    def _closing(self, event: str, what: Any) -> HandlerCall:
        return HandlerCall(self._tracers, event, "ignore_chain", (what,), _ids(self._open.pop()))

    def _metadata(self, name: str) -> dict[str, Any]:
        assert self.run is not None
        # LangSmith reads ls_* of a child as another model call, and counts it.
        inherited = {
            key: value for key, value in self.run.inheritable_metadata.items() if not key.startswith("ls_")
        }
        own = {f"rsd_{role}_model": model for role, model in self.models.items()}
        return {**inherited, **own, "rsd_threshold": self._threshold}


def told(stream: EventStream, reporter: StepReporter) -> Iterator[StepEvent]:
    """The stream's events, each told to the handlers before it is given out. Closes the stream."""
    try:
        _tell(reporter.begin())
        for event in stream:
            _tell(reporter.on(event))
            yield event
    except BaseException as error:
        stream.close()
        _tell(reporter.fail(error))
        raise


async def atold(stream: AsyncEventStream, reporter: StepReporter) -> AsyncGenerator[StepEvent, None]:
    """The same for asyncio; handlers are called on the running loop."""
    try:
        await _atell(reporter.begin())
        async for event in stream:
            await _atell(reporter.on(event))
            yield event
    except BaseException as error:
        await stream.aclose()
        await _atell(reporter.fail(error))
        raise


def _tell(calls: Iterable[HandlerCall]) -> None:
    for call in calls:
        handle_event(call.handlers, call.event, call.ignored_by, *call.args, **call.kwargs)


async def _atell(calls: Iterable[HandlerCall]) -> None:
    for call in calls:
        await ahandle_event(call.handlers, call.event, call.ignored_by, *call.args, **call.kwargs)


def _tracers(run: BaseRunManager) -> Handlers:
    """Who is told of child runs: whoever inherits, and tracers of this model alone.

    Not those who stream a model's output: they would show each step as a chain of its own.
    """
    inheriting = set(map(id, run.inheritable_handlers))
    return [
        handler
        for handler in run.handlers
        if (id(handler) in inheriting or isinstance(handler, BaseTracer | AsyncBaseTracer))
        and not isinstance(handler, _STREAMING)
    ]


def _graph_writer(threshold: float | None) -> Callable[[Step], object] | None:
    """Into langgraph's ``stream_mode="custom"``, when called from a graph's node."""
    if "langgraph.pregel" not in sys.modules:
        return None
    from langgraph.config import get_stream_writer

    try:
        writer = get_stream_writer()
    except (RuntimeError, KeyError):  # There is no config here; there is one, but of no graph.
        return None

    def write(step: Step) -> None:
        name, data = step_event(step, threshold)
        writer({"event": name, "data": data})

    return write


def _verdict(event: StepEvent) -> dict[str, Any]:
    return {
        "reward": event.reward,
        "threshold": event.threshold,
        "acceptance_probability": event.acceptance_probability,
    }


def _ids(child: _Child) -> dict[str, Any]:
    return {"run_id": child.run_id, "parent_run_id": child.parent_run_id}
