"""The form the trio is shipped in: the trained Qwen2 weights as a Llama with attention biases.

The two are the same function (Qwen2 is Llama with q, k and v biases). The
reason is the tokenizer: transformers 5 reads every folder whose config says
``qwen2`` with Qwen's own way of cutting text, whatever its tokenizer file says.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    Qwen2ForTokenClassification,
)

COPIED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings", "eos_token_id", "pad_token_id",
)  # fmt: skip


@torch.no_grad()
def as_llama(model: Any) -> Any:
    """The same function as a Llama model; its extra output biases are zero."""
    old = model.config
    config = LlamaConfig(attention_bias=True, bos_token_id=None, **{key: getattr(old, key) for key in COPIED})
    judging = isinstance(model, Qwen2ForTokenClassification)
    if judging:
        config.num_labels = old.num_labels
    shipped = (LlamaForTokenClassification if judging else LlamaForCausalLM)(config)
    weights = shipped.state_dict()
    for name in weights:
        if name.endswith("o_proj.bias"):
            weights[name].zero_()
    shipped.load_state_dict({**weights, **model.state_dict()})
    if hasattr(old, "rsd_prm"):
        shipped.config.rsd_prm = old.rsd_prm
    return shipped.eval()
