"""How much memory a trio needs, from configs alone: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM

from rsd_integrations.backends.torch.describe import positions, text_config
from rsd_integrations.backends.torch.loading import default_device
from rsd_integrations.backends.torch.sources import Source
from rsd_integrations.errors import ModelError
from rsd_integrations.types import Role

__all__ = ["ModelMemory", "device_memory", "devices", "model_memory"]


@dataclass(frozen=True)
class ModelMemory:
    """What one model takes."""

    role: Role
    name: str
    device: str
    dtype: str
    parameters: int
    """Those of a PRM without its head, which is some thousands."""
    weights: int
    """Bytes of its weights."""
    cache_per_token: int
    """Bytes of keys and values of one position of one request."""
    window: int
    """Positions of a request."""

    def cache(self, requests: int) -> int:
        """Bytes of keys and values of so many requests at their full length."""
        return self.cache_per_token * requests * (self.window + 1)


def model_memory(
    role: Role,
    model: Any,
    options: Mapping[str, Any] | None = None,
    *,
    device: str | None = None,
    dtype: Any = "auto",
    max_length: int = 4096,
) -> ModelMemory:
    """Of one model, named as for ``RSDPipeline.from_pretrained``.

    Raises:
        ModelError: its config cannot be read, or no model can be made of it.
    """
    source = Source.of(role, model, options)
    config = text_config(source.config)
    chosen = source.options.get("dtype", dtype)
    kind = _dtype(source.config if chosen == "auto" else None, chosen)
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    parameters = _parameters(source)
    return ModelMemory(
        role=role,
        name=source.name,
        device=str(source.options.get("device") or device or default_device()),
        dtype=str(kind).removeprefix("torch."),
        parameters=parameters,
        weights=parameters * kind.itemsize,
        cache_per_token=2 * int(config.num_hidden_layers) * heads * size * kind.itemsize,
        window=min(max_length, positions(config)),
    )


def devices() -> dict[str, str]:
    """What models could run on."""
    if torch.cuda.is_available():
        return {f"cuda:{index}": _gpu(index) for index in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        return {"mps": "Apple GPU"}
    return {"cpu": f"no GPU, {torch.get_num_threads()} threads"}


def _gpu(index: int) -> str:
    free, total = (f"{amount / 2**30:.0f}" for amount in torch.cuda.mem_get_info(index))
    return f"{torch.cuda.get_device_name(index)}, {free} of {total} GiB free"


def device_memory(device: str) -> int | None:
    """Bytes free on a CUDA device; None elsewhere."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return int(torch.cuda.mem_get_info(torch.device(device))[0])


def _dtype(config: Any, given: Any) -> torch.dtype:
    named = getattr(config, "dtype", None) if config is not None else given
    found = getattr(torch, named, None) if isinstance(named, str) else named
    return found if isinstance(found, torch.dtype) else torch.float32


def _parameters(source: Source) -> int:
    if source.model is not None:
        return sum(parameter.numel() for parameter in source.model.parameters())
    kind = AutoModel if source.role == "prm" else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            made = kind.from_config(source.config, **_trust(source))
    except Exception as error:
        raise ModelError(
            f"no model can be made of the config of {source.role}={source.name!r}: {error!s:.200}",
            hint="Check that it is a language model that this version of transformers knows.",
        ) from error
    return sum(parameter.numel() for parameter in made.parameters())


def _trust(source: Source) -> dict[str, Any]:
    return {key: source.options[key] for key in ("trust_remote_code",) if key in source.options}
