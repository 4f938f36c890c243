"""Threads that wait for each other do not take the time of other processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.processes import TORCH_ALONE

SHOWN = {"OMP_DISPLAY_ENV": "verbose"}
"""Has libgomp tell its settings when it is loaded."""


def spins(code: str, **more: str) -> str:
    """What libgomp was told when torch was loaded; what it would be by itself is some 300,000."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
    code += "; import os; assert 'GOMP_SPINCOUNT' in os.environ or print('not in the environment') is None"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | SHOWN | more, capture_output=True, text=True, check=True
    )
    told = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not told:
        pytest.skip("torch's OpenMP is not libgomp here")
    assert ("not in the environment" in done.stdout) == ("GOMP_SPINCOUNT" not in more)
    return told[0].split("'")[1]


@pytest.mark.parametrize(
    "code",
    [
        TORCH_ALONE + "from rsd_integrations.backends.torch import threads",
        pytest.param(
            "from rsd_integrations.pocket import pocket_paths; pocket_paths(); "
            "from rsd_integrations.backends.torch import loading",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_they_soon_fall_asleep(code: str) -> None:
    assert spins(code) == "3000"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("GOMP_SPINCOUNT", "77", "77"),
        pytest.param("OMP_WAIT_POLICY", "passive", "0", marks=pytest.mark.slow),
    ],
)
def test_what_a_user_has_set_stands(name: str, value: str, told: str) -> None:
    code = TORCH_ALONE + "from rsd_integrations.backends.torch import threads"
    assert spins(code, **{name: value}) == told


@pytest.mark.slow
def test_torch_may_be_there_already() -> None:
    code = TORCH_ALONE + "import torch; from rsd_integrations.backends.torch import threads"
    assert spins(code) != "3000"
