"""The pocket trio with heads of 32 numbers instead of 16: the same functions, which vLLM serves on a CPU.

Half of each head is zero. Rotary positions turn pairs of numbers by an angle that depends on the pair's
place over the head's size, so pair i of 8 becomes pair 2 i of 16; attention is scaled by the head's size, so
queries are larger by the root of 2.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

__all__ = ["make_servable"]

_SIZE, _LARGER = 16, 32


def _place(number: int) -> int:
    pair, second = number % (_SIZE // 2), number // (_SIZE // 2)
    return 2 * pair + second * (_LARGER // 2)


def _wider(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of heads, ``[heads x 16, ...]`` to ``[heads x 32, ...]``."""
    heads = tensor.shape[0] // _SIZE
    rows = [head * _LARGER + _place(number) for head in range(heads) for number in range(_SIZE)]
    wide = torch.zeros(heads * _LARGER, *tensor.shape[1:], dtype=tensor.dtype)
    wide[rows] = tensor
    return wide


def _changed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if ".q_proj." in name:
        return _wider(tensor) * math.sqrt(_LARGER / _SIZE)
    if ".k_proj." in name or ".v_proj." in name:
        return _wider(tensor)
    if ".o_proj.weight" in name:
        return _wider(tensor.T).T.contiguous()
    return tensor


def make_servable(source: Path, folder: Path) -> Path:
    """Write such a copy of one of the trio's models.

    Args:
        source: its folder.
        folder: where the copy goes; made if need be.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True)
    weights = load_file(source / "model.safetensors")
    changed = {name: _changed(name, tensor) for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    assert config["head_dim"] == _SIZE
    (folder / "config.json").write_text(json.dumps(config | {"head_dim": _LARGER}))
    return folder
