"""Matrix products of a few tokens with large weights on a CPU.

A step that is scored, guesses that are checked, requests side by side: a few tokens should take the time
that reading the weights takes, as one does. MKL, which torch multiplies with, copies the weights into
another order first where there are four tokens or more, and takes up to four times as long. oneDNN, which
is a part of torch too, does not (dev/speed.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from rsd_integrations.backends.torch.forwards import Pair
from rsd_integrations.backends.torch.traced import Call

__all__ = ["FewRows"]

_ROWS = range(4, 65)
"""Tokens for which oneDNN is faster. Below both only read the weights, beyond both only compute."""

_LARGE = 2_000_000
"""Numbers of a weight from which it is. Smaller ones stay in a core's cache, and MKL is faster."""

_LARGE_MODEL = 200_000_000
"""Parameters from which most weights are large, and a forward takes so long that it need not be traced."""


class FewRows:
    """A ``Call`` for few tokens, all rows together, that multiplies by oneDNN where that is faster.

    Args:
        compute: a forward by calling the model.
        device: of the model.
        dtype: of its weights. Of others than float32 torch multiplies by oneDNN as it is.
        parameters: that a token passes through.
    """

    def __init__(self, compute: Call, device: torch.device, dtype: torch.dtype, parameters: int) -> None:
        self._compute = compute
        wanted = device.type == "cpu" and dtype is torch.float32 and parameters >= _LARGE_MODEL
        # Users may have turned oneDNN off (torch.backends.mkldnn.enabled).
        self._product = _product() if wanted and torch._C._get_mkldnn_enabled() else None

    def takes(self, tokens: int) -> bool:
        """Whether it is the faster call for so many tokens."""
        return self._product is not None and tokens in _ROWS

    def __call__(self, *inputs: torch.Tensor, **where: Any) -> Pair:
        """The forward."""
        assert self._product is not None
        with _Products(self._product):
            return self._compute(*inputs, **where)


class _Products(TorchFunctionMode):
    """Sees the torch functions that a forward calls."""

    def __init__(self, product: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._product = product

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear and not kwargs and _fits(*args):
            return self._product(*args)
        return func(*args, **(kwargs or {}))


def _fits(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    # Quantized weights and the like are kinds of tensors of their own.
    return (
        type(inputs) is torch.Tensor
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and inputs.dtype is weight.dtype is torch.float32
        and weight.numel() >= _LARGE
        and weight.is_contiguous()
        and inputs.numel() // inputs.shape[-1] in _ROWS
    )


@cache
def _product() -> Callable[..., torch.Tensor] | None:
    """``linear`` by oneDNN; None where torch has none, or multiplies by something else than MKL."""
    if not torch._C.has_mkl:
        return None

    def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return made

    try:
        made = product(torch.ones(4, 3, device="cpu"), torch.ones(2, 3, device="cpu"))
    except Exception:  # It is no public part of torch.
        return None
    return product if bool((made == 3).all()) else None
