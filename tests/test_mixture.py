"""What RSD samples from is P_RSD = omega P_m + nu P_M, nu = 1 - E_m[omega] (Liao et al., equation 3)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch

from rsd_integrations import RSDConfig, RSDPipeline
from rsd_integrations.algorithm import rsd
from rsd_integrations.protocols import DraftStep, Kept, Scored, ScoreStep, TargetStep, Together, Written
from rsd_integrations.types import StepEvent
from rsd_integrations.weighting import NAMES
from tests.tiny_models import causal, token_classifier, tokenizer

SAMPLES = 20_000
DRAFT = {"a": 0.5, "b": 0.3, "c": 0.2}
TARGET = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
REWARD = {"a": 0.15, "b": 0.55, "c": 0.9, "d": 1.0}
WEIGHTINGS: dict[str, tuple[dict[str, Any], Callable[[float], float]]] = {
    "step": ({"threshold": 0.5}, lambda r: float(r >= 0.5)),
    "constant": ({"acceptance_rate": 0.3}, lambda r: 0.3),
    "clip": ({}, lambda r: min(1.0, max(0.0, r))),
    "sigmoid": ({}, lambda r: 1 / (1 + math.exp(-r))),
    "logistic": ({"threshold": 0.6, "beta": 4.0}, lambda r: 1 / (1 + math.exp(-4 * (r - 0.6)))),
}


def test_each_weighting_is_written_down_here() -> None:
    assert set(WEIGHTINGS) == set(NAMES)


def mixture(
    draft: Mapping[Any, float], target: Mapping[Any, float], omega: Callable[[Any], float]
) -> dict[Any, float]:
    """Equation 3, summed out."""
    nu = 1.0 - sum(probability * omega(step) for step, probability in draft.items())
    return {
        step: omega(step) * draft.get(step, 0.0) + nu * target.get(step, 0.0) for step in {*draft, *target}
    }


def variation(counts: Counter[Any], expected: Mapping[Any, float]) -> float:
    """Total variation distance."""
    total = sum(counts.values())
    return sum(abs(counts[step] / total - expected.get(step, 0.0)) for step in {*counts, *expected}) / 2


def choose(distribution: Mapping[str, float], point: float) -> Written:
    """The inverse CDF: a step that a uniform number picks."""
    edges = accumulate(distribution.values())
    step = next((step for step, edge in zip(distribution, edges, strict=True) if point < edge), "d")
    return Written(step + "\n\n", (ord(step),), "delimiter")


def steps_of(config: RSDConfig, seed: int, answer: Callable[[Any], Any]) -> Sequence[Any]:
    """Drive the algorithm without an engine."""
    story = rsd(config, seed=seed, max_tokens=10**6, clock=lambda: 0.0)
    result = None
    try:
        while True:
            item = story.send(result)
            result = None if isinstance(item, Kept | StepEvent) else answer(item)
    except StopIteration as end:
        return end.value.steps


def answer(work: Any) -> Any:
    if isinstance(work, Together):
        return [answer(piece) for piece in work.pieces]
    if isinstance(work, ScoreStep):
        return Scored(REWARD[work.body], 1)
    assert isinstance(work, DraftStep | TargetStep)
    return choose(DRAFT if isinstance(work, DraftStep) else TARGET, work.sampling.draw())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("clip", "sigmoid"))) for name in WEIGHTINGS],
)
def test_the_algorithm_samples_the_mixture(name: str) -> None:
    options, omega = WEIGHTINGS[name]
    config = RSDConfig(weighting=name, temperature=1.0, max_steps=100, **{"threshold": 0.7, **options})
    counts: Counter[str] = Counter()
    accepted: Counter[bool] = Counter()
    for seed in range(SAMPLES // 100):
        for step in steps_of(config, seed, answer):
            counts[step.text.strip()] += 1
            accepted[step.accepted] += 1
    expected = mixture(DRAFT, TARGET, lambda step: omega(REWARD[step]))
    assert sum(expected.values()) == pytest.approx(1.0)
    assert variation(counts, expected) < 0.01
    rate = sum(probability * omega(REWARD[step]) for step, probability in DRAFT.items())
    assert accepted[True] / SAMPLES == pytest.approx(rate, abs=0.01)
    # The check has teeth: neither model alone, nor the mixture of another weighting, would pass.
    assert variation(counts, DRAFT) > 0.05
    assert variation(counts, TARGET) > 0.05


@pytest.mark.parametrize(
    ("candidates", "threshold"),
    [
        (2, 0.5),
        pytest.param(4, 0.5, marks=pytest.mark.slow),
        pytest.param(4, 0.0, marks=pytest.mark.slow),
        pytest.param(3, 0.9, marks=pytest.mark.slow),
    ],
)
def test_the_best_of_several_drafts_takes_the_draft_s_place(candidates: int, threshold: float) -> None:
    """P(best of n = x) = F(x)^n - F(below x)^n, with F the draft's distribution of rewards."""
    config = RSDConfig(draft_candidates=candidates, threshold=threshold, temperature=1.0, max_steps=100)
    counts = Counter(
        step.text.strip() for seed in range(SAMPLES // 100) for step in steps_of(config, seed, answer)
    )
    best, below = {}, 0.0
    for step in sorted(DRAFT, key=REWARD.__getitem__):
        best[step] = (below + DRAFT[step]) ** candidates - below**candidates
        below += DRAFT[step]
    expected = mixture(best, TARGET, lambda step: float(REWARD[step] >= threshold))
    assert variation(counts, expected) < 0.01
    assert variation(counts, mixture(DRAFT, TARGET, lambda step: float(REWARD[step] >= threshold))) > 0.05


def test_a_callable_weighting_samples_its_mixture() -> None:
    config = RSDConfig(weighting=lambda reward: reward**2, temperature=1.0, threshold=0.7)
    counts = Counter(
        step.text.strip() for seed in range(SAMPLES // 100) for step in steps_of(config, seed, answer)
    )
    expected = mixture(DRAFT, TARGET, lambda step: REWARD[step] ** 2)
    assert variation(counts, expected) < 0.01


@torch.no_grad()
def _one_token(model: Any, prompt: Sequence[int], top_k: int) -> dict[int, float]:
    """The model's own distribution of the next token, cut to the k likeliest."""
    best = model(torch.tensor([list(prompt)])).logits[0, -1].double().topk(top_k)
    return dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))


@pytest.mark.slow
def test_the_torch_engine_samples_the_mixture() -> None:
    """Steps of one token, enumerated: six at most. That it draws as it must, the oracle tests show."""
    tok, draft, target, prm = (
        tokenizer("ascii"),
        causal("Qwen2", 0, "ascii"),
        causal("Llama", 1, "ascii"),
        token_classifier(0, "ascii"),
    )
    text = "Ava has 12 marbles."
    rendered = tok.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    prompt = rendered["input_ids"]
    p_draft, p_target = _one_token(draft, prompt, 3), _one_token(target, prompt, 3)

    @torch.no_grad()
    def omega(token: int) -> float:
        body = tok.decode([token], skip_special_tokens=True).strip()
        if not body:
            return 0.0
        ids = [*prompt, *tok.encode(body), *tok.encode("\n\n")]
        return float(prm(torch.tensor([ids])).logits[0, -1].double().softmax(-1)[1])

    expected = mixture(p_draft, p_target, omega)
    texts: dict[str, float] = Counter()
    for token, probability in expected.items():
        texts[tok.decode([token], skip_special_tokens=True)] += probability
    samples = 3000
    with RSDPipeline.from_pretrained(
        (draft, tok), (target, tok), (prm, tok), device="cpu", max_batch_size=64
    ) as pipe:
        settings = {"weighting": "clip", "temperature": 1.0, "top_k": 3, "max_tokens": 1}
        streams = [pipe.stream(text, seed=seed, **settings) for seed in range(samples)]
        counts = Counter(stream.result().text for stream in streams)
    assert set(counts) <= set(texts)
    assert variation(counts, texts) < 0.02
