"""Schemas and tools that LangChain's own conversion loses parts of."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Annotated, Any, Generic, TypedDict, TypeVar

import pytest
from langchain_core.tools import StructuredTool, tool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel, Field

from rsd_integrations.errors import ConfigError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.langchain.schemas import as_tool, document_schema
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.backends.test_constraints import loaded


class Tree(BaseModel):
    """A tree."""

    leaf: bool
    kids: list[Tree] = Field(default=[], max_length=1)


class Pair(BaseModel):
    a: Tree
    b: Tree


class Even(BaseModel):
    """An even number."""

    before: Odd | None = None


class Odd(BaseModel):
    """An odd number."""

    before: Even | None = None


class Flat(BaseModel):
    """Flat."""

    a: int
    b: dict[str, int]


class Typed(TypedDict):
    """Typed."""

    a: int


class Colour(Enum):
    RED = "red"


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    item: T


def grow(tree: Tree, times: int = 1) -> str:
    """Grow a tree.

    Args:
        tree: which.
        times: how often.
    """
    return f"{tree} {times}"


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def reference(schema: Any) -> Any:
    """Follows the first reference."""
    return schema["$defs"][schema["$ref"].rsplit("/", 1)[-1]]


@pytest.mark.parametrize("plain", [Flat, Typed, Box[int]])
def test_what_loses_nothing_is_as_langchain_has_it(plain: Any) -> None:
    assert document_schema(plain) == convert_to_json_schema(plain)
    assert as_tool(plain, None) == convert_to_openai_tool(plain)


def test_strict_tools_keep_their_schemas() -> None:
    """LangChain's are as OpenAI's API needs them, where a dict can hold nothing."""
    plain = convert_to_openai_tool(Flat)
    assert as_tool(Flat, True) == {**plain, "function": {**plain["function"], "strict": True}}
    assert as_tool(plain, True) == as_tool(Flat, True)
    assert "strict" not in plain["function"]
    assert as_tool(as_tool(Flat, False), True) == as_tool(Flat, False)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "boolean"}},
        {"anyOf": [OBJECT, {"type": "null"}]},
        {"enum": [1, 2]},
        {"type": "object"},
        {"$ref": "#/$defs/A", "$defs": {"A": OBJECT}},
    ],
)
def test_roots_without_properties_are_kept(schema: Any) -> None:
    assert document_schema(schema) == {"title": "answer", **schema}
    assert document_schema({"title": "t", **schema}) == {"title": "t", **schema}


@pytest.mark.parametrize(
    "wrapped",
    [
        {"name": "t", "schema": OBJECT, "strict": True},
        {"type": "json_schema", "json_schema": {"name": "t", "schema": OBJECT}},
        {"type": "function", "function": {"name": "t", "parameters": OBJECT}},
        {"name": "t", "parameters": OBJECT},
        {"name": "t", **OBJECT},
        {"title": "t", "name": "n", **OBJECT},
    ],
)
def test_openais_forms_are_unwrapped(wrapped: Any) -> None:
    assert document_schema(wrapped) == {"title": "t", **OBJECT}
    function = as_tool(wrapped, None)["function"]
    assert (function["name"], function["parameters"]) == ("t", OBJECT)


@pytest.mark.parametrize("given", [Tree, tool(grow), grow, Pair, Tree.model_json_schema()])
def test_what_holds_itself_does_all_the_way_down(given: Any) -> None:
    parameters = as_tool(given, None)["function"]["parameters"]
    assert parameters["type"] == "object" and {"leaf", "tree", "a"} & parameters["properties"].keys()
    inner = parameters["$defs"]["Tree"]["properties"]["kids"]["items"]
    assert reference({**inner, "$defs": parameters["$defs"]})["required"] == ["leaf"]


def test_a_tool_of_a_json_schema_that_holds_itself_is_a_form_by_its_name() -> None:
    """As adapters for MCP make them: nobody asks for a title there."""
    inner = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}
    schema = {"type": "object", "properties": {"tree": {"$ref": "#/$defs/Tree"}}, "$defs": {"Tree": inner}}
    form = document_schema(StructuredTool(name="grow", description="", func=grow, args_schema=schema))
    assert form == {**schema, "title": "grow"}
    assert document_schema(tool(grow))["title"] == "grow"


@pytest.mark.parametrize(
    "schema", [{"title": "t", "anyOf": [OBJECT]}, {"title": "t", "type": "array", "items": {}}]
)
def test_tools_without_named_arguments_are_refused(schema: Any) -> None:
    with pytest.raises(ConfigError, match=r"describes no arguments.*method=\"json_schema\""):
        as_tool(schema, None)
    assert as_tool({"title": "now", "type": "object"}, None)["function"]["name"] == "now"


@pytest.mark.parametrize("given", [Colour, list[int]])
def test_classes_without_fields_are_refused(given: Any) -> None:
    for convert in (document_schema, partial(as_tool, strict=None)):
        with pytest.raises(ConfigError, match="no function, schema or class with fields"):
            convert(given)


def test_models_that_hold_each_other() -> None:
    definitions = as_tool(Even, None)["function"]["parameters"]["$defs"]
    assert definitions["Odd"]["properties"]["before"]["anyOf"][0] == {"$ref": "#/$defs/Even"}
    assert definitions["Even"]["properties"]["before"]["anyOf"][0] == {"$ref": "#/$defs/Odd"}


@pytest.fixture(scope="module")
def tiny() -> Any:
    with loaded(("tools", "tools-b", "ascii")) as pipe:
        yield pipe


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_trees_are_enforced(tiny: RSDPipeline, method: str, seed: int) -> None:
    llm = ChatRSD.from_pipeline(tiny, temperature=1.5, max_tokens=400)
    made = llm.with_structured_output(Tree, method=method, include_raw=True).invoke("x", seed=seed)
    written = made["raw"].text or str(made["raw"].tool_calls)
    assert isinstance(made["parsed"], Tree) or "cut off" in str(made["parsing_error"]), written


def test_a_list_of_integers_is_enforced(tiny: RSDPipeline) -> None:
    llm = ChatRSD.from_pipeline(tiny, temperature=1.5, max_tokens=100)
    schema = {"type": "array", "items": {"enum": [1, 22]}, "maxItems": 4}
    numbers = llm.with_structured_output(schema).invoke("x", seed=1)
    assert isinstance(numbers, list) and set(numbers) <= {1, 22}


def test_what_cannot_be_enforced_is_refused_when_it_is_bound(tiny: RSDPipeline) -> None:
    with pytest.raises(ConfigError, match="Unsatisfiable"):
        ChatRSD.from_pipeline(tiny).with_structured_output({"type": "integer", "minimum": 3, "maximum": 2})


def test_any_object_where_no_properties_are_named(tiny: RSDPipeline) -> None:
    query = {"type": "object", "properties": {"filter": {"type": "object", "minProperties": 1}}}
    function = {"name": "query", "parameters": {**query, "required": ["filter"]}}
    llm = ChatRSD.from_pipeline(tiny, temperature=1.5, max_tokens=400)
    asked = llm.bind_tools([{"type": "function", "function": function}], tool_choice="query")
    calls = [call for seed in range(4) for call in asked.invoke("x", seed=seed).tool_calls]
    assert calls and all(call["args"]["filter"] for call in calls)


def test_dicts_of_strict_tools_hold_what_they_have_to(tiny: RSDPipeline) -> None:
    def put(scores: Annotated[dict[str, bool], Field(min_length=1, max_length=2)]) -> None:
        """Put scores."""

    llm = ChatRSD.from_pipeline(tiny, temperature=1.5, max_tokens=400)
    asked = llm.bind_tools([put], tool_choice="put", strict=True)
    calls = [call for seed in range(4) for call in asked.invoke("x", seed=seed).tool_calls]
    assert calls and all(call["args"]["scores"] for call in calls)


def test_schemas_are_read_where_models_are_asked() -> None:
    with scripted_pipeline(['{"leaf": true, "kids": [{"leaf": false}]}']) as pipe:
        made = ChatRSD.from_pipeline(pipe).with_structured_output(Tree).invoke("x")
    assert made == Tree(leaf=True, kids=[Tree(leaf=False)])


RESPONSES = {"type": "function", "name": "rate", "parameters": {"type": "object", "properties": {"a": {}}}}
"""A tool as OpenAI's Responses API has it."""


def test_tools_of_the_responses_api() -> None:
    function = {name: RESPONSES[name] for name in ("name", "parameters")}
    assert as_tool(RESPONSES, None) == {"type": "function", "function": function}
    assert document_schema(RESPONSES)["title"] == "rate"


def test_a_schema_as_the_responses_api_has_it() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = {"type": "json_schema", "name": "f", "schema": inner, "strict": True}
    assert document_schema(given) == {"title": "f", **inner}


@pytest.mark.parametrize(
    "given", [{"type": "web_search"}, {"type": "function"}, {"type": "function", "function": None}]
)
def test_what_is_no_function_of_ours_to_call(given: Any) -> None:
    with pytest.raises(ConfigError, match="no function that could be called"):
        as_tool(given, None)


def test_a_tool_without_a_schema_is_no_schema() -> None:
    with pytest.raises(ConfigError, match="no schema as its parameters"):
        document_schema({"name": "rate", "parameters": None})
