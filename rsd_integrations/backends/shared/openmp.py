"""How long torch's CPU threads spin while they wait for each other."""

from __future__ import annotations

import os
import sys

__all__ = ["import_torch"]

_SETTING, _SPINS = "GOMP_SPINCOUNT", "3000"


def import_torch() -> None:
    """Load torch, if nobody has yet, with threads that soon fall asleep while they wait for each other.

    Spinning threads take time from those they wait for if other processes are at work, too: sixteen pocket
    requests took more than ten times as long then. On an idle machine spinning is a tenth faster at most
    (dev/speed.md). libgomp reads the setting only when it is loaded, so it is removed again at once; what a
    user has set stands.
    """
    if "torch" in sys.modules or {_SETTING, "OMP_WAIT_POLICY"} & set(os.environ):
        return
    os.environ[_SETTING] = _SPINS
    try:
        import torch  # noqa: F401
    finally:
        del os.environ[_SETTING]
