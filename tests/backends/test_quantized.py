"""Quantized models: layers that round what they are given, weights in buffers or in odd kinds of tensors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.shared.describe import active_parameters, is_quantized
from rsd_integrations.backends.torch.heads import RewardModel
from rsd_integrations.errors import ModelError
from tests import oracle
from tests.tiny_models import causal, config, token_classifier, tokenizer, trio

QUESTION = "tell me about marbles"


class Kind(torch.nn.Parameter):
    """A parameter of a kind of its own, as quantizers make them. Rows of it cannot be taken."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            raise NotImplementedError("rows of a quantized weight")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Rounding(torch.nn.Linear):
    """Rounds what it is given to eight bits, whose size depends on all tokens of a forward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        step = input.abs().amax() / 127
        return functional.linear((input / step).round() * step, self.weight)


class Packed(torch.nn.Module):
    """Keeps its weights as integers in a buffer, as GPTQ's and AWQ's layers do."""

    qweight: torch.Tensor
    scales: torch.Tensor

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        scales = layer.weight.detach().abs().amax(1, keepdim=True) / 7
        self.register_buffer("qweight", (layer.weight / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs, self.qweight.to(inputs.dtype) * self.scales)


def rounding(layer: torch.nn.Linear) -> torch.nn.Module:
    made = Rounding(layer.in_features, layer.out_features, bias=False)
    made.weight = layer.weight
    return made


def with_layers(model: Any, make: Callable[[torch.nn.Linear], torch.nn.Module]) -> Any:
    """A copy of a model with other linear layers, but for its head."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, make(layer))
    return model


def by_transformers(model: Any) -> None:
    model.hf_quantizer = SimpleNamespace(is_compileable=False)


def by_config(model: Any) -> None:
    model.config.quantization_config = {"quant_method": "gptq"}


def by_weight(model: Any) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = Kind(layer.weight.detach())


@pytest.mark.parametrize("mark", [by_transformers, by_config, by_weight])
def test_layers_that_round_their_inputs_work_in_float32(mark: Callable[[Any], None]) -> None:
    model = with_layers(causal("Llama", 2, "ascii"), rounding)
    with pytest.raises(ModelError, match="per-row positions"):  # For all that is known, it is wrong.
        RSDPipeline.from_pretrained(**trio(model), device="cpu")
    mark(model)
    with RSDPipeline.from_pretrained(**trio(model), device="cpu", prefix_caching=False) as pipe:
        made = pipe.generate(QUESTION, threshold=0.0, max_tokens=8).text
    assert made == oracle.plain_generate(oracle.Party(model, tokenizer("ascii")), QUESTION, 8)[1]


@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma2", "GPT2", "Qwen3Moe", "Qwen3_5Text"])
def test_models_that_are_as_they_seem(architecture: str) -> None:
    model = causal(architecture, 0, "ascii")
    assert not is_quantized(model)
    assert not is_quantized(torch.nn.Sequential(torch.nn.LayerNorm(2, elementwise_affine=False), model))
    assert not is_quantized(copy.deepcopy(model).to("meta"))


def dynamic(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(  # type: ignore[attr-defined,unused-ignore]
            copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8
        )


def packed(model: Any) -> Any:
    made = with_layers(model, Packed)
    by_config(made)
    return made


@pytest.mark.parametrize("quantize", [packed, dynamic])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3Moe"])
def test_packed_weights_count_as_what_they_hold(architecture: str, quantize: Callable[[Any], Any]) -> None:
    model = causal(architecture, 0, "ascii")
    made = quantize(model)
    assert sum(parameter.numel() for parameter in made.parameters()) < active_parameters(model)
    assert active_parameters(made) == active_parameters(model)
    assert active_parameters(RewardModel(made, "lm")) == active_parameters(model)


@pytest.mark.parametrize("quantize", [packed, dynamic])
def test_a_packed_prm_counts_its_head(quantize: Callable[[Any], Any]) -> None:
    prm = token_classifier(0, "ascii")
    assert active_parameters(RewardModel(quantize(prm), "token")) == active_parameters(prm)


def test_usage_counts_a_packed_target_as_the_same_target() -> None:
    target = causal("Llama", 1, "ascii", hidden_size=64, num_hidden_layers=4)
    counted = []
    for model in (target, packed(target)):
        with RSDPipeline.from_pretrained(**trio(target=model), device="cpu") as pipe:
            counted.append(pipe.backend.target.info.parameters)
    assert counted[0] == counted[1]


def test_a_class_that_takes_more_than_a_config_counts_what_can_be_seen() -> None:
    class Odd(type(causal("Llama"))):  # type: ignore[misc]
        def __init__(self, config: Any, more: Any) -> None:
            super().__init__(config)

    model = Odd(config("Llama", seed_vocabulary=64), None)
    by_transformers(model)
    assert active_parameters(model) == sum(parameter.numel() for parameter in model.parameters())


def rewards(prm: Any, **options: Any) -> list[float]:
    given = trio() | {"prm": (prm, tokenizer("ascii"))}
    with RSDPipeline.from_pretrained(**given, device="cpu", **options) as pipe:
        return list(pipe.score(QUESTION, ["a.", "b"]))


@pytest.mark.parametrize("form", ["auto", "judge"])
def test_a_head_whose_rows_cannot_be_taken(form: str) -> None:
    plain = token_classifier(0, "ascii") if form == "auto" else causal("Qwen2", 3, "ascii")
    sealed = copy.deepcopy(plain)
    head = sealed.score if form == "auto" else sealed.lm_head
    head.weight = Kind(head.weight.detach())
    assert rewards(sealed, prm_format=form) == pytest.approx(rewards(plain, prm_format=form), abs=1e-5)


def test_a_head_without_parameters() -> None:
    judge = causal("Qwen2", 3, "ascii")
    quantized = copy.deepcopy(judge)
    quantized.lm_head = dynamic(torch.nn.Sequential(judge.lm_head))[0]
    assert rewards(quantized, prm_format="judge") == pytest.approx(
        rewards(judge, prm_format="judge"), abs=0.2
    )
