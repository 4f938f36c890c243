"""Windows are known from configs, before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from rsd_integrations.adapters.windows import known_window
from rsd_integrations.backends.shared.describe import positions, text_config
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.testing import scripted_pipeline
from tests.tiny_models import causal, tokenizer, trio

LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 64}


def yarn(original: int) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": original}


def folder(path: Any, **config: Any) -> str:
    """A model's folder with nothing but a config."""
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return str(path)


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"max_position_embeddings": 300}, 300),
        ({"text_config": {"max_position_embeddings": 200}}, 200),
        ({"max_position_embeddings": 300, "rope_parameters": LONGROPE}, 64),
        ({"max_position_embeddings": 300, "rope_parameters": {"full": LONGROPE, "sliding": {}}}, 64),
        ({"max_position_embeddings": 300, "rope_scaling": {"type": "yarn", "factor": 4}}, 1200),
        ({"max_position_embeddings": 300, "rope_scaling": yarn(75)}, 300),
        ({"max_position_embeddings": 300, "rope_scaling": yarn(200)}, 800),
        (
            {
                "max_position_embeddings": 300,
                "original_max_position_embeddings": 50,
                "rope_scaling": {"type": "dynamic"},
            },
            50,
        ),
        ({"max_position_embeddings": 300, "attn_temperature_tuning": True, "floor_scale": 64}, 63),
        ({"max_position_embeddings": 300, "attn_temperature_tuning": False, "floor_scale": 64}, 300),
        ({}, None),
    ],
)
def test_windows_of_folders(tmp_path: Any, config: Any, window: int | None) -> None:
    assert known_window(folder(tmp_path, **config), None) == window
    assert known_window(tmp_path.parent, {"subfolder": tmp_path.name}) == window


def test_what_is_not_here_is_not_known(tmp_path: Any) -> None:
    assert known_window("no/such-model", {"cache_dir": str(tmp_path)}) is None
    assert known_window("not a hub id, nor a folder", None) is None
    assert known_window(tmp_path, None) is None
    assert known_window(object(), None) is None
    (tmp_path / "config.json").write_text("{")
    assert known_window(tmp_path, None) is None


def test_the_hubs_cache_is_looked_into(tmp_path: Any) -> None:
    commit = "0" * 40
    cached = tmp_path / "models--org--name"
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    folder(cached / "snapshots" / commit, max_position_embeddings=77)
    assert known_window("org/name", {"cache_dir": str(tmp_path)}) == 77


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_what_is_read_is_what_the_engine_takes(kind: str, tmp_path: Any) -> None:
    model = causal(kind, 0, "ascii")
    model.save_pretrained(tmp_path)
    taken = positions(text_config(model.config))
    assert known_window(tmp_path, None) == known_window((model, tokenizer("ascii")), None) == taken


def test_adapters_know_it_before_and_after_loading() -> None:
    models = trio("Llama") | {"device": "cpu"}
    chat, llm = ChatRSD(**models), RSDLLM(**models)
    assert chat.profile is not None
    before = chat.profile["max_input_tokens"], llm.window
    with chat:
        chat.load()
        assert (chat.profile["max_input_tokens"], llm.window) == before
        assert before == (511, 512)
    short = ChatRSD(**models, max_length=100).profile
    assert short is not None and short["max_input_tokens"] == 99


RUNNING: dict[str, tuple[dict[str, Any], int]] = {
    "rsd": ({}, 100),
    "rsd of the best": ({"threshold": 0.0, "draft_candidates": 2, "temperature": 1.0}, 100),
    "a weighting": ({"threshold": 0.0, "weighting": "sigmoid"}, 100),
    "draft alone": ({"threshold": 0.0}, 300),
    "target alone": ({"threshold": 1.5}, 200),
}


@pytest.mark.parametrize("mode", RUNNING)
def test_the_windows_of_the_models_that_run_count(mode: str, tmp_path: Any) -> None:
    """Of the PRM, whose prompt the engine counts too, among them."""
    given, window = RUNNING[mode]
    models: dict[str, Any] = {}
    for role, size in (("draft", 300), ("target", 200), ("prm", 100)):
        (tmp_path / role).mkdir()
        models[role] = folder(tmp_path / role, max_position_embeddings=size)
    assert ChatRSD(**models, **given).window == RSDLLM(**models, **given).window == window
    options = {"prm": str(tmp_path), "prm_kwargs": {"subfolder": "prm"}}
    assert RSDLLM(**{**models, **options}, **given).window == window
    with pytest.raises(ValueError, match=f"window of {window}"):
        RSDLLM(**models, **given, max_tokens=window)
    with scripted_pipeline(["x"]) as pipe:
        for role, size in (("draft", 300), ("target", 200), ("prm", 100)):
            model = getattr(pipe.backend, role)
            model.info = dataclasses.replace(model.info, window=size)
        llm = RSDLLM.from_pipeline(pipe, **given)
        assert llm.window == window
        changed = llm.model_copy(update={"threshold": -1.0})
        assert changed.window == 100


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
def test_the_pocket_trio_has_a_limit_where_none_was_given(kind: Any) -> None:
    assert kind.pocket().max_tokens == 256
    assert kind.pocket(max_tokens=None).max_tokens is None
    assert kind.pocket(max_tokens=9).max_tokens == 9
    assert kind.pocket(max_length=200).max_tokens is None


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
def test_more_tokens_than_the_window_holds_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"max_tokens=1024 leaves no room for a prompt in a window of 1024"):
        kind.pocket(max_tokens=1024)
    with pytest.raises(ValueError, match="window of 300"):
        kind.pocket(max_tokens=500, max_length=300)
    with scripted_pipeline(["x"], window=50) as pipe:
        with pytest.raises(ValueError, match="window of 50"):
            kind.from_pipeline(pipe, max_tokens=50)
        assert kind.from_pipeline(pipe, max_tokens=49).max_tokens == 49
