"""Answers of a schema, enforced while they are written by real models."""

from __future__ import annotations

import datetime
import enum
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain_core.exceptions import OutputParserException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.v1 import BaseModel as OldModel
from typing_extensions import NotRequired, TypedDict

from rsd_integrations.errors import ConfigError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.backends.test_constraints import loaded

QUESTION = "Ava has 12 marbles. She buys 9 more. How many has she?"


class Part(BaseModel):
    """A part."""

    kind: Literal["red", "blue"]
    whole: bool


class Answer(BaseModel):
    """An answer."""

    marbles: int = Field(ge=0, le=99)
    unit: Literal["pieces", "bags"]
    parts: list[Part] = Field(max_length=2)
    note: str | None = Field(max_length=9)


class Short(BaseModel):
    """An answer."""

    unit: Literal["pieces", "bags"]
    sure: bool


class Typed(TypedDict):
    """An answer."""

    marbles: int
    unit: Literal["pieces", "bags"]


SCHEMA = {
    "title": "answer",
    "description": "An answer.",
    "type": "object",
    "properties": {"unit": {"enum": ["pieces", "bags"]}, "sure": {"type": "boolean"}},
    "required": ["unit", "sure"],
}


@pytest.fixture(scope="module")
def pocket() -> Iterator[ChatRSD]:
    llm = ChatRSD.pocket(temperature=1.0, max_tokens=300)
    yield llm
    llm.load().close()


@pytest.fixture(scope="module")
def tiny() -> Iterator[RSDPipeline]:
    with loaded(("tools", "tools-b", "ascii")) as pipe:
        yield pipe


def model_for(method: str, pocket: ChatRSD, tiny: RSDPipeline) -> ChatRSD:
    """Tools need a template that takes them."""
    if method == "json_schema":
        return pocket
    return ChatRSD.from_pipeline(tiny, temperature=1.0, max_tokens=400, weighting="constant")


METHODS = pytest.mark.parametrize("method", ["json_schema", "function_calling"])


@METHODS
@pytest.mark.parametrize("seed", range(2))
def test_pydantic(method: str, seed: int, pocket: ChatRSD, tiny: RSDPipeline) -> None:
    model = model_for(method, pocket, tiny).with_structured_output(Answer, method=method)
    answer = model.invoke(QUESTION, seed=seed)
    assert isinstance(answer, Answer)


@METHODS
@pytest.mark.parametrize("seed", range(3))
def test_json_schemas_give_dicts(method: str, seed: int, pocket: ChatRSD, tiny: RSDPipeline) -> None:
    model = model_for(method, pocket, tiny).with_structured_output(SCHEMA, method=method)
    answer = model.invoke(QUESTION, seed=seed)
    assert answer.keys() == {"unit", "sure"}
    assert answer["unit"] in ("pieces", "bags") and isinstance(answer["sure"], bool)


@METHODS
def test_typed_dicts(method: str, tiny: RSDPipeline) -> None:
    """Digits go on for as long as they may: greedy tiny models write what a script would have to."""
    text = '{"marbles": 21, "unit": "pieces"}'
    call = f'<tool_call>\n{{"name": "Typed", "arguments": {text}}}\n</tool_call>'
    with scripted_pipeline([text if method == "json_schema" else call]) as pipe:
        model = ChatRSD.from_pipeline(pipe).with_structured_output(Typed, method=method)
        assert model.invoke(QUESTION) == {"marbles": 21, "unit": "pieces"}


@METHODS
async def test_async_batch_and_streams(method: str, pocket: ChatRSD, tiny: RSDPipeline) -> None:
    model = model_for(method, pocket, tiny).with_structured_output(Short, method=method)
    answers = [
        await model.ainvoke(QUESTION, seed=2),
        *model.batch([QUESTION] * 2, seed=2),
        *(await model.abatch([QUESTION] * 2, seed=2)),
        list(model.stream(QUESTION, seed=2))[-1],
        [chunk async for chunk in model.astream(QUESTION, seed=2)][-1],
    ]
    assert len({answer.model_dump_json() for answer in answers}) == 1


@pytest.mark.parametrize("seed", range(3))
def test_json_mode_is_some_object(seed: int, pocket: ChatRSD) -> None:
    raw = pocket.with_structured_output(method="json_mode", include_raw=True).invoke(
        QUESTION, seed=seed, max_tokens=120
    )
    if raw["raw"].response_metadata["finish_reason"] == "stop":
        assert isinstance(json.loads(raw["raw"].content), dict)
        assert raw["parsed"] == json.loads(raw["raw"].content)
    else:
        assert raw["parsed"] is None and "cut off" in str(raw["parsing_error"])


@METHODS
def test_include_raw(method: str, pocket: ChatRSD, tiny: RSDPipeline) -> None:
    model = model_for(method, pocket, tiny).with_structured_output(Answer, method=method, include_raw=True)
    whole = model.invoke(QUESTION, seed=3)
    assert isinstance(whole["parsed"], Answer) and whole["parsing_error"] is None
    assert whole["raw"].response_metadata["rsd"]["steps"] >= 1
    cut = model.invoke(QUESTION, seed=3, max_tokens=4)
    assert cut["parsed"] is None and isinstance(cut["parsing_error"], OutputParserException)
    assert cut["raw"].response_metadata["finish_reason"] == "length"


@METHODS
def test_what_is_cut_off_is_an_error_not_half_an_answer(
    method: str, pocket: ChatRSD, tiny: RSDPipeline
) -> None:
    model = model_for(method, pocket, tiny).with_structured_output(SCHEMA, method=method)
    with pytest.raises(OutputParserException, match="cut off at a limit"):
        model.invoke(QUESTION, max_tokens=12)


def test_a_document_is_one_step_and_scored_as_one(pocket: ChatRSD) -> None:
    steps: list[Any] = []
    answer = pocket.with_structured_output(Answer, include_raw=True).invoke(
        QUESTION, seed=1, on_step=steps.append, step_delimiter=[",", "\n"], threshold=0.5
    )
    written = [step for step in steps if step.text]
    assert len(written) == 1
    assert written[0].text == answer["raw"].content
    assert written[0].reward is not None


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"schema": SCHEMA, "method": "jsonschema"}, "method='jsonschema' is not known"),
        ({"schema": None}, "needs a schema"),
        ({"schema": Answer, "method": "json_mode", "strict": True}, "cannot be strict"),
        ({"schema": 3}, "3"),
        ({"schema": Answer, "method": "function_calling"}, "takes no tools"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], match: str, pocket: ChatRSD) -> None:
    with pytest.raises(ConfigError, match=match):
        pocket.with_structured_output(**fields)


def test_strict_refuses_what_cannot_be_enforced(pocket: ChatRSD) -> None:
    odd = {**SCHEMA, "properties": {"unit": {"type": "array", "uniqueItems": True, "items": {}}}}
    odd = {**odd, "required": ["unit"]}
    with pytest.raises(ConfigError, match="cannot be enforced"):
        pocket.with_structured_output(odd, strict=True).invoke(QUESTION)


def test_the_run_is_told_of_the_schema(pocket: ChatRSD) -> None:
    events: list[Any] = []

    from langchain_core.callbacks import BaseCallbackHandler

    class Handler(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            events.append(kwargs)

    pocket.with_structured_output(SCHEMA).invoke(QUESTION, {"callbacks": [Handler()]}, seed=1)
    told = events[0]["options"]["ls_structured_output_format"]
    assert told["kwargs"]["method"] == "json_schema"
    assert told["schema"]["title"] == "answer"


@pytest.mark.parametrize("include_raw", [False, True])
@METHODS
def test_what_a_stop_string_cuts_is_an_error_not_half_an_answer(
    method: str, include_raw: bool, pocket: ChatRSD, tiny: RSDPipeline
) -> None:
    model = model_for(method, pocket, tiny).with_structured_output(
        SCHEMA, method=method, include_raw=include_raw
    )
    if include_raw:
        cut = model.invoke(QUESTION, stop=[":"], seed=1)
        assert cut["parsed"] is None and "stop string" in str(cut["parsing_error"])
        return
    with pytest.raises(OutputParserException, match=r"no whole .*stop string"):
        model.invoke(QUESTION, stop=[":"], seed=1)
    assert model.invoke(QUESTION, stop=["never written"], seed=1).keys() == {"unit", "sure"}


def test_a_forced_call_that_is_not_made_is_an_error() -> None:
    with scripted_pipeline(["I would rather not."]) as pipe:
        model = ChatRSD.from_pipeline(pipe).with_structured_output(SCHEMA, method="function_calling")
        with pytest.raises(OutputParserException, match="no whole call; it ends in 'I would rather not"):
            model.invoke(QUESTION)


def test_a_json_schema_needs_no_title(pocket: ChatRSD) -> None:
    untitled = {name: part for name, part in SCHEMA.items() if name not in ("title", "description")}
    assert pocket.with_structured_output(untitled).invoke(QUESTION, seed=1).keys() == {"unit", "sure"}
    with pytest.raises(ConfigError, match=r'cannot be made into a tool or a schema.*(?s:.)*Add a "title"'):
        pocket.with_structured_output(untitled, method="function_calling")


class Unit(enum.Enum):
    PIECES = "pieces"
    BAGS = "bags"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    unit: Unit
    day: datetime.date
    pair: tuple[Literal[1, 2], Literal["x"]]


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_a_strict_model_reads_its_document(method: str) -> None:
    """Where nothing is a string that has a type of its own, but in JSON."""
    text = '{"unit": "bags", "day": "2026-11-29", "pair": [2, "x"]}'
    with scripted_pipeline([text, '{"unit": "cups"}']) as pipe:
        model = ChatRSD.from_pipeline(pipe).with_structured_output(Strict, method=method)
        assert model.invoke(QUESTION) == Strict(
            unit=Unit.BAGS, day=datetime.date(2026, 11, 29), pair=(2, "x")
        )
    with scripted_pipeline(['{"unit": "cups"}']) as pipe:
        model = ChatRSD.from_pipeline(pipe).with_structured_output(Strict, method=method)
        with pytest.raises(OutputParserException, match="Failed to parse Strict") as caught:
            model.invoke(QUESTION)
    assert caught.value.llm_output == '{"unit": "cups"}'


def called_with(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_a_strict_model_reads_its_call() -> None:
    arguments = '{"unit": "bags", "day": "2026-11-29", "pair": [2, "x"]}'
    with scripted_pipeline([called_with("Strict", arguments)]) as pipe:
        model = ChatRSD.from_pipeline(pipe).with_structured_output(Strict, method="function_calling")
        assert model.invoke(QUESTION) == Strict(
            unit=Unit.BAGS, day=datetime.date(2026, 11, 29), pair=(2, "x")
        )
    with scripted_pipeline([called_with("Strict", '{"unit": "cups"}')]) as pipe:
        model = ChatRSD.from_pipeline(pipe).with_structured_output(Strict, method="function_calling")
        with pytest.raises(ValidationError, match="Strict"):
            model.invoke(QUESTION)


class Old(OldModel):
    marbles: int


@METHODS
def test_a_model_of_pydantic_1_is_read(method: str) -> None:
    text = '{"marbles": 21}'
    with scripted_pipeline([text if method == "json_schema" else called_with("Old", text)]) as pipe:
        model = ChatRSD.from_pipeline(pipe).with_structured_output(Old, method=method)
        assert model.invoke(QUESTION) == Old(marbles=21)
    with scripted_pipeline(['{"marbles": "x"}']) as pipe, pytest.raises(OutputParserException, match="Old"):
        ChatRSD.from_pipeline(pipe).with_structured_output(Old).invoke(QUESTION)


def test_a_typed_dict_that_langchain_cannot_read_says_how_to_write_it(pocket: ChatRSD) -> None:
    class Loose(TypedDict):
        marbles: NotRequired[Literal[1, 2]]
        more: int

    with pytest.raises(ConfigError, match=r"LangChain reads no Required(?s:.)*Annotated\[T \| None"):
        pocket.with_structured_output(Loose)


@pytest.mark.parametrize("wrong", [int, 3, "text", list[bool]])
def test_what_is_no_schema_is_called_that(wrong: Any, pocket: ChatRSD) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot be made into a tool or a schema(?s:.)*a Pydantic model, a TypedDict"
    ):
        pocket.with_structured_output(wrong)
