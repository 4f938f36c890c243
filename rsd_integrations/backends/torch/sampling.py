"""From logits to tokens: one uniform number a token, by inverse CDF.

The draws belong to the request, so what it gets does not depend on the rows beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rsd_integrations.protocols import Sampling

__all__ = ["Draws", "Row", "draw", "draw_rows", "filtered_probabilities", "penalized"]


class Draws:
    """Uniform numbers that can be looked at before they are taken.

    Args:
        source: gives the next one.
    """

    def __init__(self, source: Callable[[], float]) -> None:
        self.source = source
        self._seen: deque[float] = deque()

    def look(self, count: int) -> list[float]:
        """The next so many, which stay."""
        while len(self._seen) < count:
            self._seen.append(self.source())
        return list(self._seen)[:count]

    def take(self) -> float:
        """The next one."""
        return self._seen.popleft() if self._seen else self.source()


@dataclass(frozen=True, slots=True)
class Row:
    """Logits of one request at R places ``[R, V]``, and a uniform number for each."""

    logits_RV: torch.Tensor
    sampling: Sampling
    points: Sequence[float]


def draw(logits_V: torch.Tensor, sampling: Sampling) -> int:
    """A token id from logits, which must hold a finite number. Greedy draws nothing."""
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    return draw_rows([Row(logits_V[None], sampling, [sampling.draw()])])[0][0]


def draw_rows(rows: Sequence[Row]) -> list[list[int]]:
    """A token id for each place of each row, all above temperature 0; the host waits for them once."""
    alike: dict[tuple[float, float, int | None, float], list[int]] = {}
    for index, row in enumerate(rows):
        how = row.sampling
        alike.setdefault((how.temperature, how.top_p, how.top_k, how.min_p), []).append(index)
    order = [index for group in alike.values() for index in group]
    drawn_M = torch.cat([_draw_alike([rows[index] for index in group]) for group in alike.values()])
    tokens, start = drawn_M.tolist(), 0
    made: dict[int, list[int]] = {}
    for index in order:
        end = start + len(rows[index].points)
        made[index], start = tokens[start:end], end
    return [made[index] for index in range(len(rows))]


def _draw_alike(rows: Sequence[Row]) -> torch.Tensor:
    """Token ids ``[M]`` at the places of rows with the same filters, one behind the other."""
    logits_MV = torch.cat([row.logits_RV for row in rows])
    # Before anything is computed: such a copy waits for what was launched.
    point_M = torch.tensor([point for row in rows for point in row.points], dtype=torch.float64, device="cpu")
    point_M = point_M if logits_MV.device.type == "mps" else point_M.to(logits_MV.device)
    cumulative_MV = filtered_probabilities(logits_MV, rows[0].sampling).cumsum(dim=-1)
    total_M1 = cumulative_MV[:, -1:]
    point_M1 = point_M[:, None] * total_M1
    token_M1 = torch.searchsorted(cumulative_MV, point_M1, right=True)
    # Rounding may put the point on the last step of the staircase: the last token with any mass.
    return token_M1.minimum(torch.searchsorted(cumulative_MV, total_M1.contiguous()))[:, 0]


def penalized(logits_V: torch.Tensor, before_L: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits by which tokens that were there before are less likely (CTRL, arXiv 1909.05858).

    Args:
        before_L: tokens of the prompt and the answer so far, ``[L]``.
        penalty: above 0; below 1 it makes them likelier.
    """
    theirs_L = logits_V[before_L]
    return logits_V.scatter(0, before_L, torch.where(theirs_L < 0.0, theirs_L * penalty, theirs_L / penalty))


def filtered_probabilities(logits_MV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What stays of the probabilities after temperature, top_k, top_p and min_p in this order, in double
    precision, ``[..., V]``.
    """
    # Apple's GPUs have no double precision.
    logits_MV = logits_MV.cpu() if logits_MV.device.type == "mps" else logits_MV
    # The largest logit becomes 0: no temperature, however small, makes it infinite.
    scaled_MV = (logits_MV.double() - logits_MV.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled_MV.shape[-1]:
        least_M1 = scaled_MV.topk(sampling.top_k).values[..., -1:]
        scaled_MV = scaled_MV.masked_fill(scaled_MV < least_M1, -torch.inf)
    probabilities_MV = scaled_MV.softmax(dim=-1)
    if sampling.top_p < 1.0:
        sorted_MV, order_MV = probabilities_MV.sort(descending=True, stable=True)
        # A token stays if those before it have not reached top_p; the first always stays.
        before_MV = sorted_MV.cumsum(dim=-1) - sorted_MV
        kept_MV = sorted_MV.masked_fill(before_MV >= sampling.top_p, 0.0)
        probabilities_MV = torch.zeros_like(probabilities_MV).scatter(-1, order_MV, kept_MV)
    if sampling.min_p > 0.0:
        least_M1 = probabilities_MV.amax(dim=-1, keepdim=True) * sampling.min_p
        probabilities_MV = probabilities_MV.masked_fill(probabilities_MV < least_M1, 0.0)
    return probabilities_MV
