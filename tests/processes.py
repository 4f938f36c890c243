"""Processes that tests start and interrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

__all__ = ["TORCH_ALONE", "interrupted"]

TORCH_ALONE = """
import sys, types
sys.modules["transformers"] = types.SimpleNamespace(
    AutoModelForCausalLM=None, AutoTokenizer=None, PreTrainedModel=None
)
"""
"""In front of code that needs no models: transformers takes twice as long to import as torch."""


def interrupted(code: str, *, after: float = 0.0) -> tuple[int, str, str]:
    """Run code, and interrupt it so many seconds after it has printed "ready".

    Returns:
        Its return code, what it printed then, and its errors.
    """
    if os.name == "nt":
        pytest.skip("Windows sends no SIGINT to another process alone")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(after)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # Else what does not end takes the time of all other tests.
    return process.returncode, out, err
