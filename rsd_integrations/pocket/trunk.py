"""The reward model's lower half: a language model whose predictions can be held against the text.

The residual stream [D] is split: the first ``D - code`` places are written by
the layers; the last ``code`` places hold the token's own code u and no layer
writes there. The head predicts the *code* p of the next token, so that
afterwards one attention head looking one place back can form u_t - p_{t-1}:
near zero where the text is what the trunk expects.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model

from rsd_integrations.pocket.model import EMBEDDING_SPREAD, new_model

CODE = 32
# Logits are SHARPNESS times minus half the squared distance between prediction and code.
DISTANCE_SHARPNESS = 2.0
NEARNESS = 0.05
# The comparison is made after a norm over the whole stream: what the layers write must not drown it.
SMALLNESS = 0.002


class TrunkModel(nn.Module):
    """A Qwen2 body and a head that predicts the next token's code.

    It has the same face as a causal LM (``model``, ``lm_head``), so the same
    training loop serves it.
    """

    def __init__(self, config: Qwen2Config, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model: Qwen2Model = new_model(config, seed).model
        self.head = nn.Linear(config.hidden_size, CODE, bias=False)
        nn.init.normal_(self.head.weight, std=EMBEDDING_SPREAD * config.hidden_size**-0.5)
        nn.init.ones_(self.model.norm.weight)
        nn.init.normal_(self.model.embed_tokens.weight[:, -CODE:], std=EMBEDDING_SPREAD)
        self.model.norm.register_forward_pre_hook(self._watch_stream)
        for layer in self.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.data[-CODE:] = 0.0
                projection.weight.register_hook(_keep_code_rows)

    def lm_head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] normed states -> [N, V] logits by distance to every token's code."""
        predicted_NC = self.head(hidden_ND)
        codes_VC = self.model.embed_tokens.weight[:, -CODE:]
        dots_NV = predicted_NC @ codes_VC.T
        return DISTANCE_SHARPNESS * (dots_NV - 0.5 * codes_VC.square().sum(-1))

    def auxiliary_loss(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """Pull predictions onto the codes, so that right means near, and keep the stream small."""
        codes_NC = self.model.embed_tokens.weight[targets_N, -CODE:]
        nearness = (self.head(hidden_ND) - codes_NC).square().sum(-1).mean()
        return NEARNESS * nearness + SMALLNESS * self._stream_size

    def _watch_stream(self, _norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._stream_size = inputs[0][..., :-CODE].square().mean()


def _keep_code_rows(grad: torch.Tensor) -> torch.Tensor:
    """No layer learns to write to the code places."""
    kept = grad.clone()
    kept[-CODE:] = 0.0
    return kept
