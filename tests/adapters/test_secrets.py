"""Secrets among the options: loaded with, shown to nobody."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.load import dumps, load
from pydantic import ValidationError

from rsd_integrations.adapters import sources
from rsd_integrations.adapters.secrets import has_secrets, hidden, revealed, without_secrets
from rsd_integrations.adapters.sources import find_source
from rsd_integrations.errors import ModelError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.testing import scripted_pipeline

NAMED: dict[str, Any] = {"draft": "d", "target": "t", "prm": "p"}
OPTIONS = {
    "draft_kwargs": {"token": "hf_XYZ1", "revision": "main"},
    "target_kwargs": {"use_auth_token": "hf_XYZ2"},
    "prm_kwargs": {"model_kwargs": {"token": "hf_XYZ3", "proxies": {"https": "u:hf_XYZ4@h"}, "x": 1}},
}

OUTLETS: dict[str, Callable[[Any], str]] = {
    "repr": repr,
    "str": str,
    "model_dump": lambda llm: str(llm.model_dump()),
    "source": lambda llm: llm.source.name,
    "copy": lambda llm: repr(llm.model_copy(update={"draft_kwargs": {"token": "hf_XYZ5"}})),
}
OF_LANGCHAIN: dict[str, Callable[[Any], str]] = {
    "dumps": dumps,
    "serialized": lambda llm: str(llm._serialized),
    "cache": lambda llm: llm._get_llm_string(),
    "json": lambda llm: llm.model_dump_json(),
    "identity": lambda llm: str(llm._identifying_params),
    "traced": lambda llm: str(llm._get_ls_params()),
}
OF_LLAMA_INDEX: dict[str, Callable[[Any], str]] = {
    "to_dict": lambda llm: str(llm.to_dict()),
    "to_json": lambda llm: llm.to_json(),
    "to_payload": lambda llm: str(llm.to_payload()),
}


@pytest.mark.parametrize(
    ("kind", "outlet"),
    [
        *((ChatRSD, outlet) for outlet in OUTLETS | OF_LANGCHAIN),
        *((RSDLLM, outlet) for outlet in OUTLETS | OF_LLAMA_INDEX),
    ],
)
def test_no_outlet_shows_a_secret(kind: Any, outlet: str) -> None:
    shown = (OUTLETS | OF_LANGCHAIN | OF_LLAMA_INDEX)[outlet](kind(**NAMED, **OPTIONS, api_key="hf_XYZ6"))
    assert "XYZ" not in shown
    if outlet in ("dumps", "to_dict", "source", "cache"):
        assert "main" in shown, "what is no secret is saved and tells models apart"


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
def test_errors_of_the_constructor_show_no_secret(kind: Any) -> None:
    with pytest.raises(ValueError, match="prm missing") as caught:
        kind(draft="d", target="t", draft_kwargs={"token": "hf_XYZ"}, api_key="hf_XYZ")
    assert "XYZ" not in str(caught.value)


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
@pytest.mark.parametrize(
    "misspelt",
    [{"token": "hf_XYZ"}, {"draft_kwarg": {"token": "hf_XYZ"}}, {"draft_kwargs": "hf_XYZ"}],
    ids=str,
)
def test_nor_do_those_of_misspelt_options(kind: Any, misspelt: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(misspelt))) as caught:
        kind(**NAMED, **misspelt)
    assert "XYZ" not in str(caught.value) + repr(caught.value.errors())


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
def test_the_loader_gets_them(kind: Any, loads: list[Any]) -> None:
    llm = kind(**NAMED, **OPTIONS)
    for one in (llm, llm.model_copy(), pickle.loads(pickle.dumps(llm))):
        assert one.load() is llm.load()
    assert loads == [NAMED | OPTIONS]


def test_tokenizers_are_read_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sources, "check_tools", lambda **given: asked.append(given))
    assert ChatRSD(**NAMED, **OPTIONS).source.takes_tools
    assert asked[0]["draft_kwargs"] == OPTIONS["draft_kwargs"]


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_what_comes_back_from_data_shares_the_models(loads: list[Any]) -> None:
    chat, llm = ChatRSD(**NAMED, **OPTIONS), RSDLLM(**NAMED, **OPTIONS)
    pipe = chat.load()
    data = json.loads(dumps(chat))
    assert "not_implemented" not in str(data)
    back = load(data, allowed_objects=[ChatRSD], valid_namespaces=["rsd_integrations"])
    assert back.load() is RSDLLM.from_dict(llm.to_dict()).load() is pipe
    assert len(loads) == 1


def test_another_token_is_the_same_models(loads: list[Any]) -> None:
    one, two = (ChatRSD(**NAMED, draft_kwargs={"token": token}) for token in ("hf_1", "hf_2"))
    assert one._get_llm_string() == two._get_llm_string() == ChatRSD(**NAMED)._get_llm_string()
    assert one.load() is two.load() is ChatRSD(**NAMED).load()
    assert ChatRSD(**NAMED, draft_kwargs={"revision": "v2"}).source is not one.source


def test_a_wrong_token_can_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(spec: Any) -> Any:
        if spec["draft_kwargs"]["token"] != "right":
            raise ModelError("no access.")
        return scripted_pipeline(["x"])

    monkeypatch.setattr(sources, "_load", load)
    wrong = ChatRSD(**NAMED, draft_kwargs={"token": "wrong"})
    with pytest.raises(ModelError):
        wrong.load()
    right = ChatRSD(**NAMED, draft_kwargs={"token": "right"})
    assert ChatRSD(**NAMED).source is right.source  # Who gives none leaves it as it is.
    assert wrong.load() is right.load()


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("token", True),
        ("hf_token", True),
        ("use_auth_token", True),
        ("api_key", True),
        ("password", True),
        ("client_secret", True),
        ("headers", True),
        ("eos_token", False),
        ("tokenizer", False),
        ("max_tokens", False),
        ("revision", False),
        ("keyed", False),
    ],
)
def test_what_is_a_secret(name: str, secret: bool) -> None:
    options = {name: "v", "other": [{name: "v"}]}
    assert has_secrets(options) is secret
    assert ("'v'" not in repr(hidden(options))) is secret
    assert revealed(hidden(options)) == options
    assert without_secrets({name: "v"}) == (None if secret else {name: "v"})


def test_true_is_no_secret() -> None:
    assert hidden({"token": True}) == {"token": True}
    assert find_source({**NAMED, "draft_kwargs": {"token": True}}).name.count("True") == 1
