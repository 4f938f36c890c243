"""From logits to tokens: one uniform number a token, by inverse CDF.

The draws belong to the request, so what it gets does not depend on the rows beside it.
"""

from __future__ import annotations

import torch

from rsd_integrations.protocols import Sampling

__all__ = ["draw", "filtered_probabilities"]


def draw(logits_V: torch.Tensor, sampling: Sampling) -> int:
    """A token id from logits, which must hold a finite number. Greedy draws nothing."""
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    cumulative_V = filtered_probabilities(logits_V, sampling).cumsum(dim=-1)
    point = sampling.draw() * float(cumulative_V[-1])
    token = int(torch.searchsorted(cumulative_V, point, right=True))
    # Rounding may put the point on the last step of the staircase: the last token with any mass.
    return min(token, int(torch.searchsorted(cumulative_V, cumulative_V[-1])))


def filtered_probabilities(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities after temperature, top_k and top_p in this order, in double precision."""
    # Apple's GPUs have no double precision.
    logits_V = logits_V.cpu() if logits_V.device.type == "mps" else logits_V
    # The largest logit becomes 0: no temperature, however small, makes it infinite.
    scaled_V = (logits_V.double() - logits_V.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled_V.numel():
        least = scaled_V.topk(sampling.top_k).values[-1]
        scaled_V = scaled_V.masked_fill(scaled_V < least, -torch.inf)
    probabilities_V = scaled_V.softmax(dim=-1)
    if sampling.top_p < 1.0:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        # A token stays if those before it have not reached top_p; the first always stays.
        before_V = sorted_V.cumsum(dim=-1) - sorted_V
        dropped_V = order_V[before_V >= sampling.top_p]
        probabilities_V = probabilities_V.index_fill(0, dropped_V, 0.0)
    return probabilities_V
