"""One uniform number a token: HF's own warpers, climbed in the order of the vocabulary."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch import sampling as drawing
from rsd_integrations.backends.torch import writer
from rsd_integrations.backends.torch.sampling import (
    Before,
    Draws,
    Row,
    draw,
    draw_rows,
    filtered_probabilities,
    penalized,
)
from rsd_integrations.errors import DeviceMemoryError
from rsd_integrations.protocols import Sampling
from tests.tiny_models import trio


def sampling(
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    uniform: Callable[[], float] = lambda: 0.5,
    min_p: float = 0.0,
) -> Sampling:
    return Sampling(temperature, top_p, top_k, uniform, min_p)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.1, 1.0])
def test_probabilities_are_those_of_hf(
    temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    for seed in range(5):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
        expected = warpers(None, logits[None].double())[0].softmax(-1)
        got = filtered_probabilities(logits, sampling(temperature, top_p, top_k, min_p=min_p))
        assert torch.allclose(got / got.sum(), expected, atol=1e-9)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.1, 3.0])
def test_penalties_are_those_of_hf(penalty: float) -> None:
    before = [3, 4, 3, 49, 0]
    for seed in range(5):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([before]), logits[None].clone())[0]
        assert torch.equal(penalized(logits, torch.tensor(before), penalty), expected)


@pytest.mark.parametrize("point", [0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.9999999, math.nextafter(1.0, 0.0)])
def test_the_staircase(point: float) -> None:
    """Tokens 0, 2 and 5 have no mass and are never drawn; an edge belongs to the step above."""
    logits = torch.tensor([0.0, 0.1, 0.0, 0.4, 0.5, 0.0]).log()
    token = draw(logits, sampling(uniform=lambda: point))
    assert token == (1 if point < 0.1 else 3 if point < 0.5 else 4)


def test_frequencies_are_the_probabilities() -> None:
    rng, logits = random.Random(0), torch.tensor([0.2, 0.5, 0.3]).log()
    counts = Counter(draw(logits, sampling(uniform=rng.random)) for _ in range(8000))
    assert sum(abs(counts[t] / 8000 - p) for t, p in enumerate((0.2, 0.5, 0.3))) / 2 < 0.01


def test_greedy_draws_nothing_and_rows_do_not_mix() -> None:
    def never() -> float:
        raise AssertionError("greedy must not draw")

    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    rows = [sampling(0.0, uniform=never), sampling(1e-4, uniform=lambda: 0.99), sampling(0.0, uniform=never)]
    assert [draw(*row) for row in zip(logits, rows, strict=True)] == [1, 0, 2]


def test_each_token_takes_one_draw() -> None:
    taken: list[int] = []
    row = sampling(uniform=lambda: taken.append(1) or 0.3)  # type: ignore[func-returns-value]
    draw(torch.zeros(4), row)
    assert taken == [1]


@given(st.data())
def test_rows_drawn_together_get_what_they_get_alone(data: st.DataObject) -> None:
    """Whatever their filters and numbers of places."""
    maker = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    rows = []
    for _ in range(data.draw(st.integers(1, 6))):
        temperature, top_p, top_k = data.draw(
            st.sampled_from([(1.0, 1.0, None), (0.7, 0.8, None), (1.0, 0.9, 5), (2.0, 1.0, 3)])
        )
        how = sampling(temperature, top_p, top_k, min_p=data.draw(st.sampled_from([0.0, 0.2])))
        points = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4))
        logits = torch.randn(len(points), 30, generator=maker)
        rows.append(Row(logits, how, points))
    for row, tokens in zip(rows, draw_rows(rows), strict=True):
        alone = [
            draw(logits, replace(row.sampling, draw=lambda point=point: point))  # type: ignore[misc]
            for logits, point in zip(row.logits_RV, row.points, strict=True)
        ]
        assert tokens == alone


@given(st.data())
def test_filters_let_the_same_tokens_through_whether_all_or_the_likeliest_are_looked_at(
    data: st.DataObject,
) -> None:
    """As HF's warpers do it, with many tokens that are equally likely (half precision has few numbers), some
    forbidden, and more of them let through than are looked at first.
    """
    count, vocabulary = data.draw(st.sampled_from([2, 8, 30])), 90
    maker = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    spread = data.draw(st.sampled_from([0.1, 1.0, 4.0]))
    logits = (torch.randn(4, vocabulary, generator=maker) * spread).to(
        data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    )
    logits = logits.round() if data.draw(st.booleans()) else logits
    if data.draw(st.booleans()):
        allowed = torch.rand(vocabulary, generator=maker) < data.draw(st.sampled_from([0.05, 0.5]))
        logits = logits.masked_fill(~(allowed | (torch.arange(vocabulary) == 7)), -torch.inf)
    how = sampling(
        data.draw(st.sampled_from([1e-3, 0.7, 3.0])),
        # Of some equally likely tokens none lies just there, where rounding decides.
        data.draw(st.sampled_from([1.0, 0.943, 0.517, 1e-6])),
        data.draw(st.sampled_from([None, 1, 5, 40])),
        min_p=data.draw(st.sampled_from([0.0, 0.05, 0.6])),
    )
    points = torch.rand(4, generator=maker, dtype=torch.float64).tolist()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(how.temperature)])
    warpers += [TopKLogitsWarper(how.top_k)] if how.top_k else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "LIKELIEST", count)
        drawn = draw_rows([Row(logits, how, points)])[0]
    for logits_V, point, token in zip(warpers(None, logits.double()), points, drawn, strict=True):
        # HF's top_p breaks ties in no order; by the order of the vocabulary it is one sum a token.
        probability = logits_V.softmax(-1).tolist()
        order = sorted(range(vocabulary), key=lambda one: (-probability[one], one))
        before, kept = 0.0, [0.0] * vocabulary
        for one in order:
            kept[one] = probability[one] if how.top_p >= 1.0 or before < how.top_p else 0.0
            before += probability[one]
        kept = [one if one >= how.min_p * max(kept) else 0.0 for one in kept]
        edges = list(accumulate(kept))
        assert token == next(one for one, edge in enumerate(edges) if edge > point * edges[-1])


def test_more_ties_at_the_end_of_top_k_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are let through, and top_p takes its share of all."""
    monkeypatch.setattr(drawing, "LIKELIEST", 2)
    logits = torch.zeros(1, 90)
    logits[0, [3, 9, 20, 40]] = 1.0
    how = sampling(1.0, top_p=0.5, top_k=5)
    kept = (filtered_probabilities(logits, how)[0] > 0.0).nonzero()[:, 0].tolist()
    assert len(kept) > 40
    assert draw_rows([Row(logits, how, [0.9999])]) == [[kept[-1]]]


def test_two_tokens_that_are_equally_likely_are_a_half_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "LIKELIEST", 30)
    logits = torch.zeros(1, 90)
    logits[0, [4, 13]] = 1.0
    assert draw_rows([Row(logits, sampling(1e-3, top_p=0.5), [0.9])]) == [[4]]


def test_all_tokens_are_looked_at_only_where_the_likeliest_do_not_suffice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Filters of a large vocabulary would take longer than a small model's forward."""
    widths: list[int] = []
    own = drawing.filtered_probabilities

    def seen(logits_MV: torch.Tensor, *rest: Any) -> torch.Tensor:
        widths.append(logits_MV.shape[-1])
        return own(logits_MV, *rest)

    monkeypatch.setattr(drawing, "filtered_probabilities", seen)
    peaked = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(1)) * 5
    flat = torch.zeros(1, 20_000)
    for filters in ({"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}):
        draw_rows([Row(peaked, sampling(**filters), [0.4])])
    assert widths == [drawing.LIKELIEST] * 3
    widths.clear()
    both = draw_rows([Row(peaked, sampling(top_p=0.9), [0.4]), Row(flat, sampling(top_p=0.9), [0.5])])
    assert widths[-1] == 20_000
    assert both[1] == [9_000]


class Tokens(list[int]):
    """Notes how many of them are looked at."""

    looked_at = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        Tokens.looked_at += len(found) if isinstance(found, list) else 1
        return found


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=5), st.booleans()), max_size=8), st.data())
def test_a_penalty_falls_on_each_token_once_whatever_was_committed(
    steps: list[tuple[list[int], bool]], data: st.DataObject
) -> None:
    tokens, before = Tokens([3, 3, 1]), Before()
    for step, rejected in steps:
        base = len(tokens)
        before.begin()
        for token in step:
            ids = before.ids(tokens, base, torch.device("cpu")).tolist()
            assert sorted(ids) == sorted(set(tokens))
            tokens.append(token)
        if rejected:
            tokens[base:] = data.draw(st.lists(st.integers(0, 9), max_size=5))


def test_tokens_that_a_penalty_falls_on_are_looked_at_once() -> None:
    """In steps of thousands of tokens, behind prompts of thousands."""
    tokens, before, counts = Tokens(range(1000)), Before(), []
    for length in (100, 1000):
        Tokens.looked_at, base = 0, len(tokens)
        before.begin()
        for token in range(length):
            before.ids(tokens, base, torch.device("cpu"))
            tokens.append(token)
        counts.append(Tokens.looked_at)
    # The prompt in the first step; in the second what the first one wrote.
    assert counts == [1000 + 99, 100 + 999]


def test_draws_looked_at_are_not_lost() -> None:
    numbers = iter(range(100))
    draws = Draws(lambda: float(next(numbers)))
    assert draws.look(3) == [0, 1, 2]
    assert draws.take() == 0
    assert draws.look(1) == [1]
    assert draws.look(4) == [1, 2, 3, 4]
    assert [draws.take() for _ in range(6)] == [1, 2, 3, 4, 5, 6]


def test_a_row_that_cannot_be_drawn_is_its_own_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are drawn together; what fails one of them must not fail the others."""
    own = writer.draw_rows

    def short(rows: Sequence[Row]) -> list[list[int]]:
        if any(row.sampling.temperature == 0.5 for row in rows):
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return own(rows)

    with RSDPipeline.from_pretrained(**trio(), device="cpu") as pipe:
        fields: dict[str, Any] = {"threshold": 0.5, "max_tokens": 30, "step_delimiter": "e"}
        temperatures = (0.9, 0.5, 0.0, 0.9)
        asked = [{**fields, "temperature": one, "seed": seed} for seed, one in enumerate(temperatures)]
        alone = [pipe.generate("Hi.", **given).text for given in asked]
        monkeypatch.setattr(writer, "draw_rows", short)
        streams = [pipe.stream("Hi.", **given) for given in asked]
        with pytest.raises(DeviceMemoryError, match="pretended"):
            streams[1].result()
        assert [streams[place].result().text for place in (0, 2, 3)] == [alone[place] for place in (0, 2, 3)]
