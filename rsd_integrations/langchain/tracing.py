"""Steps told to a run's callback handlers: custom events, and child runs for tracers.

What to tell is decided once, as a series of handler calls, which ``tell`` makes and ``atell`` awaits.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    FileCallbackHandler,
    StdOutCallbackHandler,
)
from langchain_core.callbacks.manager import BaseRunManager, ahandle_event, handle_event
from langchain_core.language_models.base import BaseLanguageModel
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer
from langchain_core.utils.uuid import uuid7

from rsd_integrations.adapters.calls import CallSettings
from rsd_integrations.adapters.steps import notify, step_event
from rsd_integrations.adapters.story import Closed, Failed, Happening, Opened, Story, Told
from rsd_integrations.types import Step

Handlers: TypeAlias = "list[BaseCallbackHandler]"
Made = TypeVar("Made")

try:
    from langchain_core.tracers import _streaming

    _SHOWING: tuple[type, ...] = (
        FileCallbackHandler,
        StdOutCallbackHandler,
        _streaming._StreamingCallbackHandler,
        _streaming._V2StreamingCallbackHandler,
    )
except (ImportError, AttributeError):  # The last two are no public part of LangChain.
    _SHOWING = (FileCallbackHandler, StdOutCallbackHandler)

_running: ContextVar[BaseRunManager | None] = ContextVar("rsd_running", default=None)


@contextmanager
def running(run: BaseRunManager | None) -> Iterator[None]:
    """Leave a run for ``_stream`` to find: LangChain does not pass it there."""
    token = _running.set(run)
    try:
        yield
    finally:
        _running.reset(token)


@asynccontextmanager
async def arunning(run: AsyncCallbackManagerForLLMRun | None) -> AsyncIterator[None]:
    """``running`` for asyncio. It ends a run that is cancelled, which LangChain would leave open for ever."""
    with running(run):
        try:
            yield
        except asyncio.CancelledError as error:
            if run is not None:
                await run.on_llm_error(error, response=LLMResult(generations=[]))
            raise


def take_running() -> BaseRunManager | None:
    """The run that ``running`` left; a second call gives None."""
    run = _running.get()
    _running.set(None)
    return run


def announced(
    model: BaseLanguageModel[Any],
    config: RunnableConfig | None,
    managers: type[CallbackManager | AsyncCallbackManager],
) -> tuple[RunnableConfig, BaseRunManager]:
    """A config, and the run that LangChain will start with it: its id and handlers are chosen here."""
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
        tags=manager.tags,
        inheritable_tags=manager.inheritable_tags,
        metadata=manager.metadata,
        inheritable_metadata=manager.inheritable_metadata,
    )
    return {**config, "callbacks": manager, "run_id": run_id}, run


@dataclass(frozen=True)
class HandlerCall:
    """A callback that is to be made on some handlers."""

    handlers: Handlers
    event: str
    ignored_by: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class StepReporter:
    """Tells a run's handlers of the generation (a ``Teller``).

    Args:
        run: the model's run; without one only ``on_step`` and langgraph are told.
        call: the call's settings, with the threshold resolved.
        models: name of each role's model.
    """

    def __init__(self, run: BaseRunManager | None, call: CallSettings, models: dict[str, str]) -> None:
        self._run = run
        self._threshold = call.config.threshold_in_force
        self._models = models
        self._tracers = [] if run is None else _tracers(run)
        self.story = Story(call if self._tracers else replace(call, trace_steps="off"))
        self._open: list[UUID] = []
        self._listeners = (call.on_step, _graph_writer(self._threshold))

    def ask(self, request: Callable[[], Made]) -> Made:
        """Make the request. What a judge writes is no part of the answer: langgraph will not stream it."""
        config = var_child_runnable_config.get()
        if config is None:
            return request()
        tags = [*(config.get("tags") or ()), "nostream"]
        token = var_child_runnable_config.set({**config, "tags": tags})
        try:
            return request()
        finally:
            var_child_runnable_config.reset(token)

    def tell(self, happenings: Iterable[Happening]) -> None:
        """Call the handlers."""
        for call in self._calls(happenings):
            handle_event(call.handlers, call.event, call.ignored_by, *call.args, **call.kwargs)

    async def atell(self, happenings: Iterable[Happening]) -> None:
        """Call the handlers on the running loop."""
        for call in self._calls(happenings):
            await ahandle_event(call.handlers, call.event, call.ignored_by, *call.args, **call.kwargs)

    def _calls(self, happenings: Iterable[Happening]) -> Iterator[HandlerCall]:
        for happening in happenings:
            match happening:
                case Opened(part, inputs):
                    yield self._opening(f"rsd.{part}", inputs)
                case Closed(_, outputs):
                    yield self._closing("on_chain_end", outputs)
                case Failed(_, error):
                    yield self._closing("on_chain_error", error)
                case Told(step):
                    yield from self._telling(step)

    def _telling(self, step: Step) -> Iterator[HandlerCall]:
        if self._run is not None:
            facts = {"run_id": self._run.run_id, "tags": self._run.tags, "metadata": self._run.metadata}
            args = step_event(step, self._threshold)
            yield HandlerCall(self._run.handlers, "on_custom_event", "ignore_custom_event", args, facts)
        notify(self._listeners, step)

    def _opening(self, name: str, inputs: dict[str, Any]) -> HandlerCall:
        assert self._run is not None
        ids = {"run_id": uuid7(), "parent_run_id": self._open[-1] if self._open else self._run.run_id}
        self._open.append(ids["run_id"])
        # LangSmith would count a child run with ls_* metadata as another model call.
        inherited = {
            key: value for key, value in self._run.inheritable_metadata.items() if not key.startswith("ls_")
        }
        own = {f"rsd_{role}_model": model for role, model in self._models.items()}
        metadata = {**inherited, **own, "rsd_threshold": self._threshold}
        facts = {**ids, "tags": list(self._run.inheritable_tags), "metadata": metadata, "name": name}
        # Chains of today have nothing serialized, but some handlers (ragas) look for its name.
        told = ({"name": name}, inputs)
        return HandlerCall(self._tracers, "on_chain_start", "ignore_chain", told, facts)

    def _closing(self, event: str, what: Any) -> HandlerCall:
        assert self._run is not None
        run_id = self._open.pop()
        ids = {"run_id": run_id, "parent_run_id": self._open[-1] if self._open else self._run.run_id}
        return HandlerCall(self._tracers, event, "ignore_chain", (what,), ids)


def _tracers(run: BaseRunManager) -> Handlers:
    """The handlers that are told of child runs: inheritable ones, and tracers of this model alone.

    Not those that stream a model's output or print it: they would show each step as a chain of its own.
    """
    inheriting = set(map(id, run.inheritable_handlers))
    return [
        handler
        for handler in run.handlers
        if (id(handler) in inheriting or isinstance(handler, BaseTracer | AsyncBaseTracer))
        and not isinstance(handler, _SHOWING)
    ]


def _graph_writer(threshold: float | None) -> Callable[[Step], object] | None:
    """Writes steps into langgraph's ``stream_mode="custom"``; None outside of a graph's node."""
    if "langgraph.pregel" not in sys.modules:
        return None
    from langgraph.config import get_stream_writer

    try:
        writer = get_stream_writer()
    except (RuntimeError, KeyError):  # No config here; or a config, but no graph's.
        return None

    def write(step: Step) -> None:
        name, data = step_event(step, threshold)
        writer({"event": name, "data": data})

    return write
