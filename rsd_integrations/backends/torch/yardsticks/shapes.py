"""Trios of true architectures with random weights, made on the device: nothing is downloaded."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
)

from rsd_integrations.backends.torch.threads import apart
from rsd_integrations.errors import ConfigError

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MARKS = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]


@dataclass(frozen=True)
class _Size:
    """The sizes of a Qwen2 model; with ``states``, heads of recurrent layers, of a Qwen 3.5, where these are
    three layers of four.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool = False
    states: int = 0
    head_size: int | None = None

    def config(self, **more: Any) -> PreTrainedConfig:
        """The config of a model of these sizes."""
        sizes = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "tie_word_embeddings": self.tied,
        }
        if not self.states:
            return Qwen2Config(**sizes, **more)
        size = (self.head_size or 0) // 2
        return Qwen3_5TextConfig(
            **sizes,
            head_dim=self.head_size,
            linear_num_value_heads=self.states,
            linear_num_key_heads=min(self.states, 16),
            linear_key_head_dim=size,
            linear_value_head_dim=size,
            **more,
        )


_TINY = {
    "draft": _Size(64, 2, 4, 2, 192, 1024),
    "target": _Size(192, 6, 6, 2, 768, 1024),
    "prm": _Size(96, 2, 4, 2, 288, 1024),
}
_TINY_RECURRENT = {
    "draft": _Size(64, 4, 4, 2, 192, 1024, states=4, head_size=32),
    "target": _Size(192, 8, 6, 2, 768, 1024, states=8, head_size=32),
    "prm": _TINY["prm"],
}
_HALF = _Size(896, 24, 14, 2, 4864, 151_936, tied=True)
_SMALL = _Size(1536, 28, 12, 2, 8960, 151_936, tied=True)
_SEVEN = _Size(3584, 28, 28, 4, 18_944, 152_064)
_THIRTY_TWO = _Size(5120, 64, 40, 8, 27_648, 152_064)
_RECURRENT_SMALL = _Size(1024, 24, 8, 2, 3584, 248_320, tied=True, states=16, head_size=256)
_RECURRENT_NINE = _Size(4096, 32, 16, 4, 12_288, 248_320, states=32, head_size=256)

SHAPES: dict[str, dict[str, _Size]] = {
    "tiny": _TINY,
    "tiny-recurrent": _TINY_RECURRENT,
    "0.5b-1.5b-prm1.5b": {"draft": _HALF, "target": _SMALL, "prm": _SMALL},
    "1.5b-7b-prm1.5b": {"draft": _SMALL, "target": _SEVEN, "prm": _SMALL},
    "1.5b-7b-prm7b": {"draft": _SMALL, "target": _SEVEN, "prm": _SEVEN},
    "1.5b-32b-prm7b": {"draft": _SMALL, "target": _THIRTY_TWO, "prm": _SEVEN},
    "0.8b-9b-recurrent-prm1.5b": {"draft": _RECURRENT_SMALL, "target": _RECURRENT_NINE, "prm": _SMALL},
}
"""Draft, target and PRM of each shape; the large ones are Qwen2.5's, the recurrent ones Qwen 3.5's."""


def random_trio(shape: str, *, device: str, dtype: str, window: int) -> dict[str, tuple[Any, Any]]:
    """(model, tokenizer) of each role. Greedy, the models write printable characters and never end an answer.

    Raises:
        ConfigError: the shape or the dtype is not known.
    """
    if shape not in SHAPES:
        raise ConfigError(f"shape {shape!r} is not known.", hint=f"Use pocket, {', '.join(SHAPES)}.")
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ConfigError(f"dtype {dtype!r} is not known.", hint="Use float32, bfloat16 or float16.")
    tokenizer = byte_tokenizer()

    def make() -> dict[str, tuple[Any, Any]]:
        return {
            role: (_model(role, size, tokenizer, device=device, dtype=kind, window=window), tokenizer)
            for role, size in SHAPES[shape].items()
        }

    return apart(device, make)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with ChatML: prompts of any length can be spelled."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_MARKS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_MARKS[0], pad_token=_MARKS[2], chat_template=_CHATML
    )


def _model(
    role: str, size: _Size, tokenizer: Any, *, device: str, dtype: torch.dtype, window: int
) -> torch.nn.Module:
    config = size.config(
        max_position_embeddings=window,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=2,
    )
    auto = AutoModelForTokenClassification if role == "prm" else AutoModelForCausalLM
    # Made on their device: two copies of 32 billion parameters would not fit.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(len(role))
            model: torch.nn.Module = auto.from_config(config, dtype=dtype).eval()
    finally:
        torch.set_default_dtype(before)
    if role != "prm":
        _write_text_only(model, tokenizer)
    return model


@torch.no_grad()
def _write_text_only(model: Any, tokenizer: Any) -> None:
    """Give all other tokens a logit of 0, which the largest of so many random ones exceeds.

    Most ids of a large vocabulary are no text here, and an invalid byte becomes three: the PRM would read
    other steps than were written. With tied embeddings the model reads all other tokens as zeros.
    """
    head = model.get_output_embeddings().weight
    printable = tokenizer.convert_tokens_to_ids(
        list(string.ascii_letters + string.digits + string.punctuation)
    )
    kept = head[printable].clone()
    head.zero_()
    head[printable] = kept
