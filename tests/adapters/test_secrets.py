"""Secrets among the options: loaded with, shown to nobody."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps, load
from pydantic import ValidationError

from rsd_integrations import RSDPipeline
from rsd_integrations.adapters import sources
from rsd_integrations.adapters.secrets import has_secrets, hidden, revealed, without_secrets
from rsd_integrations.adapters.sources import find_source
from rsd_integrations.errors import ConfigError, ModelError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pocket import pocket_paths
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
        ("apikey", True),
        ("apiKey", True),
        ("x-api-key", True),
        ("api_keys", True),
        ("hf-token", True),
        ("X-Session-Token", True),
        ("accessToken", True),
        ("password_", True),
        ("db_passwd", True),
        ("Proxy-Authorization", True),
        ("set-cookie", True),
        ("bearer", True),
        ("default_headers", True),
        ("eos_token", False),
        ("begin_of_image_token", False),
        ("tokenizer_class", False),
        ("max_length", False),
        ("max_new_tokens", False),
        ("num_key_value_heads", False),
        ("key_value_proj_dim", False),
        ("tie_keys", False),
        ("qk_layernorm", False),
        ("attention", False),
        ("author", False),
        ("header_dim", False),
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


@pytest.mark.parametrize(
    "value", [b"hf_XYZ", bytearray(b"hf_XYZ"), {"hf_XYZ"}, 4711, Path("hf_XYZ")], ids=str
)
def test_a_secret_need_not_be_text(value: Any) -> None:
    options = {"api_key": value, "headers": {"a": value}, "max_length": 512, "tokenizer": b"x"}
    shown = hidden(options)
    assert "XYZ" not in repr(shown)
    assert "4711" not in repr(shown)
    assert revealed(shown) == revealed(hidden(shown)) == options
    assert has_secrets(shown)
    assert without_secrets(options) == without_secrets(shown) == {"max_length": 512, "tokenizer": b"x"}
    for kind in (ChatRSD, RSDLLM):
        assert "XYZ" not in repr(kind(**NAMED, draft_kwargs={"api_key": value}))


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
def test_nor_do_errors_of_pairs_in_place_of_a_mapping(kind: Any) -> None:
    with pytest.raises(ValidationError, match="draft_kwargs") as caught:
        kind(**NAMED, draft_kwargs=[("api_key", "hf_XYZ")])
    assert "XYZ" not in str(caught.value) + repr(caught.value.errors())


URLS = [
    "http://user:hf_XYZ@127.0.0.1:9",
    "http://hf_XYZ@127.0.0.1:999999",
    "ftp://user:hf_XYZ@127.0.0.1",
    "http://127.0.0.1:9/#hf_XYZ",
    "http://127.0.0.1:9?hf_XYZ",
]


@pytest.mark.parametrize("url", URLS)
def test_urls_with_secrets_are_refused_and_not_quoted(url: str) -> None:
    served = dict.fromkeys(NAMED, "http://127.0.0.1:9")
    for given in (url, ["http://127.0.0.1:9", url]):
        for kind in (ChatRSD, RSDLLM):
            for models in (NAMED, served):
                with pytest.raises(ValidationError, match="target") as caught:
                    kind(**{**models, "target": given})
                assert "XYZ" not in str(caught.value) + repr(caught.value.errors()), (given, models)
        with pytest.raises(ConfigError, match="target") as refused:
            RSDPipeline.from_vllm(**{**served, "target": given})
        assert "XYZ" not in str(refused.value)


@pytest.mark.parametrize("name", ["source", "tokenizer"])
def test_urls_with_logins_are_hidden_among_options(name: str) -> None:
    options = {name: URLS[0], "revision": "http://no-login/a@b"}
    for kind in (ChatRSD, RSDLLM):
        shown = repr(kind(**NAMED, target_kwargs=options))
        assert "XYZ" not in shown
        assert "a@b" in shown
    assert revealed(hidden(options)) == options


def test_loading_refuses_them_before_the_hub_is_asked() -> None:
    here = pocket_paths()
    named = {"draft": here.draft, "target": here.target, "prm": here.prm}
    for given in ({"target": URLS[2]}, {"target_kwargs": {"tokenizer": URLS[0]}}):
        with pytest.raises(ConfigError, match="names a user") as refused:
            RSDPipeline.from_pretrained(**{**named, **given})
        assert "XYZ" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
@pytest.mark.parametrize("field", ["model", "pipeline", "device"])
def test_a_url_with_a_login_is_refused_unquoted_where_none_belongs(kind: Any, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        kind(**({} if field == "pipeline" else NAMED), **{field: "http://u:hf_XYZ@h"})
    assert "hf_XYZ" not in str(refused.value)
    assert "hf_XYZ" not in str(refused.value.errors())


def test_a_layer_whose_name_ends_like_a_secret_is_none() -> None:
    places = {"device_map": {"h.0.attn.key": 0, "lm_head": 1}}
    assert without_secrets(places) == places
