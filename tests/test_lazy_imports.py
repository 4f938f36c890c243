"""Importing the package is cheap: heavy libraries are loaded by who uses them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "langchain",
    "langchain_core",
    "llama_index",
    "rich",
    "typer",
    "matplotlib",
    "vllm",
    "numpy",
    "huggingface_hub",
)


@pytest.mark.parametrize(
    "module",
    [
        "rsd_integrations",
        "rsd_integrations.testing",
        "rsd_integrations.prm",
        "rsd_integrations.engine.batch",
        "rsd_integrations.text.segment",
        "rsd_integrations.encoding",
    ],
)
def test_importing_it_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_a_scripted_generation_loads_no_heavy_library() -> None:
    code = (
        "import sys; from rsd_integrations.testing import scripted_pipeline\n"
        "with scripted_pipeline(['a']) as pipe: assert pipe.generate('x').text == 'a'\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_a_figure_names_the_extra_that_it_needs() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from rsd_integrations.bench.figure import draw_points\n"
        "try: draw_points([], 'x')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert 'pip install "rsd-integrations[report]"' in done.stdout
