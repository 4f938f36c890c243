"""For all tests: nothing is downloaded, and workers do not fight over the cores."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("VLLM_API_KEY", None)

import hypothesis
import pytest
import torch
from transformers.utils import logging

torch.set_num_threads(1)
# How long a case takes, or making one, says nothing on a machine with other work.
hypothesis.settings.register_profile(
    "rsd", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("rsd")
logging.disable_progress_bar()


def pytest_configure() -> None:
    """The process as tests expect it."""
    # Tests interrupt what they start; what was started in the background (nohup, &) would ignore that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where none was ever set, LlamaIndex's ``asyncio_run`` leaves one open, and a later test fails by that.
    asyncio.set_event_loop(None)


def pytest_collection_finish() -> None:
    """What was imported for the tests is no garbage: tests that collect need not look there (0.3 s each)."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Python's garbage collector does nothing: what is to go must go by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What adapters load: scripted pipelines in the place of weights, and models that take tools."""
    from rsd_integrations.adapters import sources
    from tests.counting import counting_pipeline

    seen: list[dict[str, Any]] = []
    with ExitStack() as stack:

        def load(spec: dict[str, Any]) -> Any:
            seen.append(spec)
            return stack.enter_context(counting_pipeline())

        monkeypatch.setattr(sources, "_load", load)
        monkeypatch.setattr(sources, "check_tools", lambda **_: None)
        yield seen
