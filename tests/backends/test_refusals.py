"""What cannot work is refused when it is loaded, by name, with a hint."""

from __future__ import annotations

import copy
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rsd_integrations import Output, RSDPipeline
from rsd_integrations.backends.shared.sources import Source
from rsd_integrations.backends.torch.refusals import check_architecture
from rsd_integrations.errors import BackendError, ConfigError, ModelError
from rsd_integrations.pocket import pocket_paths
from tests.tiny_models import causal, shaken, token_classifier, tokenizer, trio


def load(**given: Any) -> RSDPipeline:
    return RSDPipeline.from_pretrained(**trio() | {"device": "cpu"} | given)


def without_template() -> Any:
    tok = copy.deepcopy(tokenizer("ascii"))
    tok.chat_template = None
    return tok


@pytest.mark.parametrize(
    "options", [{"max_batch_size": 0}, {"max_length": 1}, {"max_batch_size": True}, {"max_length": True}]
)
def test_no_room(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"=(0|1|True) is not valid"):
        load(**options)


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/model"])
@pytest.mark.parametrize("role", ["draft", "prm"])
def test_a_folder_that_is_not_there(role: str, name: str) -> None:
    with pytest.raises(ModelError, match=rf"^{role}='{name}' is neither a folder nor a hub id"):
        load(**{role: name})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/no/such", "the tokenizer of draft ('/no/such') is neither a folder nor a hub id."),
        ("http://host/v1", "the tokenizer of draft ('http://host/v1') is a URL. Give a folder or hub id."),
        ("acme/typo", "cannot read the tokenizer of draft ('acme/typo'): "),
    ],
)
def test_a_tokenizer_that_is_not_there(name: str, said: str) -> None:
    """It is the tokenizer's name that is wrong, not the model's."""
    for options in ({"draft": (causal("Qwen2", 0, "ascii"), name)}, {"draft_kwargs": {"tokenizer": name}}):
        with pytest.raises(ModelError, match=f"^{re.escape(said)}"):
            load(**{"draft": str(pocket_paths().draft), **options})


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_in_another_encoding(tmp_path: Path) -> None:
    folder = shutil.copytree(pocket_paths().draft, tmp_path / os.fsdecode(b"\xca\xfd"))
    with pytest.raises(ModelError, match=r"^the name of draft='.*\\udcca.*' is not UTF-8.*Rename the folder"):
        load(draft=folder)


def test_one_chat_template_of_two() -> None:
    with pytest.raises(ModelError, match=r"target.*no chat template"):
        load(target=(causal("Llama", 1, "ascii"), without_template()))


def test_two_base_models_without_templates_work() -> None:
    pair = {
        role: (causal("Qwen2", seed, "ascii"), without_template())
        for seed, role in enumerate(("draft", "target"))
    }
    with load(**pair) as pipe:
        backend: Any = pipe.backend
        session = backend.draft.open("plain text")
        assert tokenizer("ascii").decode(session.tokens) == "plain text"
        assert pipe.generate("plain text", max_tokens=5, threshold=0).usage.completion_tokens


def test_no_end_of_sequence() -> None:
    tok, model = copy.deepcopy(tokenizer("ascii")), copy.deepcopy(causal("Qwen2", 0, "ascii"))
    tok.eos_token = None
    model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        load(draft=(model, tok))


@pytest.mark.parametrize("source", [3, None, object()])
def test_no_model_at_all(source: Any) -> None:
    with pytest.raises(ModelError, match="is no model"):
        load(target=source)


def test_an_encoder_decoder() -> None:
    config = transformers.T5Config(
        vocab_size=180, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(ModelError, match="encoder-decoder"):
        load(draft=(transformers.T5ForConditionalGeneration(config), tokenizer("ascii")))


def test_a_recurrent_model_with_a_cache_of_its_own() -> None:
    config = transformers.RwkvConfig(vocab_size=180, hidden_size=16, num_hidden_layers=2)
    with pytest.raises(ModelError, match="rolled back"):
        load(draft=(transformers.RwkvForCausalLM(config), tokenizer("ascii")))


def test_layers_that_transformers_own_caches_do_not_know() -> None:
    source = Source.of("draft", causal("Qwen2", 0, "ascii"), {"tokenizer": tokenizer("ascii")})
    source.config, source.model = copy.deepcopy(source.config), None
    vars(source.config)["layer_types"] = ["odd_attention"] * 2
    with pytest.raises(ModelError, match=r"odd_attention.*rolled back"):
        check_architecture(source)


def test_alibi_does_not_go_by_positions() -> None:
    config = transformers.BloomConfig(vocab_size=180, hidden_size=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"slots|positions"):
        load(draft=(transformers.BloomForCausalLM(config).eval(), tokenizer("ascii")))


def test_a_model_that_ignores_its_mask_is_found_out() -> None:
    """A subtle one: everything runs, the numbers are wrong."""
    model = copy.deepcopy(causal("Qwen2", 0, "ascii"))
    forward = model.model.forward

    def blind(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None:
            kwargs["attention_mask"] = torch.ones_like(mask)
        return forward(*args, **kwargs)

    model.model.forward = blind
    with pytest.raises(ModelError, match="per-row positions"):
        load(draft=(model, tokenizer("ascii")))


@pytest.mark.parametrize("role", ["target", "prm"])
def test_a_model_that_overflows_is_told_so(role: str) -> None:
    """Its activations are beyond what float16 holds, in plain forwards as well."""
    made = causal("Qwen2", 1, "ascii") if role == "target" else token_classifier(0, "ascii")
    model = copy.deepcopy(made)
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.mlp.up_proj, layer.mlp.down_proj):
                linear.weight.mul_(400)
    with load(**{role: (copy.deepcopy(model), tokenizer("ascii"))}) as pipe:
        pipe.generate("hello", max_tokens=2)
    with pytest.raises(ModelError, match="NaN or infinite numbers") as caught:
        load(**{role: (model.half(), tokenizer("ascii"))})
    assert "dtype" in caught.value.hint


def forbidding(tokens: slice) -> Any:
    """A model whose head has a bias, of minus infinity for these tokens."""
    tok = tokenizer("ascii")
    config = transformers.PhiConfig(
        vocab_size=len(tok),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = shaken(transformers.PhiForCausalLM(config), tok)
    with torch.no_grad():
        model.lm_head.bias[tokens] = -torch.inf
    return model, tok


def test_a_model_that_forbids_some_tokens() -> None:
    model, tok = forbidding(slice(5, 9))
    prompt = tok.apply_chat_template(
        [{"role": "user", "content": "Ava has 12 marbles."}], add_generation_prompt=True, return_tensors="pt"
    )
    plain = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    with load(target=(model, tok)) as pipe:
        made = pipe.generate("Ava has 12 marbles.", threshold=2.0, max_tokens=20)
    assert (
        made.text.strip()
        == tok.decode(plain[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_of_tokens_that_a_model_forbids(temperature: float) -> None:
    model, tok = forbidding(slice(None, -1))
    model.lm_head.bias.data[tok.convert_tokens_to_ids("a")] = 0.0
    output = Output.of(response_format={"type": "json_object"})
    with load(target=(model, tok)) as pipe, pytest.raises(BackendError, match="rules out every token"):
        pipe.generate("hello", threshold=2.0, temperature=temperature, output=output)


def test_a_prm_of_no_known_format() -> None:
    with pytest.raises((ModelError, ConfigError), match=r"prm_format|format"):
        load(prm=(causal("Qwen2", 0, "ascii"), tokenizer("ascii")))


def test_an_unknown_format_name() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        load(prm_format="nonsense")


def test_the_window_is_the_smallest_of_positions_and_max_length() -> None:
    with load(max_length=100) as pipe:
        assert (pipe.backend.draft.info.window, pipe.backend.draft.info.longest) == (100, 512)
    with load(max_length=10_000) as pipe:
        assert (pipe.backend.draft.info.window, pipe.backend.draft.info.longest) == (512, 512)


@pytest.mark.parametrize("role", ["draft", "target", "prm"])
@pytest.mark.parametrize("value", [5, "device", [("device", "cpu")], 0])
def test_options_of_a_role_are_a_mapping(role: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{role}_kwargs=.*is no mapping"):
        load(**{f"{role}_kwargs": value})
    with pytest.raises(ConfigError, match=rf"{role}_kwargs: model_kwargs=.*is no mapping"):
        load(**{role: "some/model", f"{role}_kwargs": {"model_kwargs": value}})


@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"device_map": {"": 0}}])
def test_a_device_map_needs_accelerate(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_integrations.backends.shared.sources.is_accelerate_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r'target_kwargs: device_map=.*pip install "rsd-integrations\[gpu\]"'
    ):
        load(target="some/model", target_kwargs=options)


def test_only_a_missing_safetensors_file_points_to_pickles(tmp_path: Path) -> None:
    causal("Llama", 1, "ascii").save_pretrained(tmp_path)
    tokenizer("ascii").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no_such_option") as caught:
        load(target=tmp_path, target_kwargs={"model_kwargs": {"no_such_option": 1}})
    assert ".bin" not in caught.value.hint
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        load(target=tmp_path)
    assert "use_safetensors=False" in caught.value.hint
