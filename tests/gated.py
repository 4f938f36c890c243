"""Requests that go on until they are stopped, or wait until a test knows who is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.protocols import Backend, WriterSession
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter

PATIENCE = 30.0
"""Seconds until a test calls it a deadlock."""


def endless(prompt: Any, index: int, text: str) -> str:
    return "again\n\n"


class Gated(ScriptedWriter):
    """Its first round waits until the gate is opened, so that a test knows who is there by then."""

    def __init__(self, script: Any, **options: Any) -> None:
        super().__init__(script, **options)
        self.entered = threading.Event()
        self.gate = threading.Event()

    def advance(self, sessions: Sequence[WriterSession]) -> Any:
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        return super().advance(sessions)


def gated(slots: int = 16) -> tuple[RSDPipeline, Gated]:
    writer = Gated(["one\n\n", "two"])
    return RSDPipeline(Backend(writer, ScriptedWriter([]), ScriptedScorer([1.0]), slots)), writer


def open_sessions(pipe: RSDPipeline) -> int:
    backend: Any = pipe.backend
    return sum(model.open_sessions for model in (backend.draft, backend.target, backend.prm))


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def open_when(pipe: RSDPipeline, writer: Gated, waiting: int) -> threading.Thread:
    """Open the gate once so many requests are there."""
    engine = pipe._engine

    def watch() -> None:
        assert writer.entered.wait(PATIENCE)
        wait_for(lambda: len(engine._live) + len(engine._queued) + engine._inbox.qsize() >= waiting)
        writer.gate.set()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
