"""What models could run on, and how much memory is free there."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def devices() -> dict[str, str]:
    """What models could run on."""
    if torch.cuda.is_available():
        return {f"cuda:{index}": _gpu(index) for index in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        return {"mps": "Apple GPU"}
    threads = torch.get_num_threads()
    return {"cpu": f"no GPU, {threads} thread{'' if threads == 1 else 's'}"}


def _gpu(index: int) -> str:
    free, total = (f"{amount / 2**30:.0f}" for amount in torch.cuda.mem_get_info(index))
    return f"{torch.cuda.get_device_name(index)}, {free} of {total} GiB free"


def device_memory(device: str) -> int | None:
    """Bytes free on a CUDA device, or of main memory for the CPU; None where that is not known."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    if not device.startswith("cpu"):
        return None
    known = [free for free in (_machine(), _container()) if free is not None]
    return min(known, default=None)


def _machine() -> int | None:
    """What the kernel could give without swapping."""
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _container() -> int | None:
    """What a container's limit leaves (cgroup version 2, then 1); None where there is no limit."""
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            # "max" is no number, and no limit.
            most, now = (int((_CGROUP / name).read_text(encoding="ascii")) for name in (limit, used))
            lines = (_CGROUP / stat).read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue
        # Files that were read count as used, and are given up when memory is wanted.
        files = sum(int(line.split()[1]) for line in lines if line.split()[0] == cached)
        return max(0, most - now + files)
    return None
