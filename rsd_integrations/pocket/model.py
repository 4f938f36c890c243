"""Shapes and beginnings of the trio's models: standard Qwen2, with one head given a start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from rsd_integrations.pocket.tokenizer import MAX_LENGTH

# How sharply a given head looks back (logit gap to the next-best place).
SHARPNESS = 12.0
EMBEDDING_SPREAD = 0.5
# One token back finds what followed a word before; two tokens back tells "pays $" from "finds $".
LOOK_BACK = (1, 2)


def make_config(
    vocab_size: int, *, hidden: int, layers: int, heads: int, mlp: int, head_dim: int | None = None
) -> Qwen2Config:
    """A small Qwen2 configuration in the tokenizer's ids (tied embeddings, fp32)."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    config.head_dim = head_dim or hidden // heads
    return config


def new_model(config: Qwen2Config, seed: int) -> Qwen2ForCausalLM:
    """A freshly initialised model whose first heads already look 1, 2, ... tokens back."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            scale = EMBEDDING_SPREAD if "embed" in name else 1.0 / math.sqrt(weight.shape[1])
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=scale * (0.3 if residual else 1.0))
    # Large embeddings are not drowned by the first layers; the final norm brings logits back to size.
    nn.init.constant_(model.model.norm.weight, 1.0 / (EMBEDDING_SPREAD * math.sqrt(config.hidden_size)))
    for head, distance in enumerate(LOOK_BACK):
        give_look_back_head(model.model.layers[0].self_attn, head, distance)
    return model


@torch.no_grad()
def give_look_back_head(attention: Any, head: int, distance: int, sharpness: float = SHARPNESS) -> None:
    """Make one head attend ``distance`` tokens back, through q/k biases and RoPE alone.

    With constant queries and keys the score depends on the distance only; the
    query bias is the key bias turned back by that distance, so it peaks there.
    """
    dim = attention.head_dim
    rows = slice(head * dim, (head + 1) * dim)
    half = dim // 2
    angles = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    spread = (1 - torch.cos(angles)).sum()  # score lost from one place off, for unit keys
    size = math.sqrt(sharpness * math.sqrt(dim) / float(spread))
    attention.q_proj.weight[rows] = 0.0
    attention.k_proj.weight[rows] = 0.0
    attention.k_proj.bias[rows] = torch.cat([torch.ones(half), torch.zeros(half)]) * size
    turned = torch.cat([torch.cos(-distance * angles), torch.sin(-distance * angles)]).float() * size
    attention.q_proj.bias[rows] = turned


def count_parameters(model: nn.Module) -> int:
    """All parameters, tied ones once."""
    return sum(weight.numel() for weight in model.parameters())


@torch.no_grad()
def grow(model: Qwen2ForCausalLM, *, layers: int, heads: int, mlp: int, seed: int) -> Qwen2ForCausalLM:
    """A larger model that computes the same function.

    New heads and MLP units write nothing yet (zero output columns) and new
    layers stand above the old ones with zero outputs, so training goes on
    from exactly where the small model stood.
    """
    old = model.config
    config = make_config(
        old.vocab_size, hidden=old.hidden_size, layers=layers, heads=heads, mlp=mlp, head_dim=old.head_dim
    )
    grown = new_model(config, seed)
    targets = dict(grown.named_parameters())
    for name, weight in targets.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
        elif name.endswith("norm.weight"):
            weight.fill_(1.0)
    for name, weight in model.named_parameters():
        corner = tuple(slice(0, size) for size in weight.shape)
        targets[name][corner] = weight
    return grown


class HalfLinear(nn.Linear):
    """A Linear whose matrix products run in bfloat16, weights and gradients staying float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] float32 -> [..., out] float32."""
        return _HalfProduct.apply(x, self.weight, self.bias)


class _HalfProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x_ND, w_OD = x.flatten(0, -2).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x_ND, w_OD)
        ctx.has_bias = bias is not None
        out = (x_ND @ w_OD.T).float()
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_ND, w_OD = ctx.saved_tensors
        grad = grads[0]
        g_NO = grad.flatten(0, -2)
        half = g_NO.bfloat16()
        grad_x = (half @ w_OD).float().view(*grad.shape[:-1], -1)
        return grad_x, (half.T @ x_ND).float(), g_NO.sum(0) if ctx.has_bias else None


def use_half_products(model: nn.Module, on: bool = True) -> None:
    """Switch every Linear of a model to bfloat16 products (or back); the weights do not change."""
    for module in model.modules():
        if type(module) in (nn.Linear, HalfLinear):
            module.__class__ = HalfLinear if on else nn.Linear
