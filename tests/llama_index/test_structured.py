"""Structured output: by tools, by documents, in words."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, field_validator

from rsd_integrations.errors import BackendError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.llama_index.structured import LastJSONParser
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.backends.test_constraints import loaded
from tests.llama_index.spans import recording


class Sky(BaseModel):
    """What the sky is like."""

    colour: Literal["blue", "green", "sky blue"]
    sure: bool


PREDICT = "LLMStructuredPredict"
PROMPT = PromptTemplate("Which colour has the {what}?")


@pytest.fixture(scope="module")
def tiny() -> Iterator[RSDPipeline]:
    with loaded(("tools", "tools-b", "ascii")) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def pocket() -> Iterator[RSDPipeline]:
    with RSDPipeline.pocket() as pipe:
        yield pipe


async def every_way(llm: RSDLLM, form: type[BaseModel] = Sky, **given: Any) -> list[Any]:
    """The object by each of the methods."""
    return [
        llm.structured_predict(form, PROMPT, what="sky", **given),
        await llm.astructured_predict(form, PROMPT, what="sky", **given),
        list(llm.stream_structured_predict(form, PROMPT, what="sky", **given))[-1],
        [one async for one in await llm.astream_structured_predict(form, PROMPT, what="sky", **given)][-1],
        llm.as_structured_llm(form).chat([ChatMessage("Which colour has the sky?")]).raw,
    ]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("models", ["tiny", "pocket"])
async def test_real_models_keep_to_the_form(models: str, seed: int, request: Any) -> None:
    """With tools the form is a forced call, without a document."""
    llm = RSDLLM.from_pipeline(request.getfixturevalue(models), temperature=1.0, seed=seed)
    assert llm.metadata.is_function_calling_model is (models == "tiny")
    for found in await every_way(llm):
        assert found.colour in ("blue", "green", "sky blue")
        assert isinstance(found.sure, bool)


class Node(BaseModel):
    """Holds itself."""

    sure: bool
    next: Node | None = None


class Flags(RootModel[Annotated[list[bool], Field(min_length=1, max_length=2)]]):
    """A list."""


class Either(RootModel[bool | None]):
    """A union."""


@pytest.mark.parametrize("mode", ["default", "function"])
@pytest.mark.parametrize("form", [Node, Flags, Either])
async def test_forms_that_are_no_arguments_of_a_tool(tiny: RSDPipeline, form: Any, mode: str) -> None:
    """They are enforced as documents."""
    llm = RSDLLM.from_pipeline(tiny, temperature=1.0, seed=1, pydantic_program_mode=mode)
    for found in await every_way(llm, form):
        assert isinstance(found, form)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("[1]", "the call of 'Sky' cannot be used, its arguments are no"),
        ('"blue"', "the call of 'Sky' cannot be used, the JSON of its arguments"),
        ('{"sure": 1e999}', "the call cannot be used, its JSON is malformed: 1e999 is no finite number"),
    ],
)
def test_a_call_that_is_whole_and_wrong_says_so(arguments: str, why: str) -> None:
    written = f'<tool_call>\n{{"name": "Sky", "arguments": {arguments}}}\n</tool_call>'
    for text, said, cut in ((written, why, False), (written[:-15], "no whole call", True)):
        with scripted_pipeline([text]) as pipe, pytest.raises(BackendError, match=said) as caught:
            RSDLLM.from_pipeline(pipe).structured_predict(Sky, PROMPT, what="sky")
        assert ("stop string" in str(caught.value)) is cut


@pytest.mark.parametrize("models", ["tiny", "pocket"])
async def test_events_come_in_order(models: str, request: Any) -> None:
    llm = RSDLLM.from_pipeline(request.getfixturevalue(models))
    with recording() as record:
        await every_way(llm)
    names = [type(event).__name__ for event in record.events]
    told = [name.removeprefix(PREDICT).removesuffix("Event") for name in names if name.startswith(PREDICT)]
    whole, streamed = ["Start", "End"], ["Start", "InProgress", "End"]
    assert told == [*whole, *whole, *streamed, *streamed, *whole]


async def test_the_form_is_in_the_prompt_and_in_the_constraint() -> None:
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str, output: Any) -> str | None:
        if index == 0:
            seen.append((prompt, output))
        return '{"colour": "blue", "sure": true}' if index == 0 else None

    with scripted_pipeline(script) as pipe:
        pipe.backend.draft.takes_tools = False  # type: ignore[misc]
        found = await every_way(RSDLLM.from_pipeline(pipe, system_prompt="Look up."))
    assert found == [Sky(colour="blue", sure=True)] * 5
    for prompt, output in seen:
        assert prompt[0]["role"] == "system"
        assert prompt[0]["content"].count("Look up.") == 1
        assert "JSON schema" in str(prompt)
        assert output.schema["properties"].keys() == {"colour", "sure"}


WORDS = (
    r"The answer is \boxed{7} of {them}. A guess: {{\"x\": 1}} {\"colour\": \"green\", \"sure\": false}. No: "
    '{"colour": "blue", "sure": true}'
    r' and {"other": {"colour": "green", "sure": false}}, so \boxed{blue}.'
)


async def test_in_words_the_last_object_that_fits_counts() -> None:
    with scripted_pipeline([WORDS]) as pipe:
        llm = RSDLLM.from_pipeline(pipe, pydantic_program_mode=PydanticProgramMode.LLM)
        assert await every_way(llm) == [Sky(colour="blue", sure=True)] * 5


class Visit(BaseModel):
    model_config = ConfigDict(strict=True)

    day: datetime.date


async def test_a_strict_form_is_a_document() -> None:
    """LlamaIndex's tools would take its arguments for Python's objects."""
    with scripted_pipeline(['{"day": "2026-11-29"}']) as pipe:
        llm = RSDLLM.from_pipeline(pipe)
        assert llm.metadata.is_function_calling_model
        assert await every_way(llm, Visit) == [Visit(day=datetime.date(2026, 11, 29))] * 5


async def test_in_words_a_strict_form_reads_json() -> None:
    with scripted_pipeline(['On {"day": "2026-11-29"}.']) as pipe:
        llm = RSDLLM.from_pipeline(pipe, pydantic_program_mode=PydanticProgramMode.LLM)
        assert await every_way(llm, Visit) == [Visit(day=datetime.date(2026, 11, 29))] * 5


def test_in_words_the_prompt_of_the_caller_is_left_alone() -> None:
    prompt = PromptTemplate("Which colour has the {what}?")
    with scripted_pipeline([WORDS]) as pipe:
        llm = RSDLLM.from_pipeline(pipe, pydantic_program_mode="llm")
        llm.structured_predict(Sky, prompt, what="sky")
    assert prompt.output_parser is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "there is none"),
        (r"\boxed{3}", "there is none"),
        ('{"colour": "red"}', "colour"),
        ('{"colour": "blue", "sure": true', "there is none"),
        pytest.param('{"colour": ' + "[" * 100_000, "there is none", id="deep"),
    ],
)
def test_what_does_not_fit_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"no JSON object of Sky(?s:.)*{message}"):
        LastJSONParser(Sky).parse(text)


async def test_what_is_cut_off_is_an_error_not_half_an_object(pocket: RSDPipeline) -> None:
    llm = RSDLLM.from_pipeline(pocket)
    with pytest.raises(BackendError, match="cut off at a limit"):
        llm.structured_predict(Sky, PROMPT, what="sky", llm_kwargs={"max_tokens": 5})
    with pytest.raises(BackendError, match="cut off at a limit"):
        await llm.astructured_predict(Sky, PROMPT, what="sky", llm_kwargs={"max_tokens": 5})


def test_what_a_schema_cannot_say_is_checked(pocket: RSDPipeline) -> None:
    class Picky(BaseModel):
        sure: bool

        @field_validator("sure")
        @classmethod
        def _never(cls, value: bool) -> bool:
            raise ValueError("never")

    with pytest.raises(ValidationError, match="never"):
        RSDLLM.from_pipeline(pocket).structured_predict(Picky, PROMPT, what="sky")
