"""What engines share: a thread of their own, and the way in and out of it."""

from __future__ import annotations

import logging
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Collection

from rsd_integrations.engine.job import Job, Request, Sink
from rsd_integrations.engine.scoring import ScoreJob
from rsd_integrations.errors import BackendError, ConfigError, EngineClosedError
from rsd_integrations.functions import AT_WORK
from rsd_integrations.panics import is_panic
from rsd_integrations.protocols import Backend
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.types import RequestCounts
from rsd_integrations.waiting import wait_for_end

_log = logging.getLogger(__name__)

_PATIENCE = 60.0
"""Seconds to wait for the end of the thread of a pipeline that nobody holds any more."""


class EngineThread(ABC):
    """A thread that owns a backend. Any other thread may submit; results come through the job's sink.

    A subclass starts ``_thread``, which calls ``_run``, once it is ready for that.
    It counts in ``_called`` each job that leaves the line of those that wait for their turn.
    """

    _backend: Backend | RemoteBackend
    _live: Collection[Job]
    """Jobs at work."""

    def __init__(self) -> None:
        self._closed = False
        self._submitted = self._called = 0
        """Requests so far, and how many of them no longer wait for their turn."""
        self._bug: BaseException | None = None
        """What ended the thread before it was told to stop."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        """Set last of all."""
        self._thread = threading.Thread(target=self._work_and_end, name="rsd-engine", daemon=True)

    def _work_and_end(self) -> None:
        try:
            self._run()
        except BaseException as unexpected:  # A bug of ours: no caller may wait for ever.
            self._bug = unexpected
            _log.critical("The engine's thread ended, and its pipeline with it.", exc_info=unexpected)
            traceback.clear_frames(unexpected.__traceback__)  # Its frames hold models and requests.
        finally:
            with self._lock:
                self._closed = True
            try:
                self._end()
            finally:
                self._ended.set()

    @abstractmethod
    def _run(self) -> None:
        """What the thread does until it is told to stop."""

    @abstractmethod
    def _end(self) -> None:
        """Fail what is left, each by an ``_end_error``, and give back what the backend holds. Nothing more is
        submitted.
        """

    def _end_error(self) -> BaseException:
        """What a request is told that the end cut off: an error of its own, or all would share a traceback
        that grows with each.
        """
        return self._bug or _closed_error()

    @abstractmethod
    def _put(self, job: Job | None) -> None:
        """Hand a job to the thread, None to stop it. Any thread, one at a time."""

    @abstractmethod
    def _wake(self, job: Job) -> None:
        """Tell the thread that a job was cancelled. Any thread, at any moment: finalizers cancel."""

    def submit(self, request: Request, sink: Sink) -> Job:
        """Queue a request.

        Raises:
            EngineClosedError: the engine was closed.
            ConfigError: it is called from the engine's own thread, as by a weighting function, or by its own
                reward function.
        """
        if AT_WORK.get() is self._backend.prm:
            raise ConfigError(
                "the pipeline is called by its own reward function: it might wait for itself.",
                hint="Ask other models there: another pipeline, or a model by itself.",
            )
        if threading.current_thread() is self._thread:
            raise ConfigError(
                "the pipeline is called from its own thread, by a weighting or a PRM format: it would wait "
                "for itself.",
                hint="Compute the probability without this pipeline, or with another one.",
            )
        job = (Job if request.steps is None else ScoreJob)(request, sink, self._wake)
        self.check_open()
        # Without the lock: a thread that held it when the process was forked does not exist in the child.
        if not self._thread.is_alive():
            raise forked_error()
        with self._lock:
            self.check_open()
            self._submitted += 1
            self._put(job)
        return job

    @property
    def counts(self) -> RequestCounts:
        """How many requests run and wait at this moment. Any thread."""
        return RequestCounts(
            running=len(self._live),
            waiting=self._submitted - self._called,
            max_batch_size=self._backend.max_batch_size,
        )

    def check_open(self) -> None:
        """Raise if it was closed, or ended by itself.

        Raises:
            EngineClosedError: it was, or did; ``__cause__`` is the error that ended it, if there was one.
        """
        bug = self._bug
        if bug is not None:
            raise EngineClosedError(
                f"the engine of this pipeline ended because of {type(bug).__name__}: {bug!s:.300}.",
                hint="The log has the traceback. Make a new pipeline, ChatRSD or RSDLLM.",
            ) from bug
        if self._closed:
            raise _closed_error()

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: after a fork the child has no thread that would run them."""
        return self._closed or not self._thread.is_alive()

    def close(self) -> None:
        """Fail what is queued or running, end the thread, give back what the backend holds."""
        if self._tell_to_end():
            wait_for_end(self._thread, self._ended)

    def let_go(self) -> None:
        """Close, but do not wait for ever: Python's garbage collector calls this, maybe on a thread that the
        engine's thread is waiting for.
        """
        if self._tell_to_end() and self._ended.wait(_PATIENCE):
            self._thread.join(_PATIENCE)

    def _tell_to_end(self) -> bool:
        """Tell the thread to end. Whether it can be waited for."""
        if not self._thread.is_alive():
            self._closed = True
            return False
        with self._lock:
            if not self._closed:
                self._put(None)  # First: interrupted in between, a second close would wait for ever.
                self._closed = True
        return threading.current_thread() is not self._thread


def own(error: BaseException) -> Exception:
    """The error that a request fails with, for what its work raised: a panic becomes a ``BackendError``.

    Raises:
        BaseException: the error, if it is meant to end the thread.
    """
    if isinstance(error, Exception):
        return error
    if not is_panic(error):
        raise error
    made = BackendError(f"{type(error).__name__}: {error!s:.300}.")
    made.__cause__ = error
    return made


def forked_error() -> EngineClosedError:
    """What callers in a forked child are told: it has none of its parent's threads."""
    return EngineClosedError(
        "this process was forked from the one that loaded the models.",
        hint="Make the pipeline, ChatRSD or RSDLLM in this process, and call none before the fork.",
    )


def _closed_error() -> EngineClosedError:
    """What callers of a closed engine are told."""
    return EngineClosedError(
        "this pipeline was closed.", hint="Make a new one, or keep it open while requests run."
    )
