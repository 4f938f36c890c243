"""Tiny random-weight models of real architectures, and tokenizers for them. Nothing is downloaded."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rsd_integrations.backends.shared.sources import Source
from rsd_integrations.backends.torch.memory import ModelMemory, model_memory
from rsd_integrations.types import Role
from tests.keyed_templates import TEMPLATES

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}"
    "{% if message.content %}\n{{ message.content }}{% endif %}"
    '{% for call in message.tool_calls or [] %}\n<tool_call>\n{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n'
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML whose model is told of tools and calls them as Hermes does, as Qwen 2.5's."""

ABLE = {
    "tools": (CHATML_TOOLS, ("<tool_call>", "</tool_call>")),
    "keyed": TEMPLATES["Qwen3-Coder"],
    "gemma": TEMPLATES["Gemma 4"],
}
"""Templates with tools, and the tokens that mark calls."""

_CORPUS = [
    "Ava has 12 marbles. She buys 9 more.\n\nNow she has 12 + 9 = 21.\n\nThe answer is \\boxed{21}.",
    "First we add the numbers.\n\nThen, we take away three of them;\n\n\nso there are four left over.\n",
]


_ASCII = [*map(chr, range(33, 127)), "\u0120", "\u010a"]
"""Printable ASCII, space and line break, as byte-level vocabularies spell them."""


@functools.cache
def tokenizer(flavour: str = "a") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML; another flavour has other ids for the same text.

    "ascii" and "ascii-b" have no token for half a character, so that whatever random weights write
    is text. "tools" and "tools-b" are these with tools in the template; "keyed" and "keyed-b" write calls
    as Qwen3-Coder does, "gemma" and "gemma-b" as Gemma 4.
    """
    if (kind := flavour.partition("-")[0]) in ABLE:
        able = copy.deepcopy(tokenizer(flavour.replace(kind, "ascii")))
        able.chat_template, marks = ABLE[kind]
        able.add_tokens(list(marks), special_tokens=kind == "gemma")
        return able
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    first = flavour in ("a", "ascii")
    extra = [] if first else ["<pad>"]
    ascii_only = flavour.startswith("ascii")
    alphabet = _ASCII if ascii_only else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=(340 if first else 320) - (160 if ascii_only else 0),
        special_tokens=[*extra, *special],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS if first else _CORPUS[:1], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Llama": {},
    "Mistral": {"sliding_window": 16},
    "Gemma2": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "Gemma3Text": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "Phi3": {"sliding_window": 16, "pad_token_id": 0},
    "GPTNeoX": {},
    "GPT2": {},
    "Gemma4Text": {
        "head_dim": 16,
        "global_head_dim": 32,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": 16,
        "hidden_size_per_layer_input": 8,
    },
}


EXPERTS: dict[str, dict[str, Any]] = {
    "GptOss": {"head_dim": 16, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    # Whose attention is latent besides.
    "DeepseekV3": {
        **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16},
        **{"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        **{"moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_shared_experts": 1},
    },
}
"""Which tokens go where is known while they are computed only, so these are called."""

_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}

RECURRENT: dict[str, dict[str, Any]] = {
    "Qwen3_5Text": {"layer_types": ["linear_attention", "full_attention"], **_DELTA},
    "Qwen3Next": {
        "layer_types": ["linear_attention", "full_attention"],
        "shared_expert_intermediate_size": 16,
        **_DELTA,
        **_EXPERTS,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "FalconH1": {**_MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_n_groups": 1},
    "GraniteMoeHybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 32,
        **_MAMBA,
    },
    "Bamba": {"attn_layer_indices": [1], "mamba_n_groups": 1, **_MAMBA},
}
"""Some of whose layers keep a state instead of all that they have read."""
if hasattr(transformers, "Lfm3Config"):  # Which attends in two ways besides.
    layers = ["conv", "full_attention", "sliding_attention"]
    RECURRENT["Lfm3"] = {
        "num_hidden_layers": 3,
        "layer_types": layers,
        "sliding_window": 16,
        "pad_token_id": 0,
    }


def config(architecture: str, *, seed_vocabulary: int, **more: Any) -> Any:
    """A config of two or three small layers."""
    fields: dict[str, Any] = {
        "vocab_size": seed_vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
        "initializer_range": 0.6,
    }
    if architecture == "GPT2":
        fields |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            del fields[name]
    if architecture == "Gemma4Text":
        fields["vocab_size_per_layer_input"] = seed_vocabulary
    fields |= {**ARCHITECTURES, **EXPERTS, **RECURRENT}[architecture] | more
    return getattr(transformers, f"{architecture}Config")(**fields)


@functools.cache
def causal(architecture: str = "Qwen2", seed: int = 0, flavour: str = "a", **more: Any) -> PreTrainedModel:
    """A causal LM in fp32 with random weights, its tokenizer's end of sequence included."""
    tok = tokenizer(flavour)
    made = config(architecture, seed_vocabulary=len(tok), **more)
    odd = {"GPT2": "GPT2LMHeadModel"}
    kind = odd.get(architecture, f"{architecture.removesuffix('Text')}ForCausalLM")
    torch.manual_seed(seed)
    return shaken(getattr(transformers, kind)(made), tok)


def shaken(model: Any, tok: PreTrainedTokenizerFast) -> Any:
    """A new model to write with: of random weights, some norms and biases are constants, and each one is to
    matter.
    """
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.generation_config.eos_token_id = tok.eos_token_id
    model.generation_config.pad_token_id = tok.pad_token_id
    return model


@functools.cache
def token_classifier(
    seed: int = 0, flavour: str = "a", architecture: str = "Qwen2", **more: Any
) -> PreTrainedModel:
    """A TRL-style PRM: two labels a token."""
    made = config(architecture, seed_vocabulary=len(tokenizer(flavour)), num_labels=2, **more)
    made.rsd_prm = {"format": "trl", "chat": True, "separator": "\n\n"}
    torch.manual_seed(1000 + seed)
    kind = f"{architecture.removesuffix('Text')}ForTokenClassification"
    model = getattr(transformers, kind)(made).eval()
    with torch.no_grad():
        model.score.weight.mul_(0.4)
    return model


def memory_of(
    role: Role, model: Any, options: Any = None, *, dtype: str = "auto", max_length: int = 4096
) -> ModelMemory:
    """What a model takes on the CPU."""
    return model_memory(Source.of(role, model, options), "cpu", dtype, max_length)


def trio(
    draft: Any = "Qwen2", target: Any = "Llama", flavours: str | Sequence[str] = "ascii", **more: Any
) -> dict[str, Any]:
    """Draft, target and PRM with their tokenizers, as ``from_pretrained`` takes them.

    Args:
        draft: an architecture, or a model.
        target: likewise.
        flavours: of all three tokenizers, or of each.
        more: fields of the architectures' configs.
    """
    three = (flavours,) * 3 if isinstance(flavours, str) else flavours
    writers = [
        causal(kind, seed, three[seed], **more) if isinstance(kind, str) else kind
        for seed, kind in enumerate((draft, target))
    ]
    models = {"draft": writers[0], "target": writers[1], "prm": token_classifier(0, three[2])}
    toks = map(tokenizer, three)
    return {role: (model, tok) for (role, model), tok in zip(models.items(), toks, strict=True)}


def saved(sources: dict[str, Any], root: Path) -> dict[str, str]:
    """Such models and tokenizers written to a folder each."""
    for role, parts in sources.items():
        for part in parts:
            part.save_pretrained(root / role)
    return {role: str(root / role) for role in sources}
