"""Matrix products of large weights on a CPU, by oneDNN where it is faster than MKL (dev/speed.md).

Both are parts of torch, which multiplies by MKL. From four tokens on MKL copies the weights into another
order first and takes up to four times as long as for one. Yet a few tokens (a step that is scored, guesses
that are checked, requests side by side) could take hardly longer, the time of reading the weights. On
AMD's processors MKL is slower throughout: it reads the weights for a lone token with one core, and for two or
three tokens two or three times.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from rsd_integrations.backends.shared.describe import is_plain
from rsd_integrations.backends.torch.forwards import Pair
from rsd_integrations.backends.torch.traced import Call


@dataclass(frozen=True)
class Worth:
    """Where oneDNN is the faster one.

    Args:
        tokens: numbers of tokens in a product for which it is.
        weight: size of a weight, in numbers, from which it is. Smaller ones stay in a core's cache.
        model: parameters of a model from which most weights are that large, and a forward takes so long that
            tracing it would gain nothing.
    """

    tokens: range
    weight: int
    model: int


_INTEL = Worth(range(4, 65), 2_000_000, 200_000_000)
"""With fewer tokens reading the weights takes all the time, with more the arithmetic does, in both."""

_AMD = Worth(range(1, sys.maxsize), 250_000, 100_000_000)


class OneDNN:
    """A ``Call`` that multiplies by oneDNN, for those numbers of tokens (of all rows) where that is faster.

    Args:
        compute: a forward by calling the model.
        device: of the model.
        dtype: of its weights. Other than float32, torch multiplies by oneDNN anyway.
        parameters: how many a token passes through.
    """

    def __init__(self, compute: Call, device: torch.device, dtype: torch.dtype, parameters: int) -> None:
        self._compute = compute
        self._worth = _worth()
        wanted = device.type == "cpu" and dtype is torch.float32 and parameters >= self._worth.model
        # Users may have turned oneDNN off (torch.backends.mkldnn.enabled).
        self._product = _product() if wanted and torch.backends.mkldnn.enabled else None

    def takes(self, tokens: int) -> bool:
        """Whether it is the faster call for so many tokens."""
        return self._product is not None and tokens in self._worth.tokens

    def __call__(self, *inputs: torch.Tensor, **where: Any) -> Pair:
        """The forward."""
        assert self._product is not None
        with _Products(self._product, self._worth):
            return self._compute(*inputs, **where)


class _Products(TorchFunctionMode):
    """Sees the torch functions that a forward calls."""

    def __init__(self, product: Callable[..., torch.Tensor], worth: Worth) -> None:
        super().__init__()
        self._product, self._worth = product, worth

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear and not kwargs and self._fits(*args):
            return self._product(*args)
        return func(*args, **(kwargs or {}))

    def _fits(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
        return (
            type(inputs) is torch.Tensor
            and is_plain(weight)
            and inputs.dtype is weight.dtype is torch.float32
            and weight.numel() >= self._worth.weight
            and weight.is_contiguous()
            and inputs.numel() // inputs.shape[-1] in self._worth.tokens
        )


@cache
def _worth() -> Worth:
    """On this machine, by the maker of its processor, for MKL goes by that."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = platform.processor()
    return _AMD if any(maker in told for maker in ("AuthenticAMD", "HygonGenuine")) else _INTEL


@cache
def _product() -> Callable[..., torch.Tensor] | None:
    """``linear`` by oneDNN; None where torch has none, or multiplies by something else than MKL."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None

    def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return made

    # Not by default: loading elsewhere sets another type for a moment, and users may set another device.
    plain: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    try:
        made = product(torch.ones(4, 3, **plain), torch.ones(2, 3, **plain))
    except Exception:  # It is no public part of torch.
        return None
    return product if bool((made == 3).all()) else None
