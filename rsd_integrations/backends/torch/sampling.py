"""From logits to tokens: one uniform number a token, by inverse CDF.

The draws belong to the request, so what it gets does not depend on the rows beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rsd_integrations.protocols import Sampling

LIKELIEST = 512
"""Tokens among which filters look first: to sort a large vocabulary takes as long as a small forward."""

_AT_ONCE = 2**18
"""Logits that a CPU works on at once. More do not stay in its caches from one operation to the next."""


class Draws:
    """Uniform numbers that can be looked at before they are taken.

    Args:
        source: gives the next one.
    """

    def __init__(self, source: Callable[[], float]) -> None:
        self.source = source
        self._seen: deque[float] = deque()

    def look(self, count: int) -> list[float]:
        """The next ``count`` numbers, which are not taken."""
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
    """A token id for each place of each row, all above temperature 0; the host waits for them once, and once
    more where the likeliest tokens did not suffice.
    """
    made = _drawn(rows, _of_likeliest)
    if left := [index for index, tokens in enumerate(made) if -1 in tokens]:
        for index, tokens in zip(left, _drawn([rows[index] for index in left], _of_all), strict=True):
            made[index] = tokens
    return made


def _drawn(rows: Sequence[Row], way: Callable[..., torch.Tensor]) -> list[list[int]]:
    portions = list(_portions(rows))
    drawn_M = torch.cat([_draw_alike([rows[index] for index in portion], way) for portion in portions])
    tokens, start = drawn_M.tolist(), 0
    made: dict[int, list[int]] = {}
    for index in (index for portion in portions for index in portion):
        end = start + len(rows[index].points)
        made[index], start = tokens[start:end], end
    return [made[index] for index in range(len(rows))]


def _portions(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Indices of rows with the same filters, which are drawn together."""
    alike: dict[Sampling, list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(row.sampling, []).append(index)
    logits_RV = rows[0].logits_RV
    most = max(1, _AT_ONCE // logits_RV.shape[-1]) if logits_RV.device.type == "cpu" else len(rows)
    for group in alike.values():
        yield from (group[start : start + most] for start in range(0, len(group), most))


def _draw_alike(rows: Sequence[Row], way: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Token ids ``[M]`` at the places of rows with the same filters, one behind the other; -1 where ``way``
    finds none.
    """
    logits_MV = torch.cat([row.logits_RV for row in rows]) if len(rows) > 1 else rows[0].logits_RV
    # Before anything is computed: a copy to the device waits for all that was launched.
    point_M = torch.tensor([point for row in rows for point in row.points], dtype=torch.float64, device="cpu")
    # Apple's GPUs and some of Intel's have no double precision.
    logits_MV = logits_MV if logits_MV.device.type in ("cpu", "cuda") else logits_MV.cpu()
    return way(logits_MV, point_M.to(logits_MV.device), rows[0].sampling)


def _of_all(logits_MV: torch.Tensor, point_M: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Tokens ``[M]`` of the whole vocabulary."""
    return _climb(filtered_probabilities(logits_MV, sampling), point_M)


def _of_likeliest(logits_MV: torch.Tensor, point_M: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The same tokens ``[M]``, found among the likeliest; -1 where the filters may let others through."""
    vocabulary = logits_MV.shape[-1]
    count = max(LIKELIEST, 2 * (sampling.top_k or 0))
    free = sampling.top_k is None and sampling.top_p >= 1.0 and sampling.min_p <= 0.0
    if free or 2 * count > vocabulary:
        return _of_all(logits_MV, point_M, sampling)
    # In the order of the vocabulary, which also tells apart those that are equally likely.
    id_MK = logits_MV.topk(count, sorted=False).indices.sort().values
    likely_MK = logits_MV.gather(-1, id_MK)
    total_M1 = None
    if sampling.top_k is None and sampling.top_p < 1.0:
        total_M1 = _scaled(logits_MV, sampling).exp_().sum(dim=-1, keepdim=True)
    kept_MK = filtered_probabilities(likely_MK, sampling, total_M1)
    # Where the least likely of them is filtered out, so is what is less likely still, or as likely.
    least_MK = likely_MK == likely_MK.amin(dim=-1, keepdim=True)
    beyond_M = (kept_MK.masked_fill(~least_MK, 0.0) > 0.0).any(dim=-1)
    if sampling.top_k is not None:
        # Nor where the last that top_k lets through ties with the least of them: others may be as likely.
        last_M = likely_MK.topk(sampling.top_k).values[:, -1]
        beyond_M |= (likely_MK.amin(dim=-1) == last_M) & last_M.isfinite()
    token_M = id_MK.gather(-1, _climb(kept_MK, point_M)[:, None])[:, 0]
    return token_M.masked_fill(beyond_M, -1)


def _climb(weight_MV: torch.Tensor, point_M: torch.Tensor) -> torch.Tensor:
    """For each point the index ``[M]`` where it falls in the cumulative sum of these weights."""
    cumulative_MV = weight_MV.cumsum(dim=-1)
    total_M1 = cumulative_MV[:, -1:].contiguous()
    place_M1 = torch.searchsorted(cumulative_MV, point_M[:, None] * total_M1, right=True)
    # Rounding may put the point on the last step: the last token with any mass.
    return place_M1.minimum(torch.searchsorted(cumulative_MV, total_M1))[:, 0]


class Before:
    """The distinct tokens of a text so far, kept up to date, as a penalty on them applies at every token.
    Even in a long text they are few.
    """

    def __init__(self) -> None:
        self._committed: set[int] = set()
        self._base = 0
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self._known: set[int] = set()
        self._end = 0
        self._ids_L: torch.Tensor | None = None

    def ids(self, tokens: Sequence[int], base: int, device: torch.device) -> torch.Tensor:
        """Their ids ``[L]``. Only tokens that came since it was last asked for are looked at.

        Args:
            tokens: all of them.
            base: length of the committed part.
        """
        if self._ids_L is None:
            self._committed.update(tokens[self._base : base])
            self._known, self._base, self._end = {*self._committed}, base, base
            self._ids_L = torch.tensor([*self._known], dtype=torch.int64, device=device)
        new = {*tokens[self._end :]} - self._known
        self._end = len(tokens)
        if new:
            self._known |= new
            self._ids_L = torch.cat([self._ids_L, torch.tensor([*new], dtype=torch.int64, device=device)])
        return self._ids_L


def penalized(logits_V: torch.Tensor, before_L: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits with tokens that were there before made less likely (CTRL, arXiv 1909.05858).

    Args:
        before_L: tokens of the prompt and the answer so far, ``[L]``.
        penalty: above 0; below 1 it makes them likelier.
    """
    theirs_L = logits_V[before_L]
    return logits_V.scatter(0, before_L, torch.where(theirs_L < 0.0, theirs_L * penalty, theirs_L / penalty))


def _scaled(logits_MV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits divided by temperature, in double precision. The largest becomes 0: so none is infinite at any
    temperature, however small.
    """
    scaled_MV = logits_MV.to(torch.float64, copy=True)
    return scaled_MV.sub_(logits_MV.amax(dim=-1, keepdim=True)).div_(sampling.temperature)


def filtered_probabilities(
    logits_MV: torch.Tensor, sampling: Sampling, total_M1: torch.Tensor | None = None
) -> torch.Tensor:
    """What stays of the probabilities after temperature, top_k, top_p and min_p in this order, in double
    precision, ``[..., V]``.

    Args:
        total_M1: the softmax's denominator over the whole vocabulary (the likeliest token counts 1), where
            these logits are only part of it.
    """
    scaled_MV = _scaled(logits_MV, sampling)
    if sampling.top_k is not None and sampling.top_k < scaled_MV.shape[-1]:
        least_M1 = scaled_MV.topk(sampling.top_k).values[..., -1:]
        scaled_MV = scaled_MV.masked_fill(scaled_MV < least_M1, -torch.inf)
    probabilities_MV = scaled_MV.softmax(dim=-1) if total_M1 is None else scaled_MV.exp() / total_M1
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
