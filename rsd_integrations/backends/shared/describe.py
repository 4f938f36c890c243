"""What the engine has to know of a loaded model and its tokenizer."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from rsd_integrations.backends.shared.reasoning import marking_tokens, reasoning_tags
from rsd_integrations.encoding import token_id
from rsd_integrations.positions import positions as positions_by
from rsd_integrations.protocols import ModelInfo

__all__ = [
    "AttentionKinds",
    "active_parameters",
    "attention_kinds",
    "eos_ids",
    "fingerprint",
    "head_numbers",
    "hidden_ids",
    "model_info",
    "positions",
    "text_config",
]


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
    """A model's numbers for accounting and messages. ``longest`` window: by its config, if not given."""
    config = text_config(config)
    only_sliding = set(attention) == {"sliding_attention"}
    return ModelInfo(
        name=name,
        parameters=parameters,
        pair_flops=4 * head_numbers(config),
        window=window,
        sliding_window=attention["sliding_attention"][0] if only_sliding else None,
        threshold=threshold,
        longest=longest or positions(config),
    )


def head_numbers(config: Any, heads: str = "num_attention_heads") -> int:
    """Numbers of a token in the heads of all layers, which need not be alike (Gemma 4).

    Args:
        heads: "num_key_value_heads": as a cache holds them.
    """
    alike = not getattr(config, "is_heterogeneous", False)
    layers = [config] if alike else list(config.per_layer_config)
    total = 0
    for layer in layers:
        # A model without attention (behind servers) has no pairs to count.
        count = int(getattr(layer, "num_attention_heads", 0))
        size = int(getattr(layer, "head_dim", None) or layer.hidden_size // max(1, count))
        total += int(getattr(layer, heads, None) or count) * size
    return total * (int(config.num_hidden_layers) if alike else 1)


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
    }
    # What is no attention (linear, mamba) counts as full: servers run it, too.
    return {kind: sizes.get(kind, (None, None)) for kind in kinds}


def active_parameters(model: torch.nn.Module) -> int:
    """Parameters a token passes through: tied ones once, of experts only those that are chosen.

    Quantizers that keep weights in buffers (GPTQ, AWQ) hide them from this count.
    """
    config = text_config(model.config)
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    total = 0
    for name, parameter in model.named_parameters():
        share = chosen / experts if experts and chosen and ".experts." in name else 1.0
        total += round(_numbers(parameter) * share)
    return total


def _numbers(parameter: torch.nn.Parameter) -> int:
    """Weights in a parameter; bitsandbytes packs two four-bit ones into each byte."""
    packed = 2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1
    return parameter.numel() * packed


def positions(config: Any) -> int | None:
    """Positions the model was made for; None where its (text) config names no number."""
    return positions_by(lambda name: getattr(config, name, None))


def eos_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that the generation config or the tokenizer calls the end."""
    found: set[int] = set()
    for ids in (getattr(generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)


def hidden_ids(tokenizer: Any) -> frozenset[int]:
    """Special tokens have no text, but for those of the thinking markup."""
    shown = {token_id(tokenizer, tag) for tag in marking_tokens(tokenizer, reasoning_tags(tokenizer))}
    added = tokenizer.added_tokens_decoder.items()
    special = {index for index, token in added if token.special} | set(tokenizer.all_special_ids)
    return frozenset(special - shown)


def fingerprint(tokenizer: Any) -> str:
    """Equal for tokenizers whose ids mean the same strings."""
    entries = "\n".join(f"{index}\t{token}" for token, index in sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(entries.encode()).hexdigest()


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model."""
    return config.get_text_config(decoder=True)
