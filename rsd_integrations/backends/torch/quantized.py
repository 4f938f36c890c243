"""How much smaller a quantized checkpoint is, as far as its config tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rsd_integrations.backends.shared.sources import Source

_BLOCK = 64
"""Weights that share a scale in bitsandbytes' four bits."""


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's ``quantization_config`` says.

    Args:
        method: its name.
        bits: of one weight of a linear layer, scales included; None where that is not known here.
        skipped: names of layers that keep their dtype.
        kept: whether weights are loaded as they are stored.
    """

    method: str
    bits: float | None
    skipped: tuple[str, ...] = ()
    kept: bool = True

    @classmethod
    def of(cls, source: Source) -> Quantization | None:
        """A model's; None if it has none."""
        given = source.options.get("quantization_config") or getattr(
            source.config, "quantization_config", None
        )
        if not given:
            return None
        told: Mapping[str, Any] = given if isinstance(given, Mapping) else given.to_dict()
        # As transformers has it: these two tell, whether or not the method is named.
        bitsandbytes = told.get("load_in_4bit") or told.get("load_in_8bit")
        method = "bitsandbytes" if bitsandbytes else told.get("quant_method", "unknown")
        method = str(getattr(method, "value", method))
        skipped = told.get("modules_to_not_convert") or told.get("llm_int8_skip_modules") or ()
        kept = method != "fp8" or not (told.get("dequantize") or _without_fp8())
        return cls(method, _bits(method, told), tuple(skipped), kept)

    def weights(self, model: torch.nn.Module, dtype: torch.dtype) -> int | None:
        """Bytes of a model's weights: linear layers by their bits, the head and all others by their dtype."""
        total = sum(parameter.numel() for parameter in model.parameters())
        if not self.kept:
            return total * dtype.itemsize
        # Experts that are one tensor are quantized by some methods and left alone by others.
        fused = any(parameter.ndim > 2 for parameter in model.parameters())
        if self.bits is None or fused:
            return None
        linear = sum(layer.weight.numel() for name, layer in self._linear(model))
        return round(linear * self.bits / 8) + (total - linear) * dtype.itemsize

    def _linear(self, model: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        return [
            (name, layer)
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear) and layer is not head
            if not any(part in name for part in self.skipped)
        ]


def _bits(method: str, told: Mapping[str, Any]) -> float | None:
    if method == "bitsandbytes" and told.get("load_in_4bit"):
        twice = told.get("bnb_4bit_use_double_quant")
        return 4 + (8 / _BLOCK + 32 / (256 * _BLOCK) if twice else 32 / _BLOCK)
    if method in ("gptq", "awq") and isinstance(told.get("bits"), int):
        bits, group = int(told["bits"]), int(told.get("group_size") or -1)
        return bits + ((16 + bits) / group if group > 0 else 0.0)
    eight = method in ("fp8", "fbgemm_fp8") or (method == "bitsandbytes" and told.get("load_in_8bit"))
    return 8.0 if eight else None


def _without_fp8() -> bool:
    """Whether nothing here computes in FP8: then transformers makes whole weights of a checkpoint's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() < (8, 9)
    return not torch.xpu.is_available()
