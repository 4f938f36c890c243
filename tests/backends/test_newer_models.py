"""Architectures of today's reasoning models, tiny and random: heads that differ by layer, sinks, experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from rsd_integrations.backends.shared.describe import head_numbers
from rsd_integrations.pipeline import RSDPipeline
from tests.tiny_models import token_classifier, tokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "sliding_window": 16,
    "initializer_range": 0.6,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
NEWER: dict[str, dict[str, Any]] = {
    "GptOss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attn_implementation": "eager",
    },
    "Gemma4": {
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 16,
        "vocab_size_per_layer_input": 1,
        "hidden_size_per_layer_input": 0,
    },
}


def made(name: str) -> Any:
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config", None)
    if config is None:
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(0)
    fields = {**SMALL, **NEWER[name], "vocab_size": len(tokenizer("ascii"))}
    model = getattr(transformers, f"{name}ForCausalLM")(config(**fields)).eval()
    model.generation_config.eos_token_id = tokenizer("ascii").eos_token_id
    model.generation_config.pad_token_id = tokenizer("ascii").pad_token_id
    return model


@pytest.mark.parametrize("name", NEWER)
def test_they_write_what_generate_writes(name: str) -> None:
    tok, model = tokenizer("ascii"), made(name)
    ids = tok.apply_chat_template(
        [{"role": "user", "content": "hello there"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    written = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    prm = (token_classifier(0, "ascii"), tok)
    with RSDPipeline.from_pretrained((model, tok), (model, tok), prm, device="cpu") as pipe:
        for threshold in (0.0, 1.1, 0.5):
            out = pipe.generate("hello there", max_tokens=24, threshold=threshold, temperature=0)
            assert out.text == tok.decode(written, skip_special_tokens=True)


def test_heads_that_differ_are_counted_as_they_are() -> None:
    config = made("Gemma4").config
    assert head_numbers(config) == 4 * 8 + 4 * 16
    assert head_numbers(config, "num_key_value_heads") == 2 * 8 + 2 * 16
