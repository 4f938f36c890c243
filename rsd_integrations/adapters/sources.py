"""One pipeline for everybody who names the same models, loaded when it is first needed."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import traceback
import uuid
import weakref
from collections.abc import Hashable, Iterable
from functools import partial
from typing import Any

from rsd_integrations.adapters.secrets import has_secrets, hidden, revealed
from rsd_integrations.adapters.sharing import is_served, source_key
from rsd_integrations.adapters.specs import (
    LIVE,
    Spec,
    check_pickles,
    is_live,
    is_portable,
    named_models,
    signature,
)
from rsd_integrations.adapters.windows import known_window
from rsd_integrations.engine.streams import running_loop
from rsd_integrations.errors import ConfigError
from rsd_integrations.opening import check_tools, open_models
from rsd_integrations.output import Output
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import Role
from rsd_integrations.waiting import Told, ending_with_python, wait_for_result


class PipelineSource:
    """A pipeline that is loaded once, by whoever asks first.

    Args:
        spec: what to load.
        key: by which it is shared.
    """

    def __init__(self, spec: Spec, key: Hashable = None) -> None:
        self.spec, self._key = hidden(spec), key
        given = self.spec.get("pipeline")
        self._pipeline: RSDPipeline | None = given if isinstance(given, RSDPipeline) else None
        self.unlock()
        self.name = repr(signature(self.spec)) if is_portable(spec) else live_name(self._pipeline or self)
        """Equal for sources that load the same: for caches, and to find live ones by."""
        self._takes_tools: bool | None = None
        self._windows: dict[Role, int | None] = {}

    def unlock(self) -> None:
        """Forget who was loading: in a forked process nobody is."""
        self._lock = threading.Lock()
        self._loading: Told[None] | None = None
        """Done when the pipeline is there, or whoever loads it gave up; fails if loading fails."""
        self._unwanted = False
        """Whether it was closed while it was loading."""

    @property
    def loaded(self) -> RSDPipeline | None:
        """The pipeline, if it is there already."""
        return self._pipeline

    def get(self) -> RSDPipeline:
        """The pipeline. A load that failed is tried again by the next call.

        Raises:
            RSDError: a model cannot be loaded or cannot play its role.
        """
        while self._pipeline is None:
            load, mine = self._join()
            try:
                if mine:
                    self._carry_out()
                else:
                    wait_for_result(load)
            finally:
                del load  # An error in it would hold this frame, and a device's memory with it.
        return self._pipeline

    async def aget(self) -> RSDPipeline:
        """The same without blocking the loop. However many wait, one thread loads. It ends with the load,
        because torch keeps helper threads for each. Loading goes on if whoever asked first is cancelled.

        Raises:
            StreamError: no event loop of asyncio is running here.
        """
        while self._pipeline is None:
            loop = running_loop()
            load, mine = self._join()
            if mine:
                self._begin_apart()
            await asyncio.wrap_future(load, loop=loop)
        return self._pipeline

    def _join(self) -> tuple[Told[None], bool]:
        """The load in progress, and whether the caller has to carry it out, as nobody else does."""
        with self._lock:
            mine = self._loading is None
            if self._loading is None:
                self._loading = Told()
                self._loading.set_running_or_notify_cancel()  # From here on nobody can cancel it.
            return self._loading, mine

    def _begin_apart(self) -> None:
        run = partial(contextvars.copy_context().run, self._carry_out, apart=True)
        # A daemon, or the interpreter could not end before the load does; it is told to, instead.
        thread = threading.Thread(target=ending_with_python(run), name="rsd-load", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # There are too many threads, or the interpreter ends.
            self._settle(error)

    def _carry_out(self, *, apart: bool = False) -> None:
        """Load, and tell whoever waits. In the thread of a caller (not ``apart``) errors are raised as well;
        an interrupt is that caller's alone, and the others ask again.
        """
        try:
            if self._pipeline is None:  # Else it was loaded since the caller looked.
                self._loaded(_load(revealed(self.spec)))
        except BaseException as error:
            if apart:
                traceback.clear_frames(error.__traceback__)  # The future would keep what was loaded so far.
            self._settle(error if apart or isinstance(error, Exception) else None)
            if not apart:
                raise
        else:
            self._settle(None)

    def _settle(self, failed: BaseException | None) -> None:
        with self._lock:
            load, self._loading, self._unwanted = self._loading, None, False
        if load is None:
            return  # Forgotten by ``unlock``.
        if failed is None:
            load.set_result(None)
        else:
            load.set_exception(failed)

    def _loaded(self, pipeline: RSDPipeline) -> None:
        with self._lock:
            self._pipeline, unwanted = pipeline, self._unwanted
        if unwanted:
            pipeline.close()

    @property
    def closed(self) -> bool:
        """Whether its pipeline was closed, or is going to be once it is there."""
        return self._unwanted if self._pipeline is None else self._pipeline.closed

    @property
    def moved(self) -> bool:
        """Whether what it names became another model before it was loaded: in another working directory, say.
        Names count as of the load, whose models it has from then on.
        """
        waits = self._pipeline is None and self._loading is None
        return waits and self._key is not None and source_key(self.spec) != self._key

    def close(self) -> None:
        """Close the pipeline. One that is still loading is closed when it is there, which this does not wait
        for; whoever waits for it is told so.
        """
        with self._lock:
            self._unwanted = self._loading is not None
        if self._pipeline is not None:
            self._pipeline.close()

    def window(self, roles: Iterable[Role]) -> int | None:
        """Maximum number of tokens of prompt and answer. If the models are not loaded, it is by their configs
        alone, ``max_length`` aside; None where not even those are on this machine.
        """
        return min((window for window in map(self._window, roles) if window), default=None)

    def _window(self, role: Role) -> int | None:
        if self._pipeline is not None:
            window: int = getattr(self._pipeline.backend, role).info.window
            return window
        if self._windows.get(role) is None:
            named = named_models(self.spec, role)
            self._windows[role] = known_window(named[role], named.get(f"{role}_kwargs"))
        return self._windows[role]

    @property
    def takes_tools(self) -> bool:
        """Whether draft and target can be shown tools. Loads tokenizers at most; servers are asked.

        Raises:
            ModelError: a tokenizer cannot be loaded.
            BackendError: a server cannot be reached.
        """
        if self._pipeline is not None or self._served:
            backend = self.get().backend
            return backend.draft.takes_tools and backend.target.takes_tools
        if self._takes_tools is None:
            try:
                check_tools(**named_models(revealed(self.spec), "draft", "target"))
                self._takes_tools = True
            except ConfigError:
                self._takes_tools = False
        return self._takes_tools

    def check_output(self, output: Output) -> None:
        """Refuse what the models cannot write. Loads tokenizers at most; servers are asked. Does neither on
        the thread of a running event loop, which would stand still: there the first call refuses it.

        Raises:
            ConfigError: the chat templates take no tools, or (once the models are there) a schema cannot
                be enforced.
            ModelError: a tokenizer cannot be loaded.
            BackendError: a server cannot be asked.
        """
        if self._pipeline is None and _in_a_loop():
            return
        if self._pipeline is not None or (output.tools and self._served):
            self.get().check_output(output)
        elif output.tools:
            check_tools(**named_models(revealed(self.spec), "draft", "target"))

    @property
    def _served(self) -> bool:
        return is_served(self.spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineSource:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        check_pickles(self.spec, "a source")
        return find_source, (self.spec,)


class _Registry:
    """The sources that somebody holds, and a lock on them."""

    def __init__(self) -> None:
        self.sources: weakref.WeakValueDictionary[Hashable, PipelineSource] = weakref.WeakValueDictionary()
        self.unlock()

    def unlock(self) -> None:
        """For a forked process, which does not have the threads that held locks."""
        self.lock = threading.Lock()
        for source in list(self.sources.values()):
            source.unlock()


_registry = _Registry()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_registry.unlock)


_live_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def live_name(live: Any) -> str:
    """A name for a live pipeline (source of loaded models, function), and for no other object."""
    fresh = f"{LIVE}{uuid.uuid4()}"
    try:
        return _live_names.setdefault(live, fresh)
    except TypeError:  # It cannot be a key, so it gets another name each time.
        return fresh


def find_source(spec: Spec) -> PipelineSource:
    """The source for these models: the same one as long as anybody holds it and it is not closed.

    Over servers it has their keys and headers, too, which go with each question. Other secrets make no
    difference: models that were loaded with another token are shared.

    Raises:
        ConfigError: it names a live pipeline that this process does not have (any more).
    """
    if is_live(spec):
        return _live_source(spec["pipeline"])
    key = source_key(spec)
    with _registry.lock:
        source = _registry.sources.get(key)
        if source is None or source.closed:
            source = _registry.sources[key] = PipelineSource(spec, key)
        elif source.loaded is None and has_secrets(spec):
            source.spec = hidden(spec)  # The token may have been corrected.
        return source


def _live_source(name: str) -> PipelineSource:
    with _registry.lock:
        for source in _registry.sources.values():
            if source.name == name:
                return source
    raise ConfigError(
        f"the live pipeline {name!r} is not in this process, or nobody holds it any more.",
        hint="Name the models by hub id or folder, or make the object anew with from_pipeline(pipe).",
    )


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _load(spec: dict[str, Any]) -> RSDPipeline:
    options = {name: value for name, value in spec.items() if name != "pipeline"}
    return RSDPipeline.pocket(**options) if "pipeline" in spec else open_models(**options)
