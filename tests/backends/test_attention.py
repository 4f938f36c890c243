"""Grouped queries without repeated keys: the same numbers, and a config that is left as it was."""

from __future__ import annotations

import copy
import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2 import modeling_qwen2

from rsd_integrations.backends.torch import attention
from rsd_integrations.backends.torch.attention import SlotAttention, slot_attention
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.self_check import check_slots
from tests.backends.test_slots import close, runner_of
from tests.tiny_models import causal


@given(
    rows=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 4),
    tokens=st.integers(1, 5),
    masked=st.booleans(),
)
def test_the_same_as_with_repeated_keys(
    rows: int, key_heads: int, groups: int, tokens: int, masked: bool
) -> None:
    maker = torch.Generator().manual_seed(rows + 10 * tokens)
    query, key, value = (
        torch.randn(rows, heads, length, 8, generator=maker)
        for heads, length in ((key_heads * groups, tokens), (key_heads, 9), (key_heads, 9))
    )
    mask = torch.rand(rows, 1, tokens, 9, generator=maker) < 0.7
    mask[..., 0] = True
    layer: Any = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    given_mask = mask if masked else None
    ours, _ = slot_attention(layer, query, key, value, given_mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(layer, query, key, value, given_mask, scaling=0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_what_only_sdpa_knows_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer ones refuse a softcap, which would be left out here."""
    left: list[str] = []
    layer: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8)
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    by_head = mask.repeat(1, 4, 1, 1)
    by_head[:, 1, :, 2:] = False
    ours, _ = slot_attention(layer, query, key, key, by_head)
    theirs, _ = sdpa_attention_forward(layer, query, key, key, by_head)
    assert torch.equal(ours, theirs)
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *given, **options: left.extend(options))
    slot_attention(layer, query, key, key, mask, softcap=30.0)
    slot_attention(layer, query, key, key, mask, position_bias=torch.zeros(1, 4, 3, 5))
    assert left == ["softcap", "position_bias"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Key heads of each call of torch's attention from ours."""
    seen: list[int] = []
    own = attention.scaled_dot_product_attention

    def counting(query: torch.Tensor, key: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        seen.append(key.shape[1])
        return own(query, key, *given, **more)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", counting)
    return seen


@pytest.mark.parametrize(("architecture", "key_heads"), [("Qwen2", 2), ("Gemma3Text", 2), ("GPT2", None)])
def test_models_with_groups_use_it(architecture: str, key_heads: int | None, calls: list[int]) -> None:
    model = causal(architecture, 3)
    before = model.config._attn_implementation
    runner = runner_of(model)
    feeds = [SlotFeed(runner.pool.claim()[0], 0, [1, 2, 3]), SlotFeed(runner.pool.claim()[0], 0, [4])]
    for feed, output in zip(feeds, runner.run(feeds), strict=True):
        assert close(model, output, list(feed.tokens))
    assert set(calls) == ({key_heads} if key_heads else set())
    assert model.config._attn_implementation == before


def test_slots_here_and_there_are_attended_to_where_they_lie(calls: list[int]) -> None:
    """In as many pieces as there are runs of neighbours, and their keys are not copied."""
    model = causal("Qwen2", 3)
    runner = runner_of(model, slots=8)
    layers = model.config.num_hidden_layers
    for slots, pieces in (([0, 1, 2], 1), ([1, 3, 4, 7], 3)):
        feeds = [SlotFeed(slot, 0, [5, 9 + slot]) for slot in slots]
        for gathered, expected in ((0, pieces), (math.inf, 1)):
            runner.most_gathered = gathered
            calls.clear()
            for feed, output in zip(feeds, runner.run(feeds), strict=True):
                assert close(model, output, list(feed.tokens))
            assert len(calls) == expected * layers


@pytest.mark.parametrize("architecture", ["Qwen2", "GPT2"])
def test_another_attention_is_set_and_kept(architecture: str) -> None:
    """Also where queries are not grouped: their keys are not gathered either."""
    model = copy.deepcopy(causal(architecture, 3))
    if architecture == "GPT2":
        model.config.num_key_value_heads = None  # It has no such field.
    runner = runner_of(model, slots=8)
    runner.most_gathered = 0
    feeds = [SlotFeed(slot, 0, [5, 9 + slot]) for slot in (0, 1, 7)]
    for named in ("sdpa", "eager", "sdpa"):
        model.set_attn_implementation(named)
        with torch.inference_mode():
            outputs = runner.forward(feeds)  # A failure is not mended by running rows alone.
        for feed, output in zip(feeds, outputs, strict=True):
            assert close(model, output, list(feed.tokens))
    with SlotAttention(model.config).over():
        model.set_attn_implementation("eager")  # In the middle of a forward.
    assert model.config._attn_implementation == "eager"


def test_a_model_with_attention_of_its_own_has_its_keys_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its config names. That is found when it is loaded."""
    own = SimpleNamespace(get_interface=lambda *given: sdpa_attention_forward)
    monkeypatch.setattr(modeling_qwen2, "ALL_ATTENTION_FUNCTIONS", own)
    model = causal("Qwen2", 3)
    runner = runner_of(model)
    assert runner.most_gathered < math.inf
    check_slots(runner, "a model")
    assert runner.most_gathered == math.inf
    feeds = [SlotFeed(slot, 0, [5, 9 + slot]) for slot in (0, 2)]
    for feed, output in zip(feeds, runner.run(feeds), strict=True):
        assert close(model, output, list(feed.tokens))


def test_what_a_loaded_model_is_compared_with_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model's forward takes seconds on a CPU."""
    runner, seen = runner_of(causal("Qwen2", 3)), []
    plain = runner.plain
    monkeypatch.setattr(runner, "plain", lambda tokens: seen.append(tokens) or plain(tokens))
    check_slots(runner, "a model")
    assert len(seen) == len(set(seen)) > 0


def test_a_config_is_as_it_was_after_a_failure() -> None:
    config = causal("Qwen2", 3).config
    names: list[str] = []

    def broken() -> None:
        with SlotAttention(config).over():
            names.append(config._attn_implementation)
            raise OSError("it broke")

    with pytest.raises(OSError, match="broke"):
        broken()
    assert names != ["sdpa"]
    assert config._attn_implementation == "sdpa"


def test_another_thread_may_run_the_model_meanwhile() -> None:
    """Rows of several lengths, too, for which it needs a mask."""
    model = causal("Qwen2", 3)
    tokens, mask = torch.tensor([[5, 9, 13], [0, 0, 7]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    texts: list[list[list[int]]] = []

    def write() -> None:
        made = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False)
        texts.append(made.tolist())

    write()
    with SlotAttention(model.config).over():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert texts[0] == texts[1]


def test_pipelines_that_share_a_model_do_not_end_each_other_s_use() -> None:
    config = causal("Qwen2", 3).config
    one, other = SlotAttention(config).over(), SlotAttention(config).over([(0, 1), (2, 1)])
    with other:
        with one:
            name = config._attn_implementation
            late = SlotAttention(config)
        assert config._attn_implementation == name != "sdpa"
    assert late.takes_runs
    assert config._attn_implementation == "sdpa"
