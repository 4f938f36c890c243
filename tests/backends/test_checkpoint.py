"""No model runs with weights that transformers made up."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch.checkpoint import load_complete
from rsd_integrations.errors import ModelError
from rsd_integrations.pocket import pocket_paths
from tests.tiny_models import causal, token_classifier, tokenizer, trio

POCKET = pocket_paths()


def pocket(**other: Any) -> RSDPipeline:
    trio = {"draft": POCKET.draft, "target": POCKET.target, "prm": POCKET.prm}
    return RSDPipeline.from_pretrained(**{**trio, "device": "cpu", **other})


@pytest.mark.parametrize("role", ["draft", "target"])
def test_a_reward_model_cannot_write(role: str) -> None:
    with pytest.raises(ModelError, match=r"lacks 1 weight of a language model: lm_head\.weight") as caught:
        pocket(**{role: POCKET.prm})
    assert f"The {role} must be" in caught.value.hint
    assert repr(str(POCKET.prm)) in str(caught.value)


def test_a_language_model_is_no_reward_model() -> None:
    with pytest.raises(ModelError, match=r"lacks 2 weights of a model with head 'token': score"):
        pocket(prm=POCKET.target, prm_kwargs={"tokenizer": str(POCKET.prm)}, prm_format="trl")


@pytest.mark.parametrize("kind", ["classifier", "body"])
@pytest.mark.parametrize("role", ["draft", "target"])
def test_a_loaded_model_without_the_head_cannot_write(role: str, kind: str) -> None:
    loaded: Any = token_classifier(0, "ascii") if kind == "classifier" else causal("Qwen2", 0, "ascii").model
    with pytest.raises(ModelError, match=rf"Qwen2.*no language-model head\. The {role}"):
        RSDPipeline.from_pretrained(**trio() | {role: (loaded, tokenizer("ascii"))}, device="cpu")


@pytest.mark.parametrize("role", ["draft", "target"])
def test_a_loaded_model_with_a_learnt_prompt_cannot_write(role: str) -> None:
    loaded: Any = copy.copy(causal("Qwen2", 0, "ascii"))
    loaded.active_peft_config = SimpleNamespace(is_prompt_learning=True)
    with pytest.raises(ModelError, match=r"learnt tokens before each text .* within its layers \(LoRA\)"):
        RSDPipeline.from_pretrained(**trio() | {role: (loaded, tokenizer("ascii"))}, device="cpu")


def test_a_part_of_the_body_is_missed_too(tmp_path: Path) -> None:
    model = causal("Llama", 1)
    state = {**model.state_dict()}
    del state["model.layers.1.mlp.up_proj.weight"]
    model.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        load_complete(AutoModelForCausalLM, str(tmp_path), meant="a language model", hint="No.")


def test_weights_of_another_shape_are_missed(tmp_path: Path) -> None:
    model = causal("Llama", 1)
    model.save_pretrained(tmp_path)
    options = {"intermediate_size": 48, "ignore_mismatched_sizes": True}
    with pytest.raises(ModelError, match=r"lacks 6 weights.*down_proj"):
        load_complete(AutoModelForCausalLM, str(tmp_path), meant="a language model", hint="No.", **options)


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "GPT2"])
@pytest.mark.parametrize("options", [{}, {"device_map": {"": "cpu"}}])
def test_a_tied_head_is_not_missing(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = causal(architecture, 1, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded: Any = load_complete(AutoModelForCausalLM, str(tmp_path), meant="x", hint="No.", **options)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("missing", "refused"),
    [
        ({"model.layers.0.mlp.up_proj.weight_scale", "model.layers.0.mlp.up_proj.g_idx"}, False),
        ({"lm_head.weight"}, True),
    ],
)
def test_a_quantizer_makes_its_own_scales_but_no_head(missing: set[str], refused: bool) -> None:
    model = SimpleNamespace(hf_quantizer=object())
    auto = SimpleNamespace(from_pretrained=lambda name, **_: (model, {"missing_keys": missing}))
    if refused:
        with pytest.raises(ModelError, match=r"lm_head\.weight\. Do something\."):
            load_complete(auto, "some/model", meant="a language model", hint="Do something.")
    else:
        loaded: Any = load_complete(auto, "some/model", meant="a language model", hint="Do something.")
        assert loaded is model
