"""Masked attention by a kernel of our choice. A CPU has none: one as strict as a GPU's stands for it."""

from __future__ import annotations

import copy
import math
import random
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rsd_integrations.backends.torch import attention, efficient
from rsd_integrations.backends.torch.attention import SlotAttention, slot_attention
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import read_logits
from rsd_integrations.backends.torch.recording import Watch
from rsd_integrations.backends.torch.recurrent import RecurrentRunner
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.states import is_recurrent
from tests.backends.test_slots import close, run_a_history, runner_of
from tests.recording import Recordings
from tests.tiny_models import ARCHITECTURES, RECURRENT, causal

CPU = torch.device("cpu")
KERNEL = "_scaled_dot_product_efficient_attention"


class Kernel:
    """What ATen's CUDA kernel demands of its inputs (sdp_utils.cpp, kernel_forward.h), and the same sum."""

    def __init__(self) -> None:
        self.called = 0

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        added: torch.Tensor | None,
        logsumexp: bool,
        dropout: float = 0.0,
        causal: bool = False,
        *,
        scale: float | None = None,
    ) -> tuple[torch.Tensor, ...]:
        self.called += 1
        assert added is not None and not logsumexp and not dropout and not causal
        rows, heads, tokens, _ = query.shape
        assert added.shape == (rows, heads, tokens, key.shape[2])
        assert key.shape[:2] == value.shape[:2] == (rows, heads)
        assert key.shape[2] == value.shape[2] and query.shape[3] == key.shape[3]
        assert query.dtype == key.dtype == value.dtype == added.dtype
        for one in (query, key, value, added):
            assert one.stride(3) == 1
            assert all(step % 8 == 0 for step in one.stride()[:3])
            assert one.storage_offset() % 8 == 0
        assert query.shape[3] % 8 == value.shape[3] % 8 == 0
        assert not (added == -math.inf).all(-1).any()
        made = scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale)
        nothing = torch.empty((), dtype=torch.long)
        # As it lies on a GPU.
        made = made.transpose(1, 2).contiguous().transpose(1, 2)
        return made, torch.empty(rows, heads, 0), nothing, nothing.clone()


def attends_so(model: Any, runner: SlotRunner) -> bool:
    """Others attend eagerly, or (Gemma 2 before transformers 5.24) cap their scores, as no kernel does."""
    return runner._attend.takes_runs and getattr(model.config, "attn_logit_softcapping", None) is None


@contextmanager
def kernel_on_the_cpu() -> Iterator[Kernel]:
    """For as long as the block lasts."""
    made = Kernel()
    library: Any = torch.library.Library("aten", "IMPL")
    library.impl(KERNEL, made, "CPU")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(efficient, "has_kernel", lambda tensor: True)
            yield made
    finally:
        library._destroy()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """The CPU has one, and our forwards are to take it."""
    monkeypatch.setattr(efficient, "preferred", lambda device, dtype: True)
    with kernel_on_the_cpu() as made:
        yield made


@given(
    rows=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 4),
    tokens=st.integers(1, 5),
    length=st.integers(1, 40),
    scale=st.sampled_from([None, 0.3]),
)
def test_the_same_numbers_as_torchs_choice(
    rows: int, key_heads: int, groups: int, tokens: int, length: int, scale: float | None
) -> None:
    maker = torch.Generator().manual_seed(rows + 10 * tokens + 100 * length)
    query = torch.randn(rows, tokens, key_heads * groups, 8, generator=maker).transpose(1, 2)
    key, value = (torch.randn(rows, key_heads, 41, 8, generator=maker)[:, :, :length] for _ in range(2))
    mask = torch.rand(rows, 1, tokens, length, generator=maker) < 0.7
    mask[..., 0] = True
    layer: Any = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    with kernel_on_the_cpu() as kernel:
        ours, _ = slot_attention(layer, query, key, value, mask, by_name=True, scaling=scale)
    theirs, _ = slot_attention(layer, query, key, value, mask, scaling=scale)
    assert kernel.called == 1
    assert torch.equal(ours, theirs) or torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *RECURRENT])
def test_any_history_gives_what_a_full_forward_gives(architecture: str, kernel: Kernel) -> None:
    model = causal(architecture, 3)
    runner = runner_of(model, capacity=96)
    run_a_history(model, runner, random.Random(architecture))
    assert bool(kernel.called) == attends_so(model, runner)


@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma3Text", "GPT2"])
def test_it_is_recorded_too(architecture: str, kernel: Kernel) -> None:
    model, recordings = causal(architecture, 3), Recordings()
    run_a_history(model, runner_of(model, capacity=96, launcher=recordings.launcher), random.Random(5))
    assert recordings.replayed > recordings.recorded > 0


@pytest.mark.parametrize("name", [*ARCHITECTURES, *RECURRENT])
@torch.inference_mode()
def test_nothing_of_it_is_made_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, as on a GPU, which "meta" stands for."""
    monkeypatch.setattr(efficient, "preferred", lambda device, dtype: True)
    monkeypatch.setattr(efficient, "has_kernel", lambda tensor: True)
    model = copy.deepcopy(causal(name, 3)).to("meta", torch.bfloat16)
    device = torch.device("meta")
    kind = RecurrentRunner if is_recurrent(model.config) else SlotRunner
    runner = kind(model.config, read_logits(model), device=device, dtype=torch.bfloat16, slots=4, capacity=97)
    calls: list[Any] = []
    attend = efficient.attend

    def seen(*given: Any) -> Any:
        calls.append(given)
        return attend(*given)

    monkeypatch.setattr(efficient, "attend", seen)
    for rows, tokens, block in ((1, 1, 0), (2, 1 if kind is RecurrentRunner else 8, None)):
        head_N3, ids_NT = (torch.zeros(rows, size, dtype=torch.long, device=device) for size in (3, tokens))
        with Watch(device), runner._attend.over():
            runner._compute(head_N3, ids_NT, runner._key_L[:97], block=block)
    assert bool(calls) == attends_so(model, runner)
    assert all(step % 16 == 0 for call in calls for step in call[3].stride()[:3])


def test_what_is_added_is_made_once_a_forward(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    bias = efficient.bias

    def counted(*given: Any) -> Any:
        made.append(1)
        return bias(*given)

    monkeypatch.setattr(efficient, "bias", counted)
    for architecture, kinds in (("Qwen2", 1), ("Gemma4Text", 2)):
        model = causal(architecture, 3)
        runner = runner_of(model)
        for tokens in ([5, 9, 13], [6]):
            made.clear()
            kernel.called = 0
            runner.run([SlotFeed(runner.pool.claim()[0], 0, tokens)])
            assert len(made) == kinds < kernel.called
    assert attention._now.made is None


def test_layers_with_masks_of_their_own_do_not_fill_the_memory(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate copies the mask to each layer of a model on several devices."""
    made: list[weakref.ref[torch.Tensor]] = []
    bias, alive = efficient.bias, []

    def noted(*given: Any) -> Any:
        added = bias(*given)
        made.append(weakref.ref(added))
        alive.append(sum(one() is not None for one in made))
        return added

    def copied(layer: Any, args: Any, more: dict[str, Any]) -> Any:
        mask = more["attention_mask"]
        return args, {**more, "attention_mask": None if mask is None else mask.clone()}

    monkeypatch.setattr(efficient, "bias", noted)
    model = copy.deepcopy(causal("Qwen2", 3, num_hidden_layers=12))
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(copied, with_kwargs=True)
    runner = runner_of(model)
    assert close(model, runner.run([SlotFeed(runner.pool.claim()[0], 0, [5, 9, 13])])[0], [5, 9, 13])
    assert len(made) >= 12
    assert max(alive) <= 5


def test_other_threads_forwards_keep_nothing(kernel: Kernel) -> None:
    """Somebody runs the model while its config names ours, or trains it."""
    model = causal("Qwen2", 3)
    runner = runner_of(model)
    with runner._attend.over():
        attention._now.made = None  # As in another thread.
        mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
        model(torch.tensor([[1, 2, 3]]), attention_mask=mask).logits.sum().backward()
        assert attention._now.made is None
        assert kernel.called == 0
        with torch.no_grad():
            expected = model(torch.tensor([[1, 2, 3]])).logits
            made = model(torch.tensor([[1, 2, 3]]), attention_mask=mask).logits
    assert torch.allclose(made, expected, atol=1e-5)
    model.zero_grad()


def test_the_config_is_as_it_was(kernel: Kernel) -> None:
    # One key head for each query head: ours is named on account of the kernel.
    model = causal("Llama", 3, num_key_value_heads=4)
    runner = runner_of(model)
    with runner._attend.over():
        assert attention.meant_attention(model.config) == "sdpa" != model.config._attn_implementation
        assert runner._attend.takes_runs
    assert model.config._attn_implementation == "sdpa"


def test_a_config_that_two_models_share_is_as_it_was_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in half precision, one not: each names its own."""
    monkeypatch.setattr(efficient, "preferred", lambda device, dtype: dtype is torch.bfloat16)
    config = copy.deepcopy(causal("Qwen2", 3)).config
    both = [SlotAttention(config, CPU, dtype) for dtype in (torch.bfloat16, torch.float32)]
    for first, second in (both, both[::-1]):
        for ends in (1, -1):
            with ExitStack() as one, ExitStack() as other:
                one.enter_context(first.over())
                other.enter_context(second.over())
                for stack in (one, other)[::ends]:
                    assert config._attn_implementation != "sdpa"
                    stack.close()
            assert config._attn_implementation == "sdpa"


def test_a_cpus_forward_that_meets_it_goes_by_torchs_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config may be that of a model on a GPU."""
    model = causal("Qwen2", 3)
    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    monkeypatch.setattr(efficient, "preferred", lambda device, dtype: True)
    with torch.no_grad():
        expected = model(ids).logits
        with SlotAttention(model.config, CPU, torch.bfloat16).over():
            assert model.config._attn_implementation == "rsd_slot_efficient"
            made = model(ids, attention_mask=mask).logits
    assert torch.allclose(made, expected, atol=1e-5)


def test_two_masks_of_a_forward_are_two(kernel: Kernel) -> None:
    """Though the first is gone when the second is made, in its place perhaps."""
    layer: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8)
    with runner_of(causal("Qwen2", 3))._attend.over():
        for reach in (*range(1, 6),) * 4:
            mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
            mask[..., reach:] = False
            made, _ = slot_attention(layer, query, key, key, mask, by_name=True)
            expected, _ = slot_attention(layer, query, key, key, mask)
            assert torch.allclose(made, expected, atol=1e-6)
            del mask
    assert kernel.called == 20


def test_layers_of_a_forward_may_have_groups_of_other_sizes(kernel: Kernel) -> None:
    """As OpenELM's; all of them get one mask."""
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool).tril(2)
    with runner_of(causal("Qwen2", 3))._attend.over():
        for key_heads in (2, 1, 4):
            layer: Any = SimpleNamespace(num_key_value_groups=4 // key_heads, is_causal=True)
            query, key = torch.randn(1, 4, 3, 8), torch.randn(1, key_heads, 5, 8)
            made, _ = slot_attention(layer, query, key, key, mask, by_name=True)
            expected, _ = sdpa_attention_forward(layer, query, key, key, mask)
            assert torch.allclose(made, expected, atol=1e-6)
    assert kernel.called == 3


@pytest.mark.slow
def test_it_can_be_compiled(kernel: Kernel) -> None:
    """With sizes as variables, as ours are."""
    layer: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)

    def twice(query: Any, key: Any, value: Any, mask: Any) -> Any:
        made = slot_attention(layer, query, key, value, mask, by_name=True)[0]
        return made + slot_attention(layer, query, key, value, mask, by_name=True)[0]

    compiled = torch.compile(twice, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens, length in ((3, 21), (5, 37), (1, 32)):
        query, key = torch.randn(2, 4, tokens, 8), torch.randn(2, 2, length, 8)
        mask = torch.ones(2, 1, tokens, length, dtype=torch.bool).tril(length - tokens)
        with torch.inference_mode():
            made, called = compiled(query, key, key, mask), twice(query, key, key, mask)
        assert torch.allclose(made, called, atol=1e-6)


def test_a_kernel_that_is_not_there_or_computes_something_else_is_not_taken(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound: Any = efficient.sound.__wrapped__
    assert sound(CPU, torch.bfloat16)
    assert sound(CPU, torch.float16)
    monkeypatch.setattr(efficient, "attend", lambda query, key, value, added, scale: query * 0)
    assert not sound(CPU, torch.bfloat16)
    monkeypatch.undo()
    assert not sound(torch.device("meta"), torch.bfloat16)


class OnTheGpu(TorchFunctionMode):
    """Tensors are made on a GPU by default, which refuses a CPU's generator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (torch.randn, torch.rand) and "generator" in given:
            assert torch.device(given.get("device", "cuda")) == given["generator"].device
        return func(*args, **given)


def test_it_is_found_sound_whatever_the_default_device(kernel: Kernel) -> None:
    sound: Any = efficient.sound.__wrapped__
    with OnTheGpu():
        assert sound(CPU, torch.bfloat16)


@pytest.mark.parametrize("major", [8, 9, 10, 12])
def test_it_is_for_gpus_where_torch_may_take_cudnn(major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr(efficient, "sound", lambda device, dtype: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        wanted = major in (9, 10) and dtype is not torch.float32
        assert efficient.preferred(torch.device("cuda:0"), dtype) == wanted
        assert not efficient.preferred(CPU, dtype)
    monkeypatch.setattr(torch.backends.cuda, "mem_efficient_sdp_enabled", lambda: False)
    assert not efficient.preferred(torch.device("cuda:0"), torch.bfloat16)


def test_on_a_cpu_nothing_changes() -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model)
    with runner._attend.over():
        assert model.config._attn_implementation == "rsd_slot_sdpa"
    assert close(model, runner.run([SlotFeed(0, 0, [1, 2, 3])])[0], [1, 2, 3])
