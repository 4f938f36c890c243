"""Checkpoints in all their layouts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForTokenClassification,
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2ForTokenClassification,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

from rsd_integrations.backends.shared.describe import active_parameters
from rsd_integrations.backends.torch.heads import RewardModel, headed_class, load_reward_model
from rsd_integrations.errors import ModelError
from tests.small_models import SIZES, small_config, small_model

TOKENS = torch.tensor([[5, 9, 2, 31, 7]])
CONFIG = small_config("qwen2", 40)


def values(model: RewardModel, columns: tuple[int, ...] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.outputs(model.body(input_ids=TOKENS).last_hidden_state[0], columns)


def checkpoint(kind: Any, seed: int = 0) -> Any:
    return small_model(headed_class(kind, CONFIG), CONFIG, seed)


@pytest.mark.parametrize("kind", ["value", "process_reward"])
@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_safetensors_whole_and_in_shards(kind: Any, shard: str, tmp_path: Path) -> None:
    model = checkpoint(kind)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    loaded = load_reward_model(kind, tmp_path)
    assert torch.allclose(values(loaded), values(RewardModel(model, kind)), atol=1e-6)


def test_value_head_stored_as_a_pickle_with_a_language_model_head(tmp_path: Path) -> None:
    """Skywork's PRMs are one pytorch_model.bin; TRL's wrapper saves names with a prefix."""
    model = checkpoint("value")
    state = {**model.state_dict(), "lm_head.weight": torch.randn(40, 32)}
    for index, prefix in enumerate(("", "pretrained_model.")):
        folder = tmp_path / str(index)
        CONFIG.save_pretrained(folder)
        named = {key if key.startswith("v_head") else prefix + key: tensor for key, tensor in state.items()}
        torch.save(named, folder / "pytorch_model.bin")
        loaded = load_reward_model("value", folder, use_safetensors=False)
        assert torch.allclose(values(loaded), values(RewardModel(model, "value")), atol=1e-6)
        assert active_parameters(loaded) == sum(parameter.numel() for parameter in model.parameters())


def test_options_reach_from_pretrained(tmp_path: Path) -> None:
    checkpoint("process_reward").save_pretrained(tmp_path)
    loaded = load_reward_model(
        "process_reward",
        tmp_path,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        attn_implementation="eager",
        trust_remote_code=True,
    )
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    assert values(loaded).dtype == torch.float32
    assert not loaded.model.training


@pytest.mark.parametrize("kind", ["token", "sequence", "value", "process_reward"])
def test_a_checkpoint_without_the_head_is_refused(kind: Any, tmp_path: Path) -> None:
    """transformers would fill the head in at random, with no more than a warning."""
    small_model(Qwen2ForCausalLM, CONFIG).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lacks") as caught:
        load_reward_model(kind, tmp_path)
    assert "v_head" in str(caught.value) or "score" in str(caught.value)
    assert caught.value.hint


def test_a_checkpoint_with_more_in_its_head_is_refused(tmp_path: Path) -> None:
    """transformers would leave the bias out."""
    small_model(Qwen2ForTokenClassification, CONFIG).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has 'score.bias', which a model with head 'sequence' has not"):
        load_reward_model("sequence", tmp_path)


def test_a_head_may_have_one_output() -> None:
    """For formats of one's own."""
    model = small_model(Qwen2ForTokenClassification, small_config("qwen2", 40, num_labels=1))
    assert values(RewardModel(model, "token")).shape == (TOKENS.shape[1], 1)


def test_a_checkpoint_without_some_of_the_body_is_refused(tmp_path: Path) -> None:
    state = checkpoint("process_reward").state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    CONFIG.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        load_reward_model("process_reward", tmp_path)


@pytest.mark.parametrize(
    ("model_class", "kind"),
    [
        (Qwen2ForCausalLM, "value"),
        (Qwen2ForCausalLM, "token"),
        (Qwen2ForCausalLM, "process_reward"),
        (Qwen2ForTokenClassification, "lm"),
        (Qwen2Model, "lm"),
        (Qwen2Model, "token"),
    ],
)
def test_loaded_models_with_another_head_are_refused(model_class: Any, kind: Any) -> None:
    with pytest.raises(ModelError, match="has no") as caught:
        load_reward_model(kind, small_model(model_class, CONFIG))
    assert model_class.__name__ in str(caught.value)


def gemma() -> Any:
    config = Gemma3TextConfig(vocab_size=40, head_dim=8, final_logit_softcapping=3.0, **SIZES)
    return small_model(Gemma3ForCausalLM, config)


def cohere() -> Any:
    return small_model(Cohere2ForCausalLM, Cohere2Config(vocab_size=40, logit_scale=0.25, **SIZES))


def granite() -> Any:
    return small_model(GraniteForCausalLM, GraniteConfig(vocab_size=40, logits_scaling=5.0, **SIZES))


def tied() -> Any:
    return small_model(LlamaForCausalLM, small_config("llama", 40, tie_word_embeddings=True))


@pytest.mark.parametrize("make", [gemma, cohere, granite, tied])
def test_language_model_columns_are_the_models_own_logits(make: Any) -> None:
    model = make()
    with torch.no_grad():
        own = model(input_ids=TOKENS).logits[0].float()
    wrapped = RewardModel(model, "lm")
    assert torch.allclose(values(wrapped, (7, 3)), own[:, [7, 3]], atol=1e-5)
    assert torch.allclose(values(wrapped), own, atol=1e-5)


class Adapted(torch.nn.Module):
    """A model in PEFT's wrapper: its own ``base_model`` is what holds the adapters."""

    def __init__(self, model: Any, *, prompt: bool = False) -> None:
        super().__init__()
        self.base_model = torch.nn.Sequential(model)
        self.config = model.config
        self.active_peft_config = SimpleNamespace(is_prompt_learning=prompt)

    def get_base_model(self) -> Any:
        return self.base_model[0]

    def get_output_embeddings(self) -> Any:
        return self.base_model[0].get_output_embeddings()

    def get_input_embeddings(self) -> Any:
        return self.base_model[0].get_input_embeddings()


@pytest.mark.parametrize(
    ("model_class", "kind"), [(Qwen2ForTokenClassification, "token"), (Qwen2ForCausalLM, "lm")]
)
def test_models_with_adapters_in_their_layers(model_class: Any, kind: Any) -> None:
    model = small_model(model_class, CONFIG)
    with torch.no_grad():
        own = model(input_ids=TOKENS).logits[0]
    assert torch.allclose(values(load_reward_model(kind, Adapted(model))), own, atol=1e-5)


def test_learnt_prompts_are_refused() -> None:
    with pytest.raises(ModelError, match="'Adapted' puts learnt tokens before each text"):
        RewardModel(Adapted(small_model(Qwen2ForCausalLM, CONFIG), prompt=True), "lm")  # type: ignore[arg-type]


def test_a_wrapper_that_does_not_tell_the_body_is_refused() -> None:
    """As the class in Skywork's own repository is."""

    class PRM_MODEL(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.pretrained_model, self.config = model, model.config
            self.v_head = torch.nn.Linear(32, 1)

    with pytest.raises(ModelError, match=r"PRM_MODEL does not tell.*pass the folder or hub id"):
        RewardModel(PRM_MODEL(small_model(Qwen2ForCausalLM, CONFIG)), "value")  # type: ignore[arg-type]


def test_tied_weights_count_once() -> None:
    model = tied()
    names = dict(model.named_parameters(remove_duplicate=False))
    assert "lm_head.weight" in names
    assert active_parameters(RewardModel(model, "lm")) == sum(p.numel() for p in model.parameters())
    assert active_parameters(RewardModel(model, "lm")) < sum(p.numel() for p in names.values())


def test_logits_made_in_an_unknown_way_are_refused() -> None:
    class Odd(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 2
            return out

    with pytest.raises(ModelError, match="Odd makes its logits"):
        RewardModel(small_model(Odd, small_config("llama", 40)), "lm")


def test_heads_by_their_other_names() -> None:
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=2)
    model = small_model(GPT2ForTokenClassification, config)
    with torch.no_grad():
        own = model(input_ids=TOKENS).logits[0]
    assert torch.allclose(values(RewardModel(model, "token")), own, atol=1e-6)


def test_sequence_classifiers_read_anywhere() -> None:
    config = small_config("qwen2", 40, num_labels=1, pad_token_id=None)
    model = small_model(Qwen2ForSequenceClassification, config)
    wrapped = RewardModel(model, "sequence")
    for length in (1, 3, 5):
        with torch.no_grad():
            own = model(input_ids=TOKENS[:, :length]).logits[0]
        assert torch.allclose(values(wrapped)[length - 1], own, atol=1e-5)


def test_configs_without_a_decoder_are_refused() -> None:
    class Nothing:
        pass

    with pytest.raises(ModelError, match="no decoder is known for Nothing"):
        headed_class("value", Nothing())


def test_encoders_are_refused() -> None:
    """A step scored by an encoder would change the rewards of the steps before it."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = small_model(BertForTokenClassification, BertConfig(vocab_size=40, initializer_range=0.3, **sizes))
    with pytest.raises(ModelError, match="BertForTokenClassification looks ahead"):
        RewardModel(model, "token")
