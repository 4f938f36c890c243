"""Refuses models that cannot work, before any weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from rsd_integrations.backends.shared.describe import ATTENDING, text_config
from rsd_integrations.backends.shared.sources import Source
from rsd_integrations.backends.shared.unreadable import check_whole
from rsd_integrations.backends.torch.attention import meant_attention
from rsd_integrations.backends.torch.states import is_recurrent
from rsd_integrations.errors import ModelError


def check_architecture(source: Source) -> None:
    """Refuse what is no model with weights, and what a slot cache cannot hold or roll back.

    Raises:
        ModelError: it is one of these.
    """
    if source.model is None and "gguf_file" not in (source.options.get("model_kwargs") or {}):
        check_whole(source.role, source.name, source.options.get("subfolder") or "")
    config = text_config(source.config)
    name = f"{source.role}={source.name!r} ({type(source.config).__name__})"
    if getattr(source.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder.", hint="Use a decoder-only causal model.")
    if getattr(config, "num_hidden_layers", None) is None:
        raise ModelError(
            f"{name} does not say how many layers it has (num_hidden_layers).",
            hint="Use a model that transformers knows, without code of its own.",
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    model_class = type(source.model) if source.model is not None else _causal_class(config)
    stateful = getattr(model_class, "_is_stateful", False)
    if (kinds - {*ATTENDING} or stateful) and not is_recurrent(config):
        found = ", ".join(sorted(kinds - {*ATTENDING})) or "a recurrent state"
        raise ModelError(
            f"{name} has {found}: its cache cannot be rolled back when a step is rejected.",
            hint="Use a model whose layers attend, or keep their states in transformers' own caches "
            "(Qwen 2 to 3.5, Llama, Mistral, Gemma, Phi, LFM, ...).",
        )
    attention = source.options.get("attn_implementation") or meant_attention(config)
    if attention not in (None, "sdpa", "eager"):
        raise ModelError(
            f"{name} asks for attn_implementation={attention!r}, which takes no mask for slots.",
            hint='Use "sdpa" or "eager".',
        )


def _causal_class(config: Any) -> Any:
    """The model class of a config, without loading anything; None for remote code."""
    try:
        return AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        return None


def check_weights(source: Source) -> None:
    """Refuse a folder without the weights that would be loaded. A hub id is not checked.

    Raises:
        ModelError: it has none.
    """
    folder = Path(source.name, source.options.get("subfolder") or "")
    if source.model is not None or not folder.is_dir():
        return
    if source.options.get("use_safetensors") is False:
        ending, hint = "bin", "Save or download the model there with its weights."
    else:
        ending, hint = "safetensors", "Save it with save_pretrained, or pass use_safetensors=False in "
        hint += f"{source.role}_kwargs for a .bin checkpoint."
    if not any(folder.glob(f"*.{ending}")):
        raise ModelError(f"the folder {source.role}={source.name!r} has no weights (*.{ending}).", hint=hint)
