"""The process reward model: a frozen language model, a comparison, and a verdict at every step's end.

All of it is one standard Qwen2ForTokenClassification. The lower layers are the
trunk. The next layer subtracts the trunk's prediction, made one place back,
from the code of the token that came, and squares it. The last layer gathers
these surprises over the step at its separator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2ForTokenClassification

from rsd_integrations.pocket.data import Batch, collate
from rsd_integrations.pocket.loop import Budget, Recipe, Report, TrainState, train
from rsd_integrations.pocket.model import give_look_back_head, make_config
from rsd_integrations.pocket.rollouts import Judged, encode_judged, spoilt
from rsd_integrations.pocket.trunk import CODE, TrunkModel

LOOK_BACK_SHARPNESS = 60.0
SURPRISE = 0  # the residual place that carries the squared surprise
SURPRISE_SIZE = 6.0
SPOILT_SHARE = 0.4  # of the examples, beside what the models wrote


@torch.no_grad()
def build_prm(trunk: TrunkModel, seed: int) -> Qwen2ForTokenClassification:
    """The trunk with a comparing and a gathering layer on top; ready to train."""
    torch.manual_seed(seed)
    old = trunk.config
    config = make_config(
        old.vocab_size, hidden=old.hidden_size, layers=old.num_hidden_layers + 2,
        heads=old.num_attention_heads, mlp=old.intermediate_size, head_dim=old.head_dim,
    )  # fmt: skip
    config.num_labels = 2
    config.tie_word_embeddings = False
    prm = Qwen2ForTokenClassification(config)
    prm.model.embed_tokens.load_state_dict(trunk.model.embed_tokens.state_dict())
    for ours, theirs in zip(prm.model.layers, trunk.model.layers, strict=False):
        ours.load_state_dict(theirs.state_dict())
    compare, gather = prm.model.layers[-2:]
    _init_small(compare.mlp, gather)
    _set_comparison(compare, trunk)
    _set_gathering(gather)
    nn.init.normal_(prm.score.weight, std=0.05)
    nn.init.zeros_(prm.score.bias)
    return prm


def _init_small(*modules: nn.Module) -> None:
    for module in modules:
        for name, weight in module.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * (0.3 if residual else 1.0))


def _set_comparison(layer: Any, trunk: TrunkModel) -> None:
    """Attention makes u_t - p_{t-1} in the code places; pairs of MLP units square it.

    Two SwiGLU units with opposite signs give a product exactly:
    silu(z)z + silu(-z)(-z) = z^2.
    """
    attention, mlp = layer.self_attn, layer.mlp
    layer.input_layernorm.weight.copy_(trunk.model.norm.weight)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        for weight in projection.parameters():
            weight.zero_()
    for head in range(CODE // attention.head_dim):
        give_look_back_head(attention, head, 1, LOOK_BACK_SHARPNESS)
    attention.v_proj.weight[:CODE] = trunk.head.weight
    attention.o_proj.weight[-CODE:, :CODE] = -torch.eye(CODE)
    identity = torch.zeros(2 * CODE, mlp.gate_proj.weight.shape[1])
    identity[:CODE, -CODE:] = torch.eye(CODE)
    identity[CODE:, -CODE:] = -torch.eye(CODE)
    mlp.gate_proj.weight[: 2 * CODE] = 3.0 * identity
    mlp.up_proj.weight[: 2 * CODE] = 3.0 * identity
    mlp.down_proj.weight[:, : 2 * CODE] *= 0.1
    mlp.down_proj.weight[SURPRISE, : 2 * CODE] = SURPRISE_SIZE


def _set_gathering(layer: Any) -> None:
    """Head 0 starts by looking at the most surprising token of the last twenty or so."""
    attention = layer.self_attn
    slow, near = attention.head_dim // 2 - 1, 3  # RoPE pairs: nearly positionless, and about 30 tokens wide
    attention.q_proj.weight[: attention.head_dim] *= 0.1
    attention.k_proj.weight[: attention.head_dim] *= 0.1
    attention.q_proj.bias[slow] = 4.0
    attention.k_proj.weight[slow, SURPRISE] = 2.0
    attention.q_proj.bias[near] = attention.k_proj.bias[near] = 5.0
    attention.v_proj.weight[0, SURPRISE] = 3.0


def freeze_trunk(prm: Any) -> None:
    """Leave to training only the comparing MLP, the gathering layer and the head."""
    for weight in prm.parameters():
        weight.requires_grad_(False)
    compare, gather = prm.model.layers[-2:]
    trained = (compare.post_attention_layernorm, compare.mlp, gather, prm.model.norm, prm.score)
    for module in trained:
        for weight in module.parameters():
            weight.requires_grad_(True)


def prm_batches(
    tokenizer: Any, records: Sequence[Judged], seed: int, *, size: int, start: int = 0
) -> Iterator[Batch]:
    """Batches for ever: spoilt gold solutions mixed with what the models wrote."""
    pool, number = 16, start // 16
    skip = start % pool
    while True:
        rng = random.Random(f"prm/{seed}/{number}")
        fresh = spoilt(rng.getrandbits(40), rng.choice((0.1, 0.3)))
        made = list(islice(fresh, int(size * pool * SPOILT_SHARE) if records else size * pool))
        made += rng.choices(records, k=size * pool - len(made)) if records else []
        examples = sorted((encode_judged(tokenizer, record) for record in made), key=lambda one: len(one[0]))
        for index in rng.sample(range(pool), pool)[skip:]:
            yield collate(examples[index * size : (index + 1) * size])
        number, skip = number + 1, 0


def verdict_loss(prm: Any, batch: Batch, device: str) -> torch.Tensor:
    """Mean cross-entropy over the separators."""
    logits_BTC = prm(input_ids=batch.ids_BT.to(device), use_cache=False).logits
    return nn.functional.cross_entropy(logits_BTC.flatten(0, 1), batch.labels_BT.to(device).flatten())


def train_prm(
    prm: Any, tokenizer: Any, records: Sequence[Judged], budget: Budget, folder: Path, *,
    seed: int, device: str = "cpu", report: Report = print,
) -> TrainState:  # fmt: skip
    """Train the unfrozen weights on labelled steps; resumes from ``folder``."""
    recipe = Recipe(seed=seed, muon_lr=0.004)

    def stream(start: int) -> Iterator[Batch]:
        return prm_batches(tokenizer, records, seed, size=recipe.size, start=start)

    return train(
        prm, stream, verdict_loss,
        name=folder.name, recipe=recipe, budget=budget, folder=folder, device=device, report=report,
    )  # fmt: skip
