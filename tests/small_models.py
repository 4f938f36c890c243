"""Tiny models with random weights, of the architectures that reward models have."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.35,
}
CONFIGS: dict[str, Any] = {"qwen2": Qwen2Config, "llama": LlamaConfig, "mistral": MistralConfig}


def small_config(family: str, vocabulary: int, **more: Any) -> Any:
    """A config of a few thousand parameters; its weights are large enough to make outputs differ."""
    return CONFIGS[family](vocab_size=vocabulary, **{**SIZES, **more})


def small_model(model_class: Any, config: Any, seed: int = 0) -> Any:
    """Random weights, biases included."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model
