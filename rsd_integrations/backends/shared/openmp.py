"""How long torch's CPU threads wait for each other awake."""

from __future__ import annotations

import os
import sys

__all__ = ["import_torch"]

_SETTING, _SPINS = "GOMP_SPINCOUNT", "3000"


def import_torch() -> None:
    """Load torch, if nobody has yet, with threads that soon fall asleep while they wait for each other.

    Awake they take the time of those they wait for where other processes are at work too: sixteen pocket
    requests took more than ten times as long then. On an idle machine they are a tenth faster at most
    (dev/speed.md). libgomp reads the setting when it is loaded and never again, so that nobody else need
    see it; what a user has set stands.
    """
    if "torch" in sys.modules or {_SETTING, "OMP_WAIT_POLICY"} & set(os.environ):
        return
    os.environ[_SETTING] = _SPINS
    try:
        import torch  # noqa: F401
    finally:
        del os.environ[_SETTING]
