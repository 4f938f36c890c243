"""What the engine has to know of a loaded model and its tokenizer."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from rsd_integrations.backends.shared.reasoning import marking_tokens, reasoning_tags
from rsd_integrations.encoding import token_id
from rsd_integrations.positions import positions as positions_by
from rsd_integrations.protocols import ModelInfo

ATTENDING = ("full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding")
"""Kinds of layers that attend; the hybrid ones are recurrent, too."""

AttentionKinds = dict[str, tuple[int | None, int | None]]
"""The (window, chunk) of each kind of attention layer."""


def model_info(
    name: str,
    config: Any,
    *,
    parameters: int,
    window: int,
    attention: AttentionKinds,
    threshold: float | None = None,
    longest: int | None = None,
) -> ModelInfo:
    """A model's numbers for accounting and messages. ``longest``: window; by default the config's."""
    config = text_config(config)
    only_sliding = set(attention) == {"sliding_attention"}
    return ModelInfo(
        name=name,
        parameters=parameters,
        pair_flops=2 * sum(_pair_numbers(layer) for layer in attending_layers(config)),
        window=window,
        sliding_window=attention["sliding_attention"][0] if only_sliding else None,
        threshold=threshold,
        longest=longest or positions(config),
    )


def attending_layers(config: Any) -> list[Any]:
    """The configs of the layers that attend: in some models (Gemma 4) their heads are not all alike."""
    layers = getattr(config, "per_layer_config", None)
    count = int(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * count
    attending = [index for index in range(count) if kinds[index] in ATTENDING]
    return [layers[index] if layers else config for index in attending]


def head_size(config: Any) -> int:
    """Numbers in a head of a layer's attention."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // max(1, _heads(config)))


def _pair_numbers(config: Any) -> int:
    """Numbers of a layer's queries and values, in all heads: what a pair of tokens goes through. In
    latent attention they differ in size.
    """
    parts = [getattr(config, f"qk_{part}_head_dim", None) or 0 for part in ("nope", "rope")]
    query = sum(parts) if all(parts) else head_size(config)
    return _heads(config) * (query + int(getattr(config, "v_head_dim", None) or query))


def _heads(config: Any) -> int:
    return int(getattr(config, "num_attention_heads", 0))


def attention_kinds(config: Any) -> AttentionKinds:
    """The (window, chunk) of each kind of attention layer that a config names."""
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if not kinds:
        kinds = ["sliding_attention" if window else "full_attention"]
    sizes = {
        "full_attention": (None, None),
        "sliding_attention": (window, None),
        "chunked_attention": (None, chunk),
        "hybrid_sliding": (window, None),
    }
    # Layers without attention (linear, mamba) count as full: servers run them, too.
    return {kind: sizes.get(kind, (None, None)) for kind in kinds}


def active_parameters(model: torch.nn.Module) -> int:
    """Parameters a token of text passes through: tied ones once, of experts only those that are chosen."""
    model = _as_configured(model) if is_quantized(model) else model
    config = text_config(model.config)
    experts, chosen = (_first(config, names) for names in (_EXPERTS, _CHOSEN))
    share = chosen / experts if experts and chosen else 1.0
    passed = {
        parameter: round(parameter.numel() * (share if ".experts." in name else 1.0))
        for part in _read_by_text(model, config)
        for name, parameter in part.named_parameters()
    }
    return sum(passed.values())


def is_plain(weight: Any) -> bool:
    """Whether a weight is what it seems: quantized ones are integers, or kinds of tensors of their own."""
    return type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.is_floating_point()


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether some of its weights are quantized, by transformers or by whatever else."""
    return getattr(getattr(model, "config", None), "quantization_config", None) is not None or any(
        getattr(module, "hf_quantizer", None) is not None or _is_packed(getattr(module, "weight", None))
        for module in model.modules()
    )


def _is_packed(weight: Any) -> bool:
    """Whether a module's weight is a quantized one; those of torch's own quantized layers are methods."""
    return isinstance(weight, MethodType) or (isinstance(weight, torch.Tensor) and not is_plain(weight))


def _as_configured(model: torch.nn.Module) -> torch.nn.Module:
    """The same without weights and not quantized: packed weights and those in buffers cannot be counted."""
    found = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if found is None:
        return model
    try:
        with torch.device("meta"):
            made: torch.nn.Module = type(found)(copy.deepcopy(found.config))
            return made
    except Exception:  # Its class takes something else: better to count what can be seen.
        return model


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_k")


def _first(config: Any, names: Sequence[str]) -> float | None:
    """The first of these numbers that a config has; of a list with one for each layer, their mean."""
    found = next((found for name in names if (found := getattr(config, name, None))), None)
    return sum(found) / len(found) if isinstance(found, list | tuple) else found


def _read_by_text(model: torch.nn.Module, config: Any) -> list[torch.nn.Module]:
    """The parts that text passes through: of a multimodal model those that neither see nor hear."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    if config is model.config or decoder in (None, model):
        return [model]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [decoder] if head is None else [decoder, head]


def positions(config: Any) -> int | None:
    """Positions the model was made for; None where its (text) config names no number."""
    return positions_by(lambda name: getattr(config, name, None))


def eos_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that the generation config or the tokenizer calls the end."""
    found: set[int] = set()
    for given in (getattr(generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        ids = given.tolist() if isinstance(given, torch.Tensor) else given
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)


def hidden_ids(tokenizer: Any) -> frozenset[int]:
    """Special tokens, which have no text, except those of the thinking markup."""
    shown = {token_id(tokenizer, tag) for tag in marking_tokens(tokenizer, reasoning_tags(tokenizer))}
    added = tokenizer.added_tokens_decoder.items()
    special = {index for index, token in added if token.special} | set(tokenizer.all_special_ids)
    return frozenset(special - shown)


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Equal for vocabularies (a tokenizer's ``get_vocab()``) whose ids mean the same strings."""
    entries = "\n".join(f"{index}\t{token}" for token, index in sorted(vocabulary.items()))
    return hashlib.sha256(entries.encode()).hexdigest()


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model."""
    return config.get_text_config(decoder=True)
