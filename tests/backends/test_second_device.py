"""Nothing mixes devices: on the CPU everything lies together, so a second device is made, in C++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ["-p", "tests.second_device.device", "tests/second_device"]
MOVED = [
    *("-p", "tests.second_device.plugin", "tests/backends/test_constraints.py"),
    *("tests/langchain/test_real_models.py", "tests/llama_index/test_real_models.py"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is compiled: a run that was killed leaves a lock in torch's own folder, which waits for it."""
    return tmp_path_factory.mktemp("built")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["gpu", "apple"])
@pytest.mark.parametrize("tests", [PLACES, MOVED], ids=["places", "moved"])
def test_no_tensor_lies_on_the_wrong_device(tests: list[str], kind: str, built: Path) -> None:
    if shutil.which("ninja") is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("it takes ninja and a C++ compiler")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        check=False,
        env={**os.environ, "RSD_SECOND_DEVICE": kind, "TORCH_EXTENSIONS_DIR": str(built)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
