"""What goes wrong is seen: by users of LlamaIndex's engines, and as it is by users of the model."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, ValidationError

from rsd_integrations.errors import (
    AskedError,
    BackendError,
    ConfigError,
    EngineClosedError,
    ModelError,
    PromptError,
    RSDError,
)
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.llama_index.entries import ENTRIES
from tests.llama_index.spans import recording


class Colour(BaseModel):
    """A colour."""

    name: str


INDEX = SummaryIndex.from_documents([Document(text="The sky is blue.")])
GOOD = '{"name": "blue"}'


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "settings": (
        {"threshold": -1.0},
        ConfigError,
        "threshold=-1.0: Input should be greater",
    ),
    "prompt": ({"system_prompt": "x" * 3000}, PromptError, "do not fit the window"),
    "models": ({"system_prompt": "Break."}, TypeError, "it broke"),
}


def script(prompt: Any, index: int, text: str, output: Any) -> str | Exception | None:
    if index:
        return None
    if "Break." in prompt[0]["content"]:
        return TypeError("it broke")
    return f'<tool_call>\n{{"name": "Colour", "arguments": {GOOD}}}\n</tool_call>' if output.tools else GOOD


def wrong_llm(pipe: RSDPipeline, what: str) -> RSDLLM:
    """Changed as only a copy can be: unchecked."""
    made: RSDLLM = RSDLLM.from_pipeline(pipe).model_copy(update=WRONG[what][0])
    return made


async def _gathered(stream: Any) -> str:
    return "".join([str(one) async for one in await stream])


PROMPT = PromptTemplate("Which colour?")
ASKED: dict[str, Any] = {
    "predict": lambda llm: llm.apredict(PROMPT),
    "stream": lambda llm: _gathered(llm.astream(PROMPT)),
    "structured": lambda llm: llm.astructured_predict(Colour, PROMPT),
    "stream structured": lambda llm: _gathered(llm.astream_structured_predict(Colour, PROMPT)),
    "query": lambda llm: INDEX.as_query_engine(llm=llm).aquery("Which?"),
    "query a form": lambda llm: INDEX.as_query_engine(llm=llm, output_cls=Colour).aquery("Which?"),
}
ASKED_SYNC: dict[str, Any] = {
    "predict": lambda llm: llm.predict(PROMPT),
    "stream": lambda llm: "".join(llm.stream(PROMPT)),
    "structured": lambda llm: llm.structured_predict(Colour, PROMPT),
    "stream structured": lambda llm: list(llm.stream_structured_predict(Colour, PROMPT)),
    "query": lambda llm: INDEX.as_query_engine(llm=llm).query("Which?"),
    "streamed query": lambda llm: "".join(
        INDEX.as_query_engine(llm=llm, streaming=True).query("Which?").response_gen
    ),
    "query a form": lambda llm: INDEX.as_query_engine(llm=llm, output_cls=Colour).query("Which?"),
}


FORMS = ("structured", "stream structured", "query a form")


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("tools", [True, False])
@pytest.mark.parametrize("how", ASKED_SYNC)
async def test_users_of_engines_see_the_error(how: str, tools: bool, what: str) -> None:
    _, cause, message = WRONG[what]
    if what == "settings" and "query" in how:
        pytest.skip("the engine itself sets a field, which validates them all")
    with scripted_pipeline(script, window=2000) as pipe:
        pipe.backend.draft.takes_tools = tools  # type: ignore[misc]
        llm = wrong_llm(pipe, what)
        with pytest.raises(AskedError, match=message) as caught:
            ASKED_SYNC[how](llm)
        assert isinstance(caught.value.__cause__, cause)
        assert not isinstance(caught.value, ValueError | TypeError)
        assert ("schema of" in str(caught.value)) == (how in FORMS and what == "prompt")
        if how in ASKED:
            with pytest.raises(AskedError, match=message):
                await ASKED[how](llm)
        assert pipe.backend.draft.open_sessions == 0  # type: ignore[attr-defined]
        assert "blue" in str(ASKED_SYNC[how](RSDLLM.from_pipeline(pipe)))


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("entry", ENTRIES)
def test_users_of_the_model_get_it_as_it_is(entry: str, what: str) -> None:
    _, cause, message = WRONG[what]
    with scripted_pipeline(script, window=2000) as pipe:
        llm = wrong_llm(pipe, what)
        with pytest.raises(AskedError):
            llm.predict(PROMPT)
        with pytest.raises(cause, match=message):  # What was asked before does not stick.
            ENTRIES[entry](llm)


def test_models_that_cannot_be_loaded_are_seen(tmp_path: Any, pipe: RSDPipeline) -> None:
    gone = str(tmp_path / "gone")
    llm = RSDLLM(draft=gone, target=gone, prm=gone)
    with pytest.raises(ModelError, match="gone"):
        INDEX.as_query_engine(llm=llm).query("Which?")
    llm = RSDLLM.from_pipeline(pipe)
    engine = INDEX.as_query_engine(llm=llm)
    pipe.close()
    with pytest.raises(EngineClosedError):
        engine.query("Which?")


def test_the_hint_is_told_too() -> None:
    with scripted_pipeline(script, window=200) as pipe, pytest.raises(AskedError) as caught:
        RSDLLM.from_pipeline(pipe, system_prompt="x" * 300).predict(PROMPT)
    cause = caught.value.__cause__
    assert isinstance(cause, PromptError)
    assert caught.value.message == cause.message
    assert caught.value.hint.startswith(f"{cause.hint} If LlamaIndex packed it: ")


def test_answers_that_do_not_fit_are_still_llama_indexs_to_judge() -> None:
    with scripted_pipeline(['{"nome": "blue"}']) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        llm = RSDLLM.from_pipeline(pipe)
        with pytest.raises(ValidationError, match="name"):
            llm.structured_predict(Colour, PROMPT)
        engine = INDEX.as_query_engine(llm=llm, output_cls=Colour)
        assert str(engine.query("Which?")) == "Empty Response"


@pytest.mark.parametrize("tools", [True, False])
async def test_another_form_in_llm_kwargs_is_refused(tools: bool) -> None:
    with scripted_pipeline(script) as pipe:
        pipe.backend.draft.takes_tools = tools  # type: ignore[misc]
        llm = RSDLLM.from_pipeline(pipe)
        given: dict[str, Any] = {"response_format": {"type": "text"}}
        with pytest.raises(AskedError, match="ask for another form than output_cls") as caught:
            llm.structured_predict(Colour, PROMPT, llm_kwargs=given)
        assert isinstance(caught.value.__cause__, ConfigError)
        with pytest.raises(AskedError, match="Leave tools out"):
            await llm.astructured_predict(Colour, PROMPT, llm_kwargs={"tools": []})
        kept: dict[str, Any] = {"seed": 3, "tool_choice": "any"} if tools else {"seed": 3}
        llm.structured_predict(Colour, PROMPT, llm_kwargs=kept)
        assert kept["seed"] == 3 and len(kept) == 1 + tools


def test_asking_has_one_span(pipe: RSDPipeline) -> None:
    with recording() as record:
        RSDLLM.from_pipeline(pipe).predict(PROMPT)
    assert len(record.named("RSDLLM.predict")) == 1


@pytest.mark.parametrize("tools", [True, False])
async def test_what_a_stop_string_cuts_is_an_error(tools: bool) -> None:
    with scripted_pipeline(script) as pipe:
        pipe.backend.draft.takes_tools = tools  # type: ignore[misc]
        llm = RSDLLM.from_pipeline(pipe, stop=["blue"])
        what = "call" if tools else "JSON document"
        with pytest.raises(BackendError, match=f"no whole {what}.*stop string"):
            llm.structured_predict(Colour, PROMPT)
        with pytest.raises(BackendError, match=f"no whole {what}.*stop string"):
            await llm.astructured_predict(Colour, PROMPT)


@pytest.mark.parametrize("takes_tools", [True, False])
async def test_a_prompt_that_its_form_makes_too_long(takes_tools: bool) -> None:
    """LlamaIndex fills the window with texts, and knows nothing of the form."""
    index = SummaryIndex.from_documents([Document(text="The sky is blue. " * 500)])
    with scripted_pipeline(script, window=1200) as pipe:
        pipe.backend.draft.takes_tools = takes_tools  # type: ignore[misc]
        given: Any = {"output_cls": Colour, "response_mode": "tree_summarize"}
        engine = index.as_query_engine(llm=RSDLLM.from_pipeline(pipe, max_tokens=100), **given)
        with pytest.raises(AskedError, match=r"schema of Colour takes \d+ characters.*leave max_tokens out"):
            engine.query("Which?")
        with pytest.raises(AskedError, match="schema of Colour"):
            await engine.aquery("Which?")


PLAIN = PromptTemplate("x")


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.complete("x"),
        lambda llm: llm.complete("x", temperature=-1),
        lambda llm: list(llm.stream_complete("x")),
        lambda llm: llm.predict(PLAIN),
        lambda llm: list(llm.stream(PLAIN)),
        lambda llm: llm.structured_predict(Colour, PLAIN),
        lambda llm: llm.structured_predict(Colour, PLAIN, llm_kwargs={"tools": []}),
    ],
)
def test_a_refused_call_keeps_no_pipeline(ask: Callable[[RSDLLM], object], uncollected: None) -> None:
    pipe = scripted_pipeline(script, window=1024)
    llm, kept = wrong_llm(pipe, "prompt"), weakref.ref(pipe)
    with contextlib.suppress(RSDError):
        ask(llm)
        pytest.fail("nothing was raised")
    del pipe, llm
    assert kept() is None
