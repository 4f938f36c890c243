"""Registers the devices "second:0" and "second:1" with torch; forwards are recorded there, as on a GPU.

RSD_SECOND_DEVICE=apple: they are called, and there is no float64. It takes a C++ compiler and ninja, and once
some 40 s to compile.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.cpp_extension import load

from rsd_integrations.backends.torch import launch
from tests.recording import Recordings, Tape

__all__ = ["APPLE", "DEVICE", "NAME"]

NAME = "second"
APPLE = os.environ.get("RSD_SECOND_DEVICE") == "apple"


def _registered() -> Any:
    """The device's own module, once torch knows the device by its name."""
    torch.utils.rename_privateuse1_backend(NAME)
    module: Any = ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 2
    module.current_device = lambda: 0
    module.manual_seed_all = lambda seed: None
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    source = Path(__file__).with_name("device.cpp")
    return load("rsd_second_device", [str(source)], extra_cflags=["-O1"])


def _as_one_launch(tape: Tape) -> None:
    """What a recording does costs the host nothing."""
    DEVICE.be_quiet(True)
    try:
        _play(tape)
    finally:
        DEVICE.be_quiet(False)


DEVICE = _registered()
DEVICE.has_doubles(not APPLE)
_play = Tape.play
Tape.play = _as_one_launch  # type: ignore[method-assign]
if not APPLE:
    launch.recorder_for = lambda device: Recordings() if device.type == NAME else None
