"""Making, copying, saving and closing models."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from llama_index.core import Settings
from llama_index.core.extractors import TitleExtractor
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import BaseModel

from rsd_integrations import RSDConfig
from rsd_integrations.adapters import sources
from rsd_integrations.errors import ConfigError, EngineClosedError
from rsd_integrations.llama_index import RSDLLM, hub
from rsd_integrations.testing import scripted_pipeline
from tests.counting import ANSWER, QUESTION
from tests.tiny_models import trio

NAMED = {"draft": "d", "target": "t", "prm": "p"}


def test_what_it_is(llm: Any) -> None:
    assert isinstance(llm, CustomLLM)
    assert isinstance(llm, FunctionCallingLLM)
    assert llm.class_name() == "RSDLLM"


def test_the_hubs_name_for_it() -> None:
    assert hub.RSDLLM is RSDLLM


def test_a_typo_raises(llm: Any, pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown parameter 'treshold'\. Did you mean 'threshold'\?"):
        RSDLLM.from_pipeline(pipe, treshold=0.5)
    with pytest.raises(ValueError, match="treshold"):
        llm.treshold = 0.5
    with pytest.raises(ValueError, match="unknown weighting 'stepp'"):
        RSDLLM.from_pipeline(pipe, weighting="stepp")
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        llm.threshold = -1.0


def test_assigned_fields_hold(llm: Any) -> None:
    llm.threshold = 2.0
    assert llm.complete(QUESTION).text == "ONE\n\nTWO\n\nTHREE"


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 5000}, {"pipeline": "pockets"}, {"draft_candidates": 2}, {"preload": True}]
)
def test_a_refused_assignment_changes_nothing(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = RSDLLM.pocket(seed=3, max_batch_size=3)  # Which no other test has loaded.
    (name, value), given = next(iter(wrong.items())), set(llm.model_fields_set)
    monkeypatch.setattr(sources, "_load", lambda spec: 1 / 0)
    kept = getattr(llm, name)
    with pytest.raises((ValueError, ZeroDivisionError)):
        setattr(llm, name, value)
    assert (getattr(llm, name), llm.model_fields_set) == (kept, given)
    llm.threshold = 0.3
    assert llm.threshold == 0.3


def test_loading_is_lazy_shared_and_once(loads: list[Any]) -> None:
    first, second = RSDLLM(**NAMED), RSDLLM(**NAMED, threshold=2.0)
    assert first.metadata.model_name == "t"
    assert loads == []
    assert first.complete(QUESTION).text == ANSWER
    assert second.complete(QUESTION).text == "ONE\n\nTWO\n\nTHREE"
    assert loads == [NAMED]
    RSDLLM(draft="d2", target="t", prm="p", preload=True)
    assert loads[1:] == [{**NAMED, "draft": "d2"}]


def test_metadata(pipe: Any, loads: list[Any]) -> None:
    metadata = RSDLLM.from_pipeline(pipe, max_tokens=50).metadata
    assert (metadata.context_window, metadata.num_output) == (100_000, 50)
    assert (metadata.is_chat_model, metadata.is_function_calling_model) == (True, True)
    assert metadata.model_name == "scripted-target"
    # Unknown until the models are there, what a chat template puts around a text is estimated.
    assert RSDLLM(**NAMED, max_length=800).metadata.context_window == 800 - 800 // 16
    assert RSDLLM(**NAMED, max_length=4096).metadata.context_window == 4096 - 64
    assert RSDLLM(**NAMED, max_length=800).metadata.num_output == 750 // 4
    assert RSDLLM(**NAMED, max_length=2).metadata.context_window == 2
    assert RSDLLM(**NAMED, model="mine").metadata.model_name == "mine"


def test_payloads_have_no_secrets_and_load_nothing(loads: list[Any]) -> None:
    payload = RSDLLM(**NAMED, api_key="secret", threshold=0.6, max_tokens=50, beta=2.0).to_payload()
    settings = {name: payload.pop(name) for name in RSDConfig.model_fields}
    assert payload == {
        "class_name": "RSDLLM",
        "model_name": "t",
        "draft_model": "d",
        "target_model": "t",
        "prm_model": "p",
    }
    assert (settings["threshold"], settings["max_tokens"], settings["weighting"]) == (0.6, 50, "step")
    assert settings["beta"] is None, "this weighting does not read it"
    assert json.loads(json.dumps(settings)) == settings
    assert loads == []


def test_copies_share(loads: list[Any], llm: Any) -> None:
    named = RSDLLM(**NAMED, seed=3)
    for one in (copy.deepcopy(named), copy.copy(named), named.model_copy(update={"threshold": 0.7})):
        assert one.source is named.source
        assert one.complete(QUESTION).text == ANSWER
    assert loads == [NAMED]
    assert copy.deepcopy(llm).source is llm.source


def test_data_and_back(loads: list[Any]) -> None:
    llm = RSDLLM(**NAMED, threshold=0.7, stop=["x"], system_prompt="Be brief.", api_key="secret")
    llm.complete(QUESTION)
    data = json.loads(llm.to_json())
    assert "secret" not in str(data)
    again = RSDLLM.from_dict(data)
    assert again.source is llm.source
    assert (again.threshold, again.stop, again.system_prompt) == (0.7, ("x",), "Be brief.")
    assert again.complete(QUESTION).text == ANSWER
    assert loads == [NAMED]


def test_paths_and_dtypes_are_data() -> None:
    llm = RSDLLM(draft=Path("/d"), target="t", prm="p", dtype=torch.float32, draft_kwargs={"device": "cpu"})
    data = json.loads(llm.to_json())
    assert (data["draft"], data["dtype"], data["draft_kwargs"]) == ("/d", "float32", {"device": "cpu"})


def test_live_models_are_found_again_in_this_process(pipe: Any, llm: Any) -> None:
    data = json.loads(llm.to_json())
    assert RSDLLM.from_dict(data).source is llm.source
    assert RSDLLM.from_dict(data).complete(QUESTION).text == ANSWER
    assert RSDLLM.from_dict(json.loads(RSDLLM.from_dict(data).to_json())).source is llm.source
    with pytest.raises(ValueError, match=r"no models are named|pipeline must be"):
        RSDLLM.from_dict({**data, "pipeline": "zzz"})
    elsewhere = RSDLLM.from_dict({**data, "pipeline": "live:elsewhere"})
    with pytest.raises(ConfigError, match="'live:elsewhere' is not in this process"):
        elsewhere.complete(QUESTION)


def test_a_function_is_no_data(pipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"weighting=.*is a function"):
        RSDLLM.from_pipeline(pipe, weighting=lambda reward: reward).to_dict()


def test_what_holds_it_tells_models_and_functions_apart() -> None:
    """Caches of ingestion know an extractor by its data, without what looks like an address."""

    def made(llm: RSDLLM) -> str:
        return TitleExtractor(llm=llm).to_json()

    with scripted_pipeline(["a"]) as one, scripted_pipeline(["b"]) as other:
        first = RSDLLM.from_pipeline(one)
        assert made(first) == made(RSDLLM.from_pipeline(one)) != made(RSDLLM.from_pipeline(other))
        assert RSDLLM(**json.loads(made(first))["llm"]).source is first.source
        weighted = [RSDLLM.from_pipeline(one, weighting=one_of) for one_of in (lambda r: r, lambda r: 0.0)]
        assert made(weighted[0]) == made(weighted[0]) != made(weighted[1])
        # Not even a function that can be no key shares its entry.
        keyless = RSDLLM.from_pipeline(one, weighting=Keyless())
        assert made(keyless) != made(keyless)


class Keyless:
    """A weighting that has no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, reward: float) -> float:
        return reward


def test_data_of_models_that_have_no_name() -> None:
    llm = RSDLLM(**trio(), device="cpu")
    data = json.loads(llm.model_dump_json())
    assert "draft" not in data
    assert RSDLLM(**data).source is llm.source
    elsewhere = RSDLLM(pipeline="live:elsewhere")
    assert elsewhere.model_dump()["pipeline"] == "live:elsewhere"


class App(BaseModel):
    """Settings of a user's."""

    llm: RSDLLM


def test_pydantics_data_and_back(loads: list[Any]) -> None:
    llm = RSDLLM(**NAMED, threshold=0.7, api_key="secret", dtype=torch.float32)
    assert "secret" not in llm.model_dump_json()
    app = App.model_validate_json(App(llm=llm).model_dump_json())
    for again in (app.llm, RSDLLM.model_validate(llm.model_dump()), RSDLLM(**llm.dict())):
        assert again.source is llm.source
        assert again.threshold == 0.7
    with pytest.raises(ValueError, match="unknown parameter 'class_name'"):
        RSDLLM(**{**llm.dict(), "class_name": "MockLLM"})


def test_pickling_shares_or_is_refused(loads: list[Any], llm: Any) -> None:
    named = RSDLLM(**NAMED, threshold=0.7)
    again = pickle.loads(pickle.dumps(named))
    assert again.source is named.source
    assert again.threshold == 0.7
    for live in (llm, RSDLLM.from_dict(llm.to_dict())):
        with pytest.raises(ConfigError, match=r"RSDLLM over a live pipeline .* cannot be pickled"):
            pickle.dumps(live)


async def test_a_closed_pipeline_says_so(loads: list[Any]) -> None:
    with RSDLLM(**NAMED) as llm:
        llm.complete(QUESTION)
    with pytest.raises(EngineClosedError, match="was closed"):
        llm.complete(QUESTION)
    with pytest.raises(EngineClosedError, match="was closed"):
        await llm.acomplete(QUESTION)
    async with RSDLLM(**NAMED) as later:
        assert (await later.acomplete(QUESTION)).text == ANSWER
    assert loads == [NAMED, NAMED]
    RSDLLM(**NAMED).close()  # Nothing was loaded: nothing to do.


def test_closing_gives_the_memory_back() -> None:
    def pocket_models() -> list[weakref.ref[Any]]:
        return [
            weakref.ref(item)
            for item in gc.get_objects()
            if issubclass(type(item), transformers.PreTrainedModel) and "pocket" in item.name_or_path
        ]

    of_others = pocket_models()
    # Its length is nobody else's, so its models are its own.
    llm = RSDLLM.pocket(max_tokens=5, max_length=300)
    llm.complete(QUESTION)
    models = [model for model in pocket_models() if model not in of_others]
    assert len(models) >= 3
    llm.close()
    gc.collect()
    assert [model() for model in models] == [None] * len(models)


def test_function_calling_exactly_where_templates_take_tools() -> None:
    for draft, target, able in (
        ("tools", "tools", True),
        ("tools", "ascii", False),
        ("ascii", "tools", False),
    ):
        llm = RSDLLM(**trio(flavours=(draft, target, "ascii")), device="cpu")
        assert llm.metadata.is_function_calling_model is able
        with llm:
            llm.load()
            assert llm.metadata.is_function_calling_model is able
    assert RSDLLM.pocket().metadata.is_function_calling_model is False


def test_as_the_default_of_llama_index(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", None)
    Settings.llm = llm
    assert Settings.llm.complete(QUESTION).text == ANSWER


def test_the_schema_of_its_settings() -> None:
    """Functions are no JSON: what may be given as data is told."""
    properties = RSDLLM.model_json_schema()["properties"]
    assert properties["weighting"]["enum"][0] == "step"
    assert "on_step" not in properties
