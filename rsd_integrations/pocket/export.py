"""Export the trained Qwen2 models as Llama models of the same function.

``AutoTokenizer`` gives every folder of model_type "qwen2" a Qwen2Tokenizer with Qwen's own
pre-tokenizer, whatever its tokenizer.json says, and would cut the task's words into letters. For
"llama" it takes the declared tokenizer. A Qwen2 is a Llama with attention biases whose output
projection has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

_CLASSES: dict[str, Any] = {
    "Qwen2ForCausalLM": LlamaForCausalLM,
    "Qwen2ForTokenClassification": LlamaForTokenClassification,
}
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "num_labels",
    "id2label",
    "label2id",
    "dtype",
)
_OWN = ("rsd_prm",)


@torch.no_grad()
def as_llama(model: Any) -> Any:
    """The same function as a Llama.

    Raises:
        RuntimeError: the two do not agree to rounding.
    """
    kind = _CLASSES[type(model).__name__]
    fields = {name: value for name in _SHARED if (value := getattr(model.config, name, None)) is not None}
    config = LlamaConfig(**fields, attention_bias=True)
    for name in _OWN:
        if hasattr(model.config, name):
            setattr(config, name, getattr(model.config, name))
    llama = kind(config).eval()
    for parameter in llama.parameters():
        parameter.zero_()
    missing, unexpected = llama.load_state_dict(model.state_dict(), strict=False)
    if unexpected or any(not name.endswith("o_proj.bias") for name in missing):
        raise RuntimeError(f"cannot export: missing {missing!r}, unexpected {unexpected!r}")
    if getattr(model, "generation_config", None) is not None:
        llama.generation_config = model.generation_config
    ids = torch.arange(3, 43)[None] % model.config.vocab_size
    difference = float((model.eval()(ids).logits - llama(ids).logits).abs().max())
    if difference > 1e-4:
        raise RuntimeError(f"the exported model differs by {difference}")
    return llama


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model folder that loads by the Auto classes.

    Raises:
        RuntimeError: the folder's tokenizer does not cut text as ours does.
    """
    as_llama(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = "Ava has 12 marbles. She buys 9 more: 12 + 9 = 21.\n\nThe answer is \\boxed{21}."
    if AutoTokenizer.from_pretrained(str(folder)).encode(text) != tokenizer.encode(text):
        raise RuntimeError(f"the tokenizer in {folder} does not load as it was saved")
