"""Large weights on a CPU: another matrix product, the same numbers."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from rsd_integrations.backends.torch import products, traced
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.products import OneDNN
from rsd_integrations.backends.torch.traced import Traced
from tests.backends.test_slots import close, run_a_history, runner_of
from tests.tiny_models import ARCHITECTURES, causal

CPU = torch.device("cpu")
PRODUCT = products._product()
MAKERS = {"Intel": products._INTEL, "AMD": products._AMD}

pytestmark = pytest.mark.skipif(PRODUCT is None, reason="torch multiplies by something else here")


@pytest.fixture
def maker() -> str:
    """Of the processor; tests of one that matters name it."""
    return "Intel"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, maker: str) -> list[tuple[int, ...]]:
    """Weights of any size are large; the shapes of the inputs that oneDNN multiplied."""
    shapes = []

    def product(inputs: torch.Tensor, *others: Any) -> torch.Tensor:
        assert PRODUCT is not None
        shapes.append(tuple(inputs.shape))
        return PRODUCT(inputs, *others)

    monkeypatch.setattr(products, "_worth", lambda: replace(MAKERS[maker], weight=1))
    monkeypatch.setattr(products, "_product", lambda: product)
    return shapes


@given(
    rows=st.integers(1, 9),
    tokens=st.integers(1, 12),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    biased=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_multiplies_as_torch_does(
    rows: int, tokens: int, sizes: tuple[int, int], biased: bool, strided: bool, seed: int
) -> None:
    assert PRODUCT is not None
    made = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, tokens, sizes[1] * 2, generator=made)
    inputs = inputs[..., ::2] if strided else inputs[..., : sizes[1]].contiguous()
    weight, bias = torch.randn(*sizes, generator=made), torch.randn(sizes[0], generator=made)
    given_bias = bias if biased else None
    wanted = functional.linear(
        inputs.double(), weight.double(), None if given_bias is None else bias.double()
    )
    torch.testing.assert_close(PRODUCT(inputs, weight, given_bias).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_history_gives_what_a_full_forward_gives(
    architecture: str, counted: list[tuple[int, ...]]
) -> None:
    model = causal(architecture, 3)
    runner = runner_of(model, capacity=96, parameters=10**9, traces=True)
    run_a_history(model, runner, random.Random(architecture))
    assert counted


@pytest.mark.parametrize(
    ("rows", "tokens", "used"),
    [
        (1, 1, False),
        (1, 3, False),
        (1, 4, True),
        (1, 64, True),
        (1, 65, False),
        (3, 1, False),
        (4, 1, True),
        (2, 2, True),
    ],
)
@pytest.mark.parametrize("maker", MAKERS)
def test_it_is_used_for_a_few_tokens_of_all_rows_and_on_an_amd_for_any(
    rows: int, tokens: int, used: bool, maker: str, counted: list[tuple[int, ...]]
) -> None:
    model, text = causal("Qwen2", 3), list(range(5, 5 + tokens))
    runner = runner_of(model, capacity=96, parameters=10**9)
    for output in runner.run([SlotFeed(slot, 0, text) for slot in range(rows)]):
        assert close(model, output, text)
    assert bool(counted) == (used or maker == "AMD")
    # Not where a layer is asked about fewer: the head reads one place of a row.
    assert maker == "AMD" or all(4 <= torch.Size(shape[:-1]).numel() <= 64 for shape in counted)


def test_what_it_multiplies_is_not_traced(
    counted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace would keep the product of the sizes at which it was made."""
    monkeypatch.setattr(traced, "PAYS", 0)
    runner = runner_of(causal("Qwen2", 3), capacity=96, parameters=10**9, traces=True)
    assert isinstance(runner._call, Traced)
    runner.run([SlotFeed(slot, 0, [7]) for slot in range(4)])
    assert counted and not runner._call._kinds
    runner.run([SlotFeed(0, 1, [8])])
    assert runner._call._kinds


def test_small_weights_and_other_kinds_of_tensors_are_left_to_torch(
    counted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Packed(torch.Tensor):
        """As quantized weights are."""

    inputs, weight = torch.randn(5, 8), torch.randn(3, 8)
    linear: Callable[..., torch.Tensor] = functional.linear

    def forward() -> Any:
        one = linear(inputs, weight)
        assert counted.pop() == (5, 8)
        linear(inputs, weight.as_subclass(Packed))
        linear(inputs, torch.randn(8, 3).t())
        linear(inputs.double(), weight.double())
        other = linear(inputs, weight=weight)
        return one, other

    made = OneDNN(forward, CPU, torch.float32, 10**9)()  # type: ignore[arg-type]
    linear(inputs, weight)
    monkeypatch.setattr(products, "_worth", lambda: replace(MAKERS["Intel"], weight=25))
    OneDNN(lambda: linear(inputs, weight), CPU, torch.float32, 10**9)()  # type: ignore[arg-type,return-value]
    assert counted == []
    torch.testing.assert_close(*made)


def test_it_is_for_large_models_in_float32_on_a_cpu_alone(counted: list[tuple[int, ...]]) -> None:
    def takes(
        device: torch.device = CPU, dtype: torch.dtype = torch.float32, parameters: int = 10**9
    ) -> bool:
        return OneDNN(unused, device, dtype, parameters).takes(8)

    unused: Any = None
    assert takes()
    assert not takes(dtype=torch.bfloat16)
    assert not takes(torch.device("meta"))
    assert not takes(parameters=10**8)  # Small models are traced.
    try:
        torch._C._set_mkldnn_enabled(False)  # As torch.backends.mkldnn.enabled, without its warnings.
        assert not takes()
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_without_the_operation_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any) -> torch.Tensor:
        raise NotImplementedError

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", missing)
    products._product.cache_clear()
    try:
        assert products._product() is None
    finally:
        products._product.cache_clear()


@pytest.mark.parametrize(
    ("told", "maker"),
    [
        ("vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)", "Intel"),
        ("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC", "AMD"),
        ("vendor_id\t: HygonGenuine", "AMD"),
        ("Intel64 Family 6 Model 158 Stepping 10, GenuineIntel", "Intel"),
        ("AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD", "AMD"),
        ("", "Intel"),
    ],
)
@pytest.mark.parametrize("file", [True, False])
def test_who_made_the_processor(told: str, maker: str, file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what Linux tells, and elsewhere by what Python does."""

    def read(path: Path, **how: Any) -> str:
        assert path == Path("/proc/cpuinfo")
        if not file:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(platform, "processor", lambda: "" if file else told)
    assert products._worth.__wrapped__() is MAKERS[maker]
