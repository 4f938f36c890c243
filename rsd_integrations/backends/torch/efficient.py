"""Masked attention by a kernel of our choice, on GPUs where torch would take cuDNN's.

From 2.11 on torch prefers cuDNN for half precision on an H100, H200 or B200. cuDNN makes a plan for each new
number of rows, tokens and positions (tens to hundreds of milliseconds), and keeps it for good; and forwards
that are called have new numbers all the time. Torch's flags and environment variable would change that for
the whole process. So its own "memory-efficient" kernel, which it took before and takes on other GPUs, is
called by name.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch.nn.functional import pad

_ALIGNED = 16
"""The kernel reads a bias whose rows lie a multiple of so many numbers apart."""

_HEAD = 8
"""In half precision the size of a head must be a multiple of this."""


def bias(mask: torch.Tensor, repeats: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores, in rows that are aligned.

    Args:
        mask: ``[N, 1, T, L]``, True where a token attends.
        repeats: of the T rows.
        dtype: of the scores.
    """
    repeated = mask if repeats == 1 else mask.repeat(1, 1, repeats, 1)
    never = torch.full((), -math.inf, dtype=dtype, device=mask.device)
    made = torch.where(repeated, 0.0, never)
    length = mask.shape[-1]
    return pad(made, (0, -length % _ALIGNED))[..., :length] if length % _ALIGNED else made


def fits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether the kernel takes these: somebody else may run the model meanwhile, to train it even, or one of
    the same config on a CPU.
    """
    tensors = (query, key, value)
    return (
        has_kernel(query)
        and mask.dtype == torch.bool
        and not any(one.requires_grad for one in tensors)
        and all(one.stride(-1) == 1 and one.dtype == query.dtype for one in tensors)
        and query.shape[-1] % _HEAD == value.shape[-1] % _HEAD == 0
    )


def has_kernel(tensor: torch.Tensor) -> bool:
    """Whether there is such a kernel where a tensor is."""
    return tensor.is_cuda


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, added: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """As torch's ``scaled_dot_product_attention`` calls it.

    Args:
        query: ``[N, heads, T, size]``.
        key: ``[N, heads, L, size]``.
        value: likewise.
        added: ``[N, 1, T or 1, L]``, of ``bias``.
        scale: of the scores; by default 1 / sqrt(size).
    """
    rows, heads, tokens, _ = query.shape
    spread = added.expand(rows, heads, tokens, key.shape[2])
    made: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, spread, False, scale=scale
    )[0]
    return made


def preferred(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch may take cuDNN there, and the kernel called by name computes what it should."""
    half = dtype in (torch.float16, torch.bfloat16)
    # Users may have turned the kernel off.
    enabled: bool = torch.backends.cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
    if device.type != "cuda" or not half or not enabled:
        return False
    newest = torch.version.cuda is not None and torch.cuda.get_device_capability(device)[0] in (9, 10)
    return newest and sound(device, dtype)


@cache
@torch.inference_mode()
def sound(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel attends as it should, to keys that lie as those of slots do."""
    # On the CPU by name: users may have set another default device, which this generator does not fit.
    here: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "device": "cpu"}
    kept = torch.randn(2, 4, 2, 40, 64, **here).to(device, dtype)
    mask = (torch.rand(4, 1, 3, 37, **here) < 0.7).to(device)
    mask[..., 0] = True
    try:
        for tokens, length in ((1, 32), (3, 37)):
            query = torch.randn(4, 2, 2 * tokens, 64, **here).to(device, dtype)
            key, value = (one[:, :, :length] for one in kept)
            added = bias(mask[..., :tokens, :length], 2 if tokens > 1 else 1, dtype)
            made = attend(query, key, value, added, None).float()
            scores = query.float() @ key.float().mT / 8 + added.float()
            if not torch.allclose(made, scores.softmax(-1) @ value.float(), atol=0.05):
                return False
    except Exception:  # It is no public part of torch.
        return False
    return True
