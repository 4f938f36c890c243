"""Names of other libraries and slips: what is said of them is what was meant, and what the place takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from rsd_integrations import RSDConfig, RSDPipeline
from rsd_integrations.adapters.calls import PER_CALL
from rsd_integrations.backends.shared.sources import _MODEL_OPTIONS, _OTHER_OPTIONS, HUB_OPTIONS
from rsd_integrations.backends.vllm.address import OPTIONS, split_options
from rsd_integrations.cli.settings import read_config
from rsd_integrations.errors import ConfigError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.naming import _HABITS, _OF_ONE_MODEL, check_known, nearest
from rsd_integrations.testing import scripted_pipeline

MODELS = {"draft": "a", "target": "b", "prm": "c"}
PLACES: dict[str, Iterable[str]] = {
    "config": RSDConfig.model_fields,
    "pipeline": (*RSDConfig.model_fields, "config", "timeout", "output"),
    "call": PER_CALL,
    "ChatRSD": ChatRSD.model_fields,
    "RSDLLM": RSDLLM.model_fields,
    "servers": (*OPTIONS, *HUB_OPTIONS),
}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_completion_tokens", "Did you mean 'max_tokens'?"),
        ("max_output_tokens", "Did you mean 'max_tokens'?"),
        ("max_new_tokens", "Did you mean 'max_tokens'?"),
        ("token", 'draft_kwargs={"token": ...}, and so target_kwargs and prm_kwargs'),
        ("hf_token", 'draft_kwargs={"token": ...}, and so target_kwargs and prm_kwargs'),
        ("cache_dir", 'draft_kwargs={"cache_dir": ...}'),
        ("model_kwargs", 'draft_kwargs={"model_kwargs": ...}'),
        ("trust_remote_code", 'draft_kwargs={"trust_remote_code": ...}'),
        ("revision", 'draft_kwargs={"revision": ...}'),
        ("quantization_config", 'draft_kwargs={"quantization_config": ...}'),
        ("max_model_len", "Did you mean 'max_length'?"),
        ("context_window", "Did you mean 'max_length'?"),
        ("max_num_seqs", "Did you mean 'max_batch_size'?"),
        ("draft_model", "Did you mean 'draft'?"),
        ("target_model", "Did you mean 'target'?"),
        ("prm_model", "Did you mean 'prm'?"),
        ("model_name", "Models are named by draft, target and prm."),
        ("base_url", "is given as the model: draft=..., target=..., prm=...."),
        ("stop_token_ids", "There is no such setting; stop takes strings."),
        ("stop_sequences", "Did you mean 'stop'?"),
        ("stop_strings", "Did you mean 'stop'?"),
        ("stop_words", "Did you mean 'stop'?"),
        ("enable_thinking", 'chat_template_kwargs={"enable_thinking": ...}'),
        ("reasoning_effort", 'chat_template_kwargs={"reasoning_effort": ...}'),
        ("delta", "Did you mean 'threshold'?"),
        ("do_sample", "Set temperature: 0 is greedy"),
        ("step_separator", "Did you mean 'step_delimiter'?"),
        ("step_word", "Did you mean 'step_delimiter'?"),
        ("max_gen_toks", "Did you mean 'max_tokens'?"),
        ("until", "Did you mean 'stop'?"),
        ("n", "For several, call once for each, with a seed of its own."),
        ("n_sampling", "For several, call once for each, with a seed of its own."),
        ("num_return_sequences", "For several, call once for each, with a seed of its own."),
        ("temprature", "Did you mean 'temperature'?"),
        ("zzz", "Known are: "),
    ],
)
@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
def test_an_adapter_says_what_was_meant(kind: Any, name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown parameter '{name}'") as caught:
        kind(**MODELS, **{name: 1})
    assert meant in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_completion_tokens", "Did you mean 'max_tokens'?"),
        ("reasoning_effort", 'chat_template_kwargs={"reasoning_effort": ...}'),
        ("delta", "Did you mean 'threshold'?"),
        ("stop_sequences", "Did you mean 'stop'?"),
        ("request_timeout", "Did you mean 'timeout'?"),
        ("timout", "Did you mean 'timeout'?"),
    ],
)
def test_a_call_says_what_was_meant(name: str, meant: str) -> None:
    with scripted_pipeline(["a"]) as pipe:
        for ask in (
            lambda given: ChatRSD.from_pipeline(pipe).invoke("x", **given),
            lambda given: RSDLLM.from_pipeline(pipe).complete("x", **given),
            lambda given: pipe.generate("x", **given),
            lambda given: pipe.astream("x", **given),
        ):
            with pytest.raises(ConfigError, match=f"unknown parameter '{name}'") as caught:
                ask({name: 1})
            assert meant in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cofig", "Did you mean 'config'?"),
        ("tools", "Write output=Output.of(tools=...)."),
        ("response_format", "Write output=Output.of(response_format=...)."),
        ("stream", "Call stream or astream."),
        ("zzz", ", config, timeout, output."),
    ],
)
def test_a_pipeline_knows_more_than_the_fields_of_a_config(name: str, meant: str) -> None:
    with scripted_pipeline(["a"]) as pipe, pytest.raises(ConfigError) as caught:
        pipe.generate("x", **{name: 1})
    assert meant in str(caught.value)
    with pytest.raises(ConfigError) as caught:  # A config has none of these.
        RSDConfig().override(**{name: 1})
    assert meant not in str(caught.value)


@pytest.mark.parametrize("place", PLACES)
def test_no_place_is_told_of_what_it_does_not_take(place: str) -> None:
    known = tuple(PLACES[place])
    for name in set(_HABITS).difference(known):
        told = nearest(name, known)
        meant = [ours for ours, said in _HABITS[name] if (said or f"Did you mean {ours!r}?") == told]
        assert set(meant) <= set(known)
        assert meant or told == f"Known are: {', '.join(known)}."


def test_what_is_told_is_still_there() -> None:
    known = {name for names in PLACES.values() for name in names}
    assert {ours for meant in _HABITS.values() for ours, _ in meant} <= known
    assert set(_OF_ONE_MODEL) <= {*OPTIONS, *HUB_OPTIONS, *_MODEL_OPTIONS, *_OTHER_OPTIONS}


def test_known_names_pass_whatever_their_habit() -> None:
    check_known(["tools", "token"], ["tools", "token"])
    with pytest.raises(ConfigError, match=r"unknown parameter 'zzz'\. Known are: threshold, stop"):
        check_known(["zzz"], ["threshold", "stop"])


def test_options_of_a_model_name_what_is_near() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown draft_kwargs 'revison'\. Did you mean 'revision'\?"
    ) as found:
        RSDPipeline.from_pretrained("a", "b", "c", draft_kwargs={"revison": "main"})
    assert "Anything else goes into model_kwargs={...}." in str(found.value)
    with pytest.raises(ConfigError, match=r"unknown draft_kwargs 'revison'\. Did you mean 'revision'\?"):
        split_options("draft", {"revison": "main"}, HUB_OPTIONS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_new_tokens", "Did you mean --max-tokens?"),
        ("max_token", "Did you mean --max-tokens?"),
        ("top_q", "Did you mean 'top_p'?"),
        ("delta", "Known are: weighting, "),
        ("zzz", ", --max-tokens, "),
    ],
)
def test_a_command_line_names_its_options(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(f'{{"{name}": 5}}', swept=("threshold",), max_tokens=None, seed=None)
    assert meant in str(caught.value)
