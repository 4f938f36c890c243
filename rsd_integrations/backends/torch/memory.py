"""How much memory a trio needs, by configs and tokenizers: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM

from rsd_integrations.backends.shared.describe import attending_layers, head_size, positions, text_config
from rsd_integrations.backends.shared.sources import Source, check_placement, check_templates
from rsd_integrations.backends.shared.unreadable import first_line
from rsd_integrations.backends.torch.loading import default_device
from rsd_integrations.backends.torch.quantized import Quantization
from rsd_integrations.backends.torch.refusals import check_architecture, check_weights
from rsd_integrations.backends.torch.states import cache_bytes, is_recurrent
from rsd_integrations.errors import ModelError
from rsd_integrations.prm import PRMFormat, find_prm_format
from rsd_integrations.types import Role


@dataclass(frozen=True)
class ModelMemory:
    """What one model takes."""

    role: Role
    name: str
    device: str
    dtype: str
    parameters: int
    """Of a PRM without its head, which has some thousands."""
    quantization: str | None
    """How its weights are quantized; None if they are not."""
    weights: int | None
    """Bytes of its weights; None where they are quantized in a way that is not known here."""
    cache_per_token: int
    """Bytes of keys and values of one position of one request."""
    states: int
    """Bytes of what recurrent layers keep of one request, at most."""
    window: int
    """Positions of a request."""
    form: PRMFormat | None = None
    """How a PRM reads steps."""

    def cache(self, requests: int) -> int:
        """Bytes of what is kept of so many requests at their full length."""
        return requests * (self.cache_per_token * (self.window + 1) + self.states)


def trio_memory(
    models: Mapping[Role, Any],
    *,
    device: str | None = None,
    dtype: Any = "auto",
    max_length: int = 4096,
    prm_format: Any = "auto",
    draft_kwargs: Mapping[str, Any] | None = None,
    target_kwargs: Mapping[str, Any] | None = None,
    prm_kwargs: Mapping[str, Any] | None = None,
) -> list[ModelMemory]:
    """What three models take, named as for ``RSDPipeline.from_pretrained``. What that refuses is refused.

    Args:
        models: of draft, target and prm.
        device: for all; None takes the GPU if there is one.
        dtype: for all; "auto" takes the checkpoints'.
        max_length: most tokens of prompt and answer.
        prm_format: how the PRM reads steps.
        draft_kwargs: options of this model alone.
        target_kwargs: likewise.
        prm_kwargs: likewise.

    Raises:
        ConfigError: the device, the dtype or the PRM format is not known here.
        ModelError: a model cannot be read or cannot play its role.
    """
    device = str(device or default_device())
    check_placement(device, dtype, "")
    options = {"draft": draft_kwargs, "target": target_kwargs, "prm": prm_kwargs}
    sources = {role: Source.of(role, model, options[role]) for role, model in models.items()}
    for source in sources.values():
        check_architecture(source)
        check_weights(source)
    check_templates(sources["draft"], sources["target"])
    form = find_prm_format(prm_format, sources["prm"].config, sources["prm"].tokenizer)
    told = [model_memory(source, device, dtype, max_length) for source in sources.values()]
    return [replace(one, form=form if one.role == "prm" else None) for one in told]


def model_memory(source: Source, device: str, dtype: Any, max_length: int) -> ModelMemory:
    """What one model takes, with options as of ``trio_memory``.

    Raises:
        ModelError: no model can be made of its config.
    """
    config = text_config(source.config)
    chosen = source.options.get("dtype", dtype)
    kind = _dtype(source.config if chosen == "auto" else None, chosen)
    kind_of = AutoModel if source.role == "prm" else AutoModelForCausalLM
    made = source.model if source.model is not None else source.empty(kind_of)
    quantization = Quantization.of(source)
    parameters = sum(parameter.numel() for parameter in made.parameters())
    unquantized = parameters * kind.itemsize
    cache_per_token, states = _cache(source, made, config, kind)
    return ModelMemory(
        role=source.role,
        name=source.name,
        device=_device(source.options, device),
        dtype=str(kind).removeprefix("torch."),
        parameters=parameters,
        quantization=quantization.method if quantization else None,
        weights=quantization.weights(made, kind) if quantization else unquantized,
        cache_per_token=cache_per_token,
        states=states,
        window=min(max_length, positions(config) or max_length),
    )


def _cache(source: Source, model: Any, config: Any, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a position, and of what recurrent layers keep of a text."""
    if is_recurrent(config) or getattr(config, "kv_lora_rank", None):
        # Of latent attention something else than keys and values is kept.
        try:
            # On "meta" mixtures of experts run in no other precision.
            return cache_bytes(model if source.model is not None else model.to(torch.bfloat16), config, dtype)
        except Exception as error:
            raise ModelError(
                f"{source.role}={source.name!r} does not run on a single token: {first_line(error)}",
                hint="Check that the numbers of its config fit one another.",
            ) from error
    layers = attending_layers(config)
    shared = int(getattr(config, "num_kv_shared_layers", None) or 0)  # The last ones read what others keep.
    numbers = [
        head_size(layer) * int(getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads)
        for layer in layers[: len(layers) - shared]
    ]
    return 2 * sum(numbers) * dtype.itemsize, 0


def _device(options: Mapping[str, Any], for_all: str) -> str:
    """One name for one device: "cuda" and "cuda:0" are the same memory. A device map is no single one."""
    if options.get("device_map") is not None:
        return "device_map"
    device = torch.device(options.get("device") or for_all)
    return str(device) if device.index else device.type


def _dtype(config: Any, given: Any) -> torch.dtype:
    named = getattr(config, "dtype", None) if config is not None else given
    found = getattr(torch, named, None) if isinstance(named, str) else named
    return found if isinstance(found, torch.dtype) else torch.float32
