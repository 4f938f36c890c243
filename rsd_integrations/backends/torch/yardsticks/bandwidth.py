"""How fast this device's memory is, and how much of it a token has to read."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from rsd_integrations.backends.torch.threads import apart


def copy_bandwidth(device: str, *, repeats: int = 7) -> float:
    """Bytes a second of a large copy, its reads and writes added up."""
    return apart(device, lambda: _copy_bandwidth(device, repeats))


def _copy_bandwidth(device: str, repeats: int) -> float:
    on_gpu = device.startswith("cuda")
    size = (4 << 30) if on_gpu else (256 << 20)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size / median(seconds)


def model_bytes(model: Any) -> int:
    """Bytes that one token reads: all weights but the rows of the input embeddings."""
    embeddings = model.get_input_embeddings().weight
    tied = getattr(model.config, "tie_word_embeddings", False)
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return int(total if tied else total - embeddings.numel() * embeddings.element_size())
