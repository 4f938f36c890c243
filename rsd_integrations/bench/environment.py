"""What a measurement ran on: versions, hardware, and which weights."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rsd_integrations import __version__
from rsd_integrations.adapters.extras import version_of

_CUDNN = "TORCH_CUDNN_SDPA_DEPRIORITIZED"
"""Makes torch prefer other attention kernels to cuDNN's, which changes the speed of ``generate``
(dev/speed.md)."""


def made(command: str, *packages: str) -> dict[str, Any]:
    """What every ``Report`` says about how it was made.

    Args:
        command: the command line that made it.
        packages: those whose versions matter, beside torch and transformers.
    """
    return {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions("torch", "transformers", *packages),
        "hardware": hardware(),
    }


def _versions(*packages: str) -> dict[str, str]:
    """This package, Python and the given packages; one that is not installed is left out."""
    own = {"rsd_integrations": __version__, "python": platform.python_version()}
    return own | {package: found for package in packages if (found := version_of(package))}


def hardware() -> dict[str, str]:
    """Processor, usable cores; where torch is loaded already, its threads and the GPU."""
    found = {"platform": platform.platform(), "processor": _processor(), "cores": str(_usable_cores())}
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        found["torch_threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            found["gpu"] = str(torch.cuda.get_device_name())
            if _CUDNN in os.environ:
                found[_CUDNN] = os.environ[_CUDNN]
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def weights_sha256(folders: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of every ``*.safetensors`` file of each role, by "role/file"."""
    return {
        f"{role}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for role, folder in folders.items()
        for file in sorted(Path(folder).glob("*.safetensors"))
    }
