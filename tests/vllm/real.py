"""Real vLLM servers of the pocket trio, for ``test_real.py``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["serve"]

_FLAGS = ["--kv-cache-memory-bytes", "64M", "--block-size", "32", "--enforce-eager", "--dtype", "float32"]
_SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # Or the first question waits for half a minute.
    "VLLM_NO_USAGE_STATS": "1",
}
_PATIENCE = 240.0
_GRACE = 60.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(python: str, folders: list[tuple[Path, list[str]]], logs: Path) -> Iterator[list[str]]:
    """Start a server for each folder (with further flags), side by side; their URLs.

    Args:
        python: of an environment with vLLM.
        logs: where they log.
    """
    started: list[tuple[subprocess.Popen[bytes], str]] = []
    try:
        for number, (folder, flags) in enumerate(folders):
            port = _free_port()
            command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
            command += ["--host", "127.0.0.1", "--port", str(port), *_FLAGS, *flags]
            with (logs / f"{number}.log").open("wb") as log:
                process = subprocess.Popen(
                    command, env=os.environ | _SETTINGS, stdout=log, stderr=log, start_new_session=True
                )
            started.append((process, f"http://127.0.0.1:{port}"))
        for process, url in started:
            _wait(process, url)
        yield [url for _, url in started]
    finally:
        for process, _ in started:
            process.terminate()
        for process, _ in started:
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:  # It hangs; the others are to be ended all the same.
                os.killpg(process.pid, signal.SIGKILL)  # With its engine.
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, f"vLLM ended with {process.returncode}; see its log"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"vLLM at {url} did not start")
