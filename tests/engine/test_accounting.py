"""Tokens and FLOPs, recomputed from the oracle's story with pencil and paper."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from rsd_integrations import FLOPs, Generation, RSDPipeline
from rsd_integrations.backends.shared.describe import active_parameters, attention_kinds, model_info
from rsd_integrations.engine.accounting import RoleCount, usage
from rsd_integrations.protocols import ModelInfo, Tally
from tests.oracle import Party, Story, StoryStep, Terms, naive_rsd
from tests.test_oracle import ROUNDING, fields, load, parties
from tests.tiny_models import causal

PROMPT = "Ava has 12 marbles."
TERMS = [
    Terms(threshold=0.4, delimiters=("e",)),
    Terms(threshold=0.6, delimiters=(" ", "a"), max_step_tokens=5),
    Terms(weighting="constant", acceptance_rate=0.5, delimiters=("o",), seed=1),
    Terms(weighting="constant", acceptance_rate=0.9, delimiters=("\n", "e"), seed=2, temperature=1.0),
    Terms(
        weighting="constant", acceptance_rate=0.1, delimiters=(" ",), seed=3, temperature=1.3, stop=("th",)
    ),
    Terms(threshold=0.0, delimiters=("e",)),
    Terms(threshold=1.1, delimiters=("e",)),
    Terms(weighting="constant", acceptance_rate=1.0, delimiters=("e",)),
    Terms(weighting="constant", acceptance_rate=0.0, delimiters=("e",)),
]


@dataclass
class Fed:
    """Positions that went through a model, in order, as a cache that never repeats would have it."""

    positions: list[int] = field(default_factory=list)
    cached: int = 0

    def upto(self, length: int) -> None:
        self.positions += range(self.cached, length)
        self.cached = max(self.cached, length)

    def back_to(self, length: int) -> None:
        self.cached = min(self.cached, length)

    def pairs(self, window: int | None) -> int:
        return sum(min(position + 1, window or position + 1) for position in self.positions)


@dataclass
class Minimum:
    """The least that each model has to be fed for a story, each context token once."""

    draft: Fed = field(default_factory=Fed)
    target: Fed = field(default_factory=Fed)
    prm: Fed = field(default_factory=Fed)
    scored: int = 0
    scored_in_vain: int = 0

    @classmethod
    def of(cls, story: Story, terms: Terms, three: tuple[Party, Party, Party]) -> Minimum:
        minimum = cls()
        draft, target, prm = three
        at = {"draft": len(draft.prompt(PROMPT)), "target": len(target.prompt(PROMPT))}
        read = len(prm.prompt(PROMPT))
        for step in story.steps:
            drafted = step.ids if step.source == "draft" else step.rejected
            if drafted is not None:
                minimum.draft.upto(at["draft"] + len(drafted) - 1)
            body = prm_tokens(draft.decode(drafted), terms, prm) if step.reward is not None else 0
            if body:
                minimum.prm.upto(read + body)
                minimum.scored += body
                minimum.scored_in_vain += body if step.source == "target" else 0
            if step.source == "target":
                minimum.draft.back_to(at["draft"])
                minimum.prm.back_to(read)
                minimum.target.upto(at["target"] + len(step.ids) - 1)
            read += prm_tokens(step.text, terms, prm)
            at = {name: length + len(step.ids) for name, length in at.items()}
        return minimum


def prm_tokens(text: str, terms: Terms, prm: Party) -> int:
    """Tokens of a step and its separator."""
    for stop in terms.stop:
        text = text.partition(stop)[0]
    body = text.strip()
    for delimiter in terms.delimiters:
        if delimiter.strip():
            body = body.removesuffix(delimiter).rstrip()
    return len(prm.encode(body)) + len(prm.encode(prm.separator)) if body else 0


@dataclass(frozen=True, eq=False)
class Setting:
    """Three models and a pipeline over them."""

    three: tuple[Party, Party, Party]
    pipe: RSDPipeline


@functools.cache
def answer(setting: Setting, terms: Terms, speculation: bool) -> Generation:
    return setting.pipe.generate(PROMPT, **fields(terms), speculation=speculation)


@functools.cache
def tell(setting: Setting, terms: Terms) -> Story:
    return naive_rsd(*setting.three, PROMPT, terms)


def told(setting: Setting, terms: Terms, *, speculation: bool = False) -> tuple[Generation, Story]:
    """Once for all tests: each looks at other numbers of the same answer."""
    generation, story = answer(setting, terms, speculation), tell(setting, terms)
    if story.margin < ROUNDING:
        pytest.skip("a close call: the oracle may differ by rounding")
    assert generation.text == story.text
    return generation, story


@pytest.fixture(scope="module", params=["llama", pytest.param("mistral", marks=pytest.mark.slow), "gemma"])
def setting(request: pytest.FixtureRequest) -> Iterator[Setting]:
    three = parties(request.param)
    with load(three) as pipe:
        yield Setting(three, pipe)


@pytest.mark.parametrize("terms", TERMS, ids=range(len(TERMS)))
def test_each_model_sees_each_context_token_once(setting: Setting, terms: Terms) -> None:
    three = setting.three
    generation, story = told(setting, terms)
    minimum = Minimum.of(story, terms, three)
    counted = generation.usage
    assert counted.draft.forwarded == len(minimum.draft.positions)
    assert counted.target.forwarded == len(minimum.target.positions)
    assert counted.prm.forwarded == len(minimum.prm.positions)


@pytest.mark.parametrize("terms", TERMS, ids=range(len(TERMS)))
def test_guesses_are_counted_too(setting: Setting, terms: Terms) -> None:
    """What proved wrong went through the target as well."""
    three = setting.three
    generation, story = told(setting, terms, speculation=True)
    minimum = Minimum.of(story, terms, three)
    counted = generation.usage
    assert counted.target.forwarded >= len(minimum.target.positions)
    assert counted.draft.forwarded == len(minimum.draft.positions)
    assert counted.target.flops.total > 2 * counted.target.parameters * len(minimum.target.positions) - 1
    plain, _ = told(setting, terms)
    assert counted.flops.paper == plain.usage.flops.paper
    assert counted.target_only_flops == plain.usage.target_only_flops


@pytest.mark.parametrize("terms", TERMS, ids=range(len(TERMS)))
def test_written_and_wasted_tokens(setting: Setting, terms: Terms) -> None:
    three = setting.three
    generation, story = told(setting, terms)
    counted = generation.usage
    rejected = sum(len(step.rejected or []) for step in story.steps)
    committed = {name: sum(_length(step, name) for step in story.steps) for name in ("draft", "target")}
    minimum = Minimum.of(story, terms, three)
    assert counted.draft.generated == committed["draft"] + rejected
    assert counted.draft.discarded == rejected
    assert (counted.target.generated, counted.target.discarded) == (committed["target"], 0)
    assert (counted.prm.generated, counted.prm.discarded) == (minimum.scored, minimum.scored_in_vain)
    assert counted.completion_tokens == sum(committed.values())
    assert counted.prompt_tokens == len(three[1].prompt(PROMPT))
    assert sum(step.scored_tokens for step in generation.steps) == minimum.scored


def _length(step: StoryStep, source: str) -> int:
    return len(step.ids) if step.source == source else 0


@pytest.mark.parametrize("terms", TERMS, ids=range(len(TERMS)))
def test_flops_in_both_accountings(setting: Setting, terms: Terms) -> None:
    three = setting.three
    generation, story = told(setting, terms)
    minimum = Minimum.of(story, terms, three)
    counted = generation.usage
    paper = total = 0.0
    for party, role, fed in zip(three, ("draft", "target", "prm"), _fed(minimum), strict=True):
        used = getattr(counted, role)
        parameters = sum(parameter.numel() for parameter in party.model.parameters())
        assert used.parameters == parameters
        assert used.flops.paper == 2 * parameters * used.generated
        assert used.flops.total == 2 * parameters * used.forwarded + attention(party, fed)
        paper, total = paper + used.flops.paper, total + used.flops.total
    assert counted.flops == FLOPs(paper=paper, total=total)
    alone = Fed()
    alone.upto(counted.prompt_tokens + counted.completion_tokens - 1)
    parameters = counted.target.parameters
    assert counted.target_only_flops.paper == 2 * parameters * counted.completion_tokens
    expected = 2 * parameters * len(alone.positions) + attention(three[1], alone)
    assert counted.target_only_flops.total == expected
    assert counted.flops_ratio is not None
    assert counted.flops_ratio.paper == pytest.approx(paper / counted.target_only_flops.paper)
    assert counted.flops_ratio.total == pytest.approx(total / expected)


def _fed(minimum: Minimum) -> tuple[Fed, Fed, Fed]:
    return minimum.draft, minimum.target, minimum.prm


def attention(party: Party, fed: Fed) -> int:
    """Scores and values: a multiply and an add for each element of each head in each layer."""
    config = party.model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    if set(getattr(config, "layer_types", None) or ["sliding_attention"]) != {"sliding_attention"}:
        window = None  # Some layers see all.
    return 2 * 2 * config.num_hidden_layers * config.num_attention_heads * size * fed.pairs(window)


def test_target_only_costs_exactly_what_the_target_alone_costs(setting: Setting) -> None:
    generation = setting.pipe.generate(PROMPT, threshold=1.5, max_tokens=30, step_delimiter="e")
    assert generation.usage.flops == generation.usage.target_only_flops
    assert generation.usage.flops_ratio == FLOPs(paper=1.0, total=1.0)


def test_cost_grows_with_length_not_with_its_square() -> None:
    """The reference sends the whole text again for each step."""
    three = parties("llama")
    with load(three) as pipe:
        generation = pipe.generate(
            PROMPT, weighting="constant", acceptance_rate=1.0, step_delimiter=" ", max_tokens=150, seed=2
        )
    steps, counted = len(generation.steps), generation.usage
    assert steps > 10
    assert counted.draft.forwarded == counted.prompt_tokens + counted.completion_tokens - 1
    assert counted.target.forwarded == 0
    assert counted.prm.forwarded == len(three[2].prompt(PROMPT)) + counted.prm.generated


def test_what_a_cancel_threw_away_is_counted() -> None:
    info = ModelInfo("m", parameters=3, pair_flops=7, window=100)
    fed = Tally()
    fed.add(0, 10)
    fed.add(10, 2)
    idle = RoleCount(info, Tally(), 0, 0)
    counted = usage(RoleCount(info, fed, 3, 3), idle, idle, prompt_tokens=10, completion_tokens=0)
    assert (counted.draft.generated, counted.draft.discarded, counted.completion_tokens) == (3, 3, 0)
    assert counted.flops == FLOPs(paper=18, total=2 * 3 * 12 + 7 * sum(range(1, 13)))
    assert counted.target_only_flops == FLOPs()
    assert counted.flops_ratio is None
    assert counted.total_tokens == 10


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 7), (3, 5), (50, 3)])
def test_pairs_of_a_token_and_what_it_attends_to(start: int, count: int, window: int | None) -> None:
    tally = Tally()
    tally.add(start, count, window)
    seen = [min(position + 1, window or position + 1) for position in range(start, start + count)]
    assert (tally.forwarded, tally.pairs) == (count, sum(seen))


def test_long_texts_are_counted_at_once() -> None:
    """Not by the clock: token by token this would never end."""
    tally = Tally()
    tally.add(5, 10**15, 4096)
    assert tally.pairs == sum(range(6, 4097)) + (10**15 - 4091) * 4096


def test_heads_that_differ_by_layer_are_counted_as_they_are() -> None:
    config = causal("Gemma4Text").config
    info = model_info("m", config, parameters=1, window=9, attention=attention_kinds(config))
    assert info.pair_flops == 4 * (2 * 4 * 16 + 2 * 4 * 32)


@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma3Text", "Mistral", "Qwen3Moe"])
def test_flops_are_those_that_torch_counts(architecture: str) -> None:
    """A token's, as matrix products: norms and biases are none, nor is an embedding that is looked up."""
    model = causal(architecture)
    attention, parameters = attention_kinds(model.config), active_parameters(model)
    info = model_info("m", model.config, parameters=parameters, window=9, attention=attention)
    few, more = (_counted_by_torch(model, tokens) / tokens for tokens in (8, 14))
    assert (more - few) / 6 == pytest.approx(info.pair_flops, rel=1e-9)
    passed = parameters - model.get_input_embeddings().weight.numel()
    assert 0.98 * passed < (few - 8 * info.pair_flops) / 2 < passed


def _counted_by_torch(model: Any, tokens: int) -> int:
    """FLOPs of a text, with attention (of every token to all) and experts as plain products."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    if hasattr(model.config, "num_experts"):
        plain.set_experts_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        plain(torch.full((1, tokens), 5))
    return int(counted.get_total_flops())


def test_layers_that_are_no_attention_are_described() -> None:
    """They have no pairs of tokens to count."""
    hybrid, none = AutoConfig.for_model("qwen3_next"), AutoConfig.for_model("mamba")
    assert attention_kinds(hybrid) == {"linear_attention": (None, None), "full_attention": (None, None)}
    info = model_info("m", none, parameters=1, window=9, attention=attention_kinds(none))
    assert info.pair_flops == 0
    some = model_info("m", hybrid, parameters=1, window=9, attention=attention_kinds(hybrid))
    assert some.pair_flops == 4 * 12 * hybrid.num_attention_heads * hybrid.head_dim
