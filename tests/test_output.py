"""Requests in the words of OpenAI's API."""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
from collections import OrderedDict, UserDict
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum, IntEnum
from functools import reduce
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from rsd_integrations.errors import ConfigError
from rsd_integrations.output import Output
from rsd_integrations.schemas import closed_schema, referred

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "find")]


@pytest.mark.parametrize(
    ("asked", "names", "choice", "parallel"),
    [
        (None, ["add", "find"], "auto", True),
        ("auto", ["add", "find"], "auto", True),
        ("any", ["add", "find"], "required", True),
        ("required", ["add", "find"], "required", True),
        (True, ["add", "find"], "required", True),
        ("none", [], "auto", True),
        ("find", ["find"], "required", False),
        ({"type": "function", "function": {"name": "add"}}, ["add"], "required", False),
        ({"name": "add"}, ["add"], "required", False),
        ({"type": "tool", "name": "add"}, ["add"], "required", False),
        ({"type": "any"}, ["add", "find"], "required", True),
        ({"type": "none"}, [], "auto", True),
    ],
)
def test_choices(asked: Any, names: list[str], choice: str, parallel: bool) -> None:
    output = Output.of(tools=TOOLS, tool_choice=asked)
    assert [name for name, _ in output.functions] == names
    assert (output.choice, output.parallel) == (choice, parallel)
    assert output.constrained == (choice == "required")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tools": ["add"]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]},
        *(
            {"tools": [{"type": "function", "function": {"name": name}}]}
            for name in ('a"b', "a{", "a\n", "a\\")
        ),
        {"tools": TOOLS, "tool_choice": "finnd"},
        {"tool_choice": "any"},
        {"tool_choice": 3},
        {"response_format": "json"},
        {"response_format": "json_schema"},
        {"tool_choice": {"type": "function", "function": 5}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": {"type": "xml"}},
    ],
)
def test_nonsense_is_refused_with_the_value(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Output.of(**fields)
    assert caught.value.hint
    shown = next(iter(reversed(fields.values())))
    shown = shown.get("function", shown) if isinstance(shown, dict) else shown
    assert (repr(shown)[:20] if not isinstance(shown, list) else "tool") in str(caught.value)


@pytest.mark.parametrize("kind", ["array", "string", ["array", "null"], None])
def test_arguments_that_are_no_object_are_refused(kind: Any) -> None:
    function = {"name": "f", "parameters": {"type": kind, "items": {}}}
    with pytest.raises(ConfigError, match=r"tool 'f' are of type .* an object.*\"json_schema\""):
        Output.of(tools=[{"type": "function", "function": function}])


@pytest.mark.parametrize("schema", [{"type": ["object", "null"]}, {"anyOf": [{"type": "object"}]}])
def test_arguments_that_may_be_an_object_are_taken(schema: Any) -> None:
    assert Output.of(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}]).tools


DEEP: Any = reduce(lambda inner, _: {"not": inner}, range(3000), {})  # type: ignore[var-annotated]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 5}, "schema=5"),
        ({"choice": "required"}, "choice='required' does not go with 0 tools"),
        ({"choice": "none"}, "choice='none'"),
        ({"tools": "add"}, "tools='add'"),
        ({"tools": None}, "tools=None"),
        ({"tools": None, "choice": "required"}, "tools=None"),
        (
            {"tools": ({"function": DEEP},)},
            "tools are nested",
        ),
        ({"schema": DEEP}, "schema are nested more than"),
        ({"tools": ({"name": "add"},)}, "a tool must name a function"),
    ],
)
def test_what_is_made_without_of_is_checked_too(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Output(**fields)


def test_it_means_the_same_made_by_of_or_without() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}}
    asked = {"type": "json_schema", "json_schema": {"schema": schema}}
    made, read = Output(schema=schema), Output.of(response_format=asked)
    assert made == read
    assert made.schema == {**schema, "additionalProperties": False}
    listed = Output(tools=TOOLS)  # type: ignore[arg-type]
    assert listed == Output.of(tools=TOOLS)
    assert {listed: "x", made: "y"}[Output.of(tools=TOOLS)] == "x"


def test_formats() -> None:
    assert Output.of(response_format={"type": "text"}) == Output()
    assert not Output.of().constrained
    assert not Output(strict=True).constrained, "there is nothing to hold it to"
    assert Output.of(response_format={"type": "json_object"}).schema == {"type": "object"}
    strict = Output.of(
        response_format={
            "type": "json_schema",
            "json_schema": {"schema": {"type": "integer"}, "strict": True},
        }
    )
    assert (strict.schema, strict.strict, strict.constrained) == ({"type": "integer"}, True, True)


def test_strict_tools_constrain() -> None:
    strict = [{"type": "function", "function": {"name": "add", "strict": True}}]
    assert Output.of(tools=strict).constrained
    assert not Output.of(tools=strict, tool_choice="none").constrained


def test_keys_tell_outputs_apart() -> None:
    outputs = [
        Output(),
        Output.of(tools=TOOLS),
        Output.of(tools=TOOLS, tool_choice="any"),
        Output.of(tools=TOOLS, parallel_tool_calls=False),
        Output.of(tools=TOOLS[:1]),
        Output.of(response_format={"type": "json_object"}),
        *(Output(schema={"properties": {name: {} for name in names}}) for names in ("ab", "ba")),
    ]
    assert len({output.key for output in outputs}) == len(outputs)


class Color(Enum):
    RED = "red"


class Word(str, Enum):
    BLUE = "blue"


class Size(IntEnum):
    BIG = 3


class Half(float):
    def __repr__(self) -> str:
        return "half"


def tool_of(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    "value",
    [
        {"const": datetime.date(2020, 1, 1)},
        {"default": Decimal("1.5")},
        {"enum": {"a"}},
        {"enum": [Color.RED]},
        {"const": math.nan},
        {"maximum": math.inf},
        {"const": b"x"},
        {"const": {Color.RED: 1}},
        {"const": {("a", 1): 1}},
        {"description": object()},
    ],
)
def test_what_is_no_json_is_refused(value: dict[str, Any]) -> None:
    (held,) = value.values()
    while isinstance(held, list | dict):
        held = next(iter(held))
    schema = {"type": "object", "properties": {"a": value}}
    asked = {"type": "json_schema", "json_schema": {"schema": schema}}
    for name, make in {
        "schema": lambda: Output(schema=schema),
        "schema ": lambda: Output.of(response_format=asked),
        "tools": lambda: Output(tools=(tool_of(schema),)),
        "tools ": lambda: Output.of(tools=[tool_of(schema)]),
    }.items():
        with pytest.raises(ConfigError, match=re.escape(f"{held!r} in {name.strip()} is no ")) as caught:
            make()
        assert caught.value.hint


def test_what_pydantic_makes_is_taken() -> None:
    """It says nothing about numbers that JSON does not have, which defaults often are."""

    class Search(BaseModel):
        most: float = math.inf
        day: datetime.date = datetime.date(2020, 1, 1)
        price: Decimal = Decimal("1.5")
        color: Color = Color.RED
        size: Size = Field(default=Size.BIG, examples=[-math.inf, {"a": math.nan}])

    schema = Search.model_json_schema()
    for output in (Output(schema=schema), Output.of(tools=[tool_of(schema)])):
        assert json.loads(output.key, parse_constant=pytest.fail)
    assert Output(schema=schema).schema["properties"]["most"]["default"] == "Infinity"  # type: ignore[index]


NAMES = st.text(max_size=3)
LEAVES: Any = st.sampled_from([*Word, *Size, Half(0.5), True, None, 1, 0.5, "a"]) | st.text(max_size=3)
AS_JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(
            lambda kind, held: kind(held),
            st.sampled_from([dict, OrderedDict, UserDict, MappingProxyType]),
            st.dictionaries(NAMES | st.sampled_from([Word.BLUE, 1, True, None, 0.5]), inner, max_size=3),
        )
    ),
    max_leaves=8,
)


def bare(value: Any) -> Any:
    """With dicts in place of other mappings, which json.dumps does not take."""
    if isinstance(value, Mapping):
        return {key: bare(part) for key, part in value.items()}
    return [*map(bare, value)] if isinstance(value, list | tuple) else value


def same_types(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return [*one] == [*other] and all(same_types(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_types, one, other))
    return type(one) is type(other) and one == other


@given(AS_JSON)
def test_what_json_can_say_is_taken_as_it_says_it(value: Any) -> None:
    plain = json.loads(json.dumps(bare(value)))
    schema = Output(schema=MappingProxyType({"const": value})).schema
    assert schema is not None
    assert same_types(schema["const"], plain)
    (tool,) = Output.of(tools=(tool_of({"const": value}),)).tools
    assert same_types(tool["function"]["parameters"]["const"], plain)


@given(AS_JSON)
def test_it_stays_as_it_was_asked_for(value: Any) -> None:
    held = {"anyOf": [{"const": [bare(value)]}]}
    asked = {"type": "json_schema", "json_schema": {"schema": held}}
    tools = [tool_of({"properties": {"a": held}})]
    outputs = [Output(tools=tuple(tools), schema=held), Output.of(tools=tools, response_format=asked)]
    before = [output.key for output in outputs]
    held["anyOf"][0]["const"].append("more")
    held["anyOf"].append({})
    held["more"] = []
    tools[0]["function"]["name"] = "g"
    assert [output.key for output in outputs] == before
    assert copy.deepcopy(outputs) == outputs


@pytest.mark.parametrize("choice", ["auto", "required", "f"])
def test_two_tools_of_one_name_are_refused(choice: str) -> None:
    one, other = (tool_of({"type": "object", "properties": {name: {}}}) for name in "ab")
    with pytest.raises(ConfigError, match="two tools have the name 'f'"):
        Output.of(tools=[one, tool_of({}, "g"), other], tool_choice=choice)
    with pytest.raises(ConfigError, match="two tools have the name 'f'"):
        Output(tools=(one, other))
    titled = tool_of({"type": "object", "title": "F", "properties": {"a": {"title": "A"}}})
    again = Output.of(tools=[one, tool_of({}, "g"), copy.deepcopy(one), titled], tool_choice=choice)
    assert again == Output.of(tools=[one, tool_of({}, "g")], tool_choice=choice)
    with pytest.raises(ConfigError, match="two tools have the name 'f'"):
        Output.of(tools=[one, tool_of({"type": "object", "properties": {"a": {}, "title": {}}})])


def test_objects_are_closed() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"$ref": "#/$defs/A"},
            "open": {"type": "object", "additionalProperties": {"type": "integer"}},
            "properties": {"type": "array", "items": {"type": "object", "properties": {"type": {}}}},
            "both": {"allOf": [{"properties": {"x": {}}}, {"properties": {"y": {}}}]},
            "one": {"enum": [{"properties": {}}]},
            "any": {"type": "object"},
            "none": {"type": "object", "properties": {}},
            "union": {"anyOf": [{"properties": {"x": {}}}, {"properties": {"y": {}}}]},
            "shared": {
                "properties": {"k": {}},
                "anyOf": [{"properties": {"x": {}}}, {"properties": {"y": {}}}],
            },
            "either": {"properties": {"x": {}, "y": {}}, "anyOf": [{"required": ["x"]}, {"required": ["y"]}]},
        },
        "$defs": {"A": {"properties": {"b": {"type": "string"}}}},
    }
    closed = closed_schema(schema)
    assert closed["additionalProperties"] is False
    assert closed["$defs"]["A"]["additionalProperties"] is False
    properties = closed["properties"]
    assert "additionalProperties" not in properties
    assert properties["open"]["additionalProperties"] == {"type": "integer"}
    assert properties["properties"]["items"]["additionalProperties"] is False
    assert properties["both"] == {
        "type": "object",
        "allOf": [{"properties": {"x": {}}}, {"properties": {"y": {}}}],
        "properties": {"x": {}, "y": {}},
        "additionalProperties": False,
    }
    for name in ("one", "any"):
        assert properties[name] == schema["properties"][name]  # type: ignore[index]
    assert properties["shared"] == {"type": "object", **schema["properties"]["shared"]}  # type: ignore[index]
    assert properties["none"]["additionalProperties"] is False
    assert [part["additionalProperties"] for part in properties["union"]["anyOf"]] == [False, False]
    assert properties["either"]["additionalProperties"] is False
    assert properties["either"]["anyOf"] == [{"required": ["x"]}, {"required": ["y"]}]


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_tool_without_arguments_takes_none(parameters: Any) -> None:
    function = {"name": "now"} if parameters is None else {"name": "now", "parameters": parameters}
    ((name, schema),) = Output.of(tools=[{"type": "function", "function": function}]).functions
    assert (name, schema["properties"], schema["additionalProperties"]) == ("now", {}, False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_closing_is_idempotent_and_never_fails(schema: Any) -> None:
    once = closed_schema(schema)
    assert closed_schema(once) == once


BASE = {"type": "object", "properties": {"a": {"type": "boolean"}}}
REF = {"$ref": "#/$defs/Base"}


def test_what_others_refer_to_is_left_open_for_them_only() -> None:
    schema = {
        "$defs": {"Base": BASE},
        "properties": {"alone": REF, "more": {"allOf": [REF, {"required": ["b"]}]}},
    }
    closed = closed_schema(schema)
    assert closed["$defs"]["Base"] == {**BASE, "additionalProperties": False}
    more = closed["properties"]["more"]
    assert (more["properties"], more["additionalProperties"]) == ({"a": {}, "b": {}}, False)
    (opened,) = closed["$defs"].keys() - {"Base"}
    assert more["allOf"][0] == {"$ref": f"#/$defs/{opened}"}
    assert closed["$defs"][opened] == BASE
    assert closed["properties"]["alone"] == REF


@pytest.mark.parametrize(
    "wrapped",
    [
        {"allOf": [REF], "default": {}, "description": "A base."},
        {"allOf": [REF, {"description": "A base."}]},
        {"allOf": [BASE]},
    ],
)
def test_an_all_of_one_is_that_one(wrapped: Any) -> None:
    """Pydantic writes references so, to put a default beside them."""
    closed = closed_schema({"$defs": {"Base": BASE}, "properties": {"x": wrapped}})
    assert [*closed["$defs"]] == ["Base"]
    (first, *others) = closed["properties"]["x"]["allOf"]
    assert first == (REF if wrapped["allOf"][0] is REF else {**BASE, "additionalProperties": False})
    assert {**closed["properties"]["x"], "allOf": [wrapped["allOf"][0], *others]} == wrapped


def test_references_without_an_end_in_sight_are_refused() -> None:
    chain = {
        f"{n}": {"allOf": [{"$ref": f"#/$defs/{n + 1}"}], "properties": {f"p{n}": {}}} for n in range(3000)
    }
    with pytest.raises(ConfigError, match="lead from one to the next"):
        Output(schema={"$defs": chain, "$ref": "#/$defs/0", "required": []})


NAMED = st.dictionaries(st.sampled_from("abc"), st.deferred(lambda: SCHEMAS), max_size=2)
SCHEMAS: Any = st.deferred(
    lambda: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", ["object", "null"]]),
            "properties": NAMED | st.none(),
            "required": st.lists(st.sampled_from("abcd"), max_size=2) | st.just("a"),
            "allOf": st.lists(SCHEMAS, max_size=2) | st.none(),
            "anyOf": st.lists(SCHEMAS, max_size=2),
            "items": SCHEMAS,
            "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#x", "b", 3]),
            "$defs": NAMED,
            "patternProperties": NAMED,
            "propertyNames": st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", 1]))}),
            "additionalProperties": st.booleans(),
            "unevaluatedProperties": st.booleans(),
        },
    )
)


@settings(max_examples=30)
@given(SCHEMAS | st.lists(SCHEMAS, max_size=2))
def test_closing_objects_is_idempotent_and_never_fails(schema: Any) -> None:
    before = copy.deepcopy(schema)
    once = closed_schema(schema)
    assert schema == before
    # Names of keys become properties, so that a reference that led nowhere may lead to one of them.
    assume(referred("#/properties/a", schema) is not None or referred("#/properties/a", once) is None)
    assert closed_schema(once) == once


def test_what_is_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    schema["properties"] = {"child": schema}
    with pytest.raises(ConfigError, match="response_format are nested more than 100 levels"):
        Output.of(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    with pytest.raises(ConfigError, match="tools are nested more than 100 levels"):
        Output.of(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])
