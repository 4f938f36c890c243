"""Models that see as well, or whose layers differ, as writers: their checkpoints, their text alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.shared.describe import active_parameters
from rsd_integrations.backends.shared.sources import Source
from tests.oracle import Party, plain_generate
from tests.tiny_models import EXPERTS, causal, config, memory_of, shaken, tokenizer, trio

_EYES = {"hidden_size": 16, "intermediate_size": 16}
_SEEING: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma4": ("Gemma4Text", {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, **_EYES}),
    "Qwen3_5": (
        "Qwen3_5Text",
        {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16, **_EYES},
    ),
    "Mistral3": (
        "Mistral",
        {
            "model_type": "pixtral",
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            **_EYES,
        },
    ),
}
"""Of the text and of the eyes."""


@functools.cache
def seeing(name: str) -> Any:
    """A tiny model with random weights that sees and writes."""
    text, eyes = _SEEING[name]
    tok = tokenizer("ascii")
    made = getattr(transformers, f"{name}Config")(
        text_config=config(text, seed_vocabulary=len(tok), sliding_window=16).to_dict(),
        vision_config=eyes,
        tie_word_embeddings=name == "Gemma4",
    )
    torch.manual_seed(2)
    return shaken(getattr(transformers, f"{name}ForConditionalGeneration")(made), tok)


def saved(name: str, folder: Path) -> str:
    seeing(name).save_pretrained(folder)
    tokenizer("ascii").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", _SEEING)
def test_a_checkpoint_with_eyes_writes_what_it_writes(name: str, tmp_path: Path) -> None:
    tok = tokenizer("ascii")
    # Of some model types transformers reads a tokenizer in its own way, whatever the checkpoint's.
    models = trio() | {"draft": (saved(name, tmp_path), tok)}
    with RSDPipeline.from_pretrained(**models, device="cpu", max_length=200) as pipe:
        made = pipe.generate("hello there", threshold=0, max_tokens=40)
    _, text = plain_generate(Party(seeing(name), tok), "hello there", 40)
    assert made.text == text
    assert made.usage.draft.parameters == text_parameters(name)


@pytest.mark.parametrize("name", _SEEING)
def test_a_checkpoint_with_eyes_judges(name: str, tmp_path: Path) -> None:
    """As the same model does that is loaded already, whose logits it is compared with then."""
    tok, steps = tokenizer("ascii"), ["1 + 1 = 2.", "So it is 2."]
    rewards = []
    for prm in ((saved(name, tmp_path), tok), (seeing(name), tok)):
        models = trio() | {"prm": prm}
        with RSDPipeline.from_pretrained(**models, prm_format="judge", device="cpu", max_length=900) as pipe:
            rewards.append(pipe.score("What is 1 + 1?", steps))
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)
    assert None not in rewards[0]


def text_parameters(name: str) -> int:
    """Those of the decoder and the head, counted by their names."""
    parameters = seeing(name).named_parameters()
    return sum(one.numel() for path, one in parameters if "language_model" in path or "lm_head" in path)


@pytest.mark.parametrize("name", _SEEING)
def test_what_it_takes_is_known_before(name: str, tmp_path: Path) -> None:
    """Weights with the eyes, and as many keys and values as a loaded one allocates."""
    folder = saved(name, tmp_path)
    memory = memory_of("draft", folder, max_length=50)
    assert memory.parameters >= text_parameters(name)
    assert memory.weights == 4 * memory.parameters
    models = trio() | {"draft": folder}
    with RSDPipeline.from_pretrained(**models, device="cpu", max_length=50, max_batch_size=3) as pipe:
        draft: Any = pipe.backend.draft
        pipe.generate("hello", threshold=0, max_tokens=3)
        assert draft.runner.cache.bytes == 3 * 51 * memory.cache_per_token


@pytest.mark.parametrize("architecture", EXPERTS)
def test_of_experts_those_that_are_chosen_count(architecture: str) -> None:
    model = causal(architecture, 3)
    parameters = {name: one.numel() for name, one in model.named_parameters()}
    experts = sum(count for name, count in parameters.items() if ".experts." in name)
    assert experts
    assert active_parameters(model) == sum(parameters.values()) - experts // 2


def test_experts_may_be_counted_by_layer() -> None:
    """As by Hunyuan's configs."""
    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    models = [
        transformers.HunYuanMoEV1ForCausalLM(
            transformers.HunYuanMoEV1Config(
                **small,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
                num_experts=4,
                moe_topk=chosen,
            )
        )
        for chosen in (2, [2, 2])
    ]
    assert active_parameters(models[0]) == active_parameters(models[1])


def test_a_config_that_no_language_model_has() -> None:
    source = Source.of("draft", seeing("Mistral3"), {"tokenizer": tokenizer("ascii")})
    assert (
        type(source.empty(transformers.AutoModelForCausalLM)) is transformers.Mistral3ForConditionalGeneration
    )
