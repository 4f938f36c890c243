"""Fields, sharing, copies, and what is refused."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.callbacks import FileCallbackHandler, StdOutCallbackHandler
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.load import dumpd, load
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from rsd_integrations.adapters import sources
from rsd_integrations.errors import ConfigError, EngineClosedError, ModelError
from rsd_integrations.langchain import ChatRSD
from tests.counting import ANSWER, QUESTION, counting_pipeline
from tests.langchain.modes import Recorder

NAMED = {"draft": "d", "target": "t", "prm": "p"}


def test_models_and_a_pipeline_are_too_much(pipe: Any) -> None:
    with pytest.raises(ValueError, match="one or the other"):
        ChatRSD.from_pipeline(pipe, draft="d")
    with pytest.raises(ValueError, match="device"):
        ChatRSD.from_pipeline(pipe, device="cpu")
    with pytest.raises(ValueError, match="must be an RSDPipeline"):
        ChatRSD(pipeline="pockets")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": -1}, "greater than or equal to 0"),
        ({"weighting": "steps"}, "unknown weighting 'steps'"),
        ({"temperature": -0.1}, "greater than or equal to 0"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"stop": [""]}, "must not be empty"),
        ({"step_delimiter": []}, "at least one"),
        ({"top_p": 2}, "less than or equal to 1"),
    ],
)
def test_values_out_of_bounds_are_refused_everywhere(llm: Any, pipe: Any, wrong: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChatRSD.from_pipeline(pipe, **wrong)
    for ask in (llm.invoke, llm.bind(**wrong).invoke, lambda *a, **k: list(llm.stream(*a, **k))):
        with pytest.raises(ConfigError, match=message) as told:
            ask(QUESTION, **wrong)
        assert isinstance(told.value, ModelInvalidRequestError)
        assert next(iter(wrong)) in str(told.value)
    assert llm.invoke(QUESTION).content == ANSWER


@pytest.mark.parametrize("how", ["constructor", "call", "bind", "stream"])
def test_unknown_names_are_refused(llm: Any, pipe: Any, how: str) -> None:
    ways: dict[str, Any] = {
        "constructor": lambda: ChatRSD.from_pipeline(pipe, thresold=0.1),
        "call": lambda: llm.invoke(QUESTION, thresold=0.1),
        "bind": lambda: llm.bind(thresold=0.1).invoke(QUESTION),
        "stream": lambda: list(llm.stream(QUESTION, thresold=0.1)),
    }
    with pytest.raises(ValueError, match=r"unknown parameter 'thresold'\. Did you mean 'threshold'"):
        ways[how]()


async def test_unknown_names_are_refused_async(llm: Any) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'threshold'"):
        await llm.ainvoke(QUESTION, thresold=0.1)
    with pytest.raises(ConfigError, match="Did you mean 'threshold'"):
        async for _ in llm.astream(QUESTION, thresold=0.1):
            pass
    assert (await llm.ainvoke(QUESTION)).content == ANSWER


def test_what_is_fixed_cannot_be_given_per_call(llm: Any) -> None:
    with pytest.raises(ConfigError, match="'draft' is fixed for the object"):
        llm.invoke(QUESTION, draft="other")


def rewarded(message: Any) -> list[bool]:
    return list(message.response_metadata["rsd"]["accepted"])


def test_settings_per_object_call_bind_and_config(pipe: Any) -> None:
    llm = ChatRSD.from_pipeline(pipe, threshold=0.7)
    low = [True, True, True]
    assert rewarded(llm.invoke(QUESTION)) == [True, False, True]
    assert rewarded(llm.invoke(QUESTION, threshold=0.05)) == low
    assert rewarded(llm.bind(threshold=0.05).invoke(QUESTION)) == low
    open_llm = llm.configurable_fields(
        threshold=ConfigurableField(id="threshold"), weighting=ConfigurableField(id="weighting")
    )
    assert rewarded(open_llm.with_config(configurable={"threshold": 0.05}).invoke(QUESTION)) == low
    assert rewarded(open_llm.invoke(QUESTION)) == [True, False, True]
    with pytest.raises(ValidationError):
        open_llm.invoke(QUESTION, {"configurable": {"threshold": -1}})
    assert rewarded(llm.model_copy(update={"threshold": 0.05}).invoke(QUESTION)) == low
    handler = Recorder()
    with pytest.raises(ConfigError, match="threshold=-1"):
        llm.model_copy(update={"threshold": -1}).invoke(QUESTION, {"callbacks": [handler]})
    assert len(handler.models) == len(handler.failed) == 1, "handlers are told"


def test_the_pipelines_own_threshold_is_the_default() -> None:
    with counting_pipeline(threshold=0.05) as pipe:
        message = ChatRSD.from_pipeline(pipe).invoke(QUESTION)
    assert message.response_metadata["rsd"]["threshold"] == 0.05
    assert rewarded(message) == [True, True, True]


def test_loading_is_lazy_shared_and_once(loads: Any) -> None:
    one, two = ChatRSD(**NAMED), ChatRSD(**NAMED, threshold=0.3)
    other = ChatRSD(**NAMED, max_length=99)
    assert loads == []
    assert one.batch([QUESTION] * 4)[3].content == ANSWER
    assert two.invoke(QUESTION).content == ANSWER
    assert loads == [NAMED]
    assert one.load() is two.load()
    assert other.load() is not one.load()
    assert loads == [NAMED, NAMED | {"max_length": 99}]


def test_copies_share_the_pipeline(loads: Any) -> None:
    llm = ChatRSD(**NAMED)
    pipe = llm.load()
    copies = [
        llm.model_copy(),
        llm.model_copy(deep=True),
        copy.copy(llm),
        copy.deepcopy(llm),
        llm.bind(threshold=0.9).bound,
        llm.with_config(tags=["x"]).bound,
        llm.with_retry().bound,
        llm.configurable_fields(threshold=ConfigurableField(id="t")).prepare({"configurable": {"t": 0.1}})[0],
        pickle.loads(pickle.dumps(llm)),
    ]
    assert all(one.load() is pipe for one in copies)
    assert len(loads) == 1
    assert llm.model_copy(update={"draft": "another"}).load() is not pipe


def test_copies_share_a_live_pipeline(pipe: Any, llm: Any) -> None:
    for one in (copy.deepcopy(llm), llm.model_copy(deep=True), llm.configurable_fields().default):
        assert one.load() is pipe
        assert one.invoke(QUESTION).content == ANSWER


def test_preload(loads: Any) -> None:
    ChatRSD(**NAMED, preload=True)
    assert loads == [NAMED]
    gc.collect()
    ChatRSD.pocket(preload=True, max_batch_size=2)
    assert loads[1:] == [{"pipeline": "pocket", "max_batch_size": 2}]


def test_a_closed_pipeline(loads: Any) -> None:
    llm = ChatRSD(**NAMED)
    llm.load().close()
    with pytest.raises(EngineClosedError, match="was closed"):
        llm.invoke(QUESTION)
    assert ChatRSD(**NAMED).invoke(QUESTION).content == ANSWER


async def test_a_closed_pipeline_async(pipe: Any, llm: Any) -> None:
    pipe.close()
    with pytest.raises(EngineClosedError, match="was closed"):
        await llm.ainvoke(QUESTION)
    with pytest.raises(EngineClosedError, match="was closed"):
        async for _ in llm.astream(QUESTION):
            pass


def test_a_load_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    outcomes: list[Any] = [ModelError("there is no model in 'd'.", hint="Give a folder."), pipe]

    def fake(spec: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(sources, "_load", fake)
    llm = ChatRSD(**NAMED)
    with pytest.raises(ModelError, match="no model in 'd'"):
        llm.invoke(QUESTION)
    assert llm.invoke(QUESTION).content == ANSWER


async def test_loading_does_not_block_the_loop(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    loading, others_run = threading.Event(), threading.Event()

    def fake(spec: Any) -> Any:
        loading.set()
        assert others_run.wait(10)
        return pipe

    async def other() -> None:
        while not loading.is_set():
            await asyncio.sleep(0)
        others_run.set()

    monkeypatch.setattr(sources, "_load", fake)
    message, _ = await asyncio.gather(ChatRSD(**NAMED).ainvoke(QUESTION), other())
    assert message.content == ANSWER


def test_deep_copies_share_nothing_but_models(pipe: Any) -> None:
    llm = ChatRSD.from_pipeline(pipe, tags=["a"], metadata={"m": 1})
    for other in (copy.deepcopy(llm), llm.model_copy(deep=True)):
        other.tags.append("b")
        other.metadata["mine"] = 2
        assert other.load() is pipe
    assert llm.tags == ["a"] and "mine" not in llm.metadata


def test_none_is_the_default_of_numbers(pipe: Any) -> None:
    llm = ChatRSD.from_pipeline(pipe, temperature=None, top_p=None)
    assert (llm.temperature, llm.top_p) == (0.0, 1.0)
    assert ChatRSD.from_pipeline(pipe, temperature=0.7).invoke(QUESTION, temperature=None, top_p=None).content


def test_pickling_a_live_pipeline_is_refused(llm: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be pickled"):
        pickle.dumps(llm)


def test_a_call_leaves_the_object_equal_and_its_pickle_the_same() -> None:
    """Caches (joblib's, of notebooks) know objects by these."""
    llm, other = ChatRSD.pocket(seed=0, max_tokens=2), ChatRSD.pocket(seed=0, max_tokens=2)
    before = pickle.dumps(llm)
    with llm:
        llm.invoke("How many?")
        assert llm == other and pickle.dumps(llm) == before


class Noted(ChatRSD):
    """With something beside its fields."""

    def note(self, text: str) -> None:
        object.__setattr__(self, "noted", text)


def test_what_a_subclass_keeps_beside_its_fields_is_in_its_pickle() -> None:
    llm = Noted.pocket()
    llm.note("mine")
    assert pickle.loads(pickle.dumps(llm)).noted == "mine"  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_dumpd_and_load(loads: Any) -> None:
    llm = ChatRSD(**NAMED, threshold=0.3, stop=["END"], device="cpu", api_key="secret")
    dumped = dumpd(llm)
    assert "secret" not in str(dumped)
    assert dumped["id"] == ["rsd_integrations", "langchain", "ChatRSD"]  # The public module.
    back = load(dumped, allowed_objects=[ChatRSD], valid_namespaces=["rsd_integrations"])
    assert isinstance(back, ChatRSD)
    assert (back.threshold, back.stop, back.device) == (0.3, ("END",), "cpu")
    assert back.load() is llm.load()


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_folders_and_dtypes_are_saved_by_name(loads: Any) -> None:
    options = {"dtype": torch.bfloat16, "cache_dir": Path("cache")}
    llm = ChatRSD(draft=Path("d"), target=Path("t"), prm="p", dtype=torch.float16, prm_kwargs=options)
    back = load(dumpd(llm), allowed_objects=[ChatRSD], valid_namespaces=["rsd_integrations"])
    assert (back.draft, back.target, back.prm, back.dtype) == ("d", "t", "p", "float16")
    assert back.prm_kwargs == {"dtype": "bfloat16", "cache_dir": "cache"}
    assert back.source is llm.source


def test_the_repr_names_the_models_and_no_secrets(pipe: Any) -> None:
    text = repr(ChatRSD.from_pipeline(pipe, api_key="secret"))
    assert "secret" not in text
    assert repr(pipe) in text
    pocket = ChatRSD.pocket(max_batch_size=7)
    assert "pipeline='pocket'" in repr(pocket)
    assert pocket.source.loaded is None


def test_on_step_must_be_a_plain_function(pipe: Any, llm: Any) -> None:
    async def coroutine(step: Any) -> None:
        pass

    for wrong in (coroutine, 3):
        with pytest.raises(ValueError, match=r"plain function|callable"):
            ChatRSD.from_pipeline(pipe, on_step=wrong)
        with pytest.raises(ValueError, match="plain function"):
            llm.invoke(QUESTION, on_step=wrong)


def test_importing_it_loads_neither_torch_nor_langgraph() -> None:
    code = (
        "import sys, rsd_integrations.langchain as m; m.ChatRSD.pocket()\n"
        "print([n for n in ('torch', 'transformers', 'langgraph', 'llama_index') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_private_names_of_langchain_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("langchain_core.tracers._streaming._V2StreamingCallbackHandler")
    shown = runpy.run_module("rsd_integrations.langchain.tracing")["_SHOWING"]
    assert shown == (FileCallbackHandler, StdOutCallbackHandler)
