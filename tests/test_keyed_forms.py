"""What a schema lets be written as the arguments of a call by keys and values."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from rsd_integrations.errors import ConfigError
from rsd_integrations.text.arguments import with_root_defined
from rsd_integrations.types import ToolCall
from tests.keyed_templates import GEMMA, SPECIAL
from tests.test_keyed_calls import FORMS, TOKENIZERS, answer, opened, read, takes, tool

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "x": {"type": "integer"}}}


def fits(name: str, offered: Any, arguments: dict[str, Any], **asked: Any) -> bool:
    """Whether a call may be written so."""
    tok = TOKENIZERS[name]
    return takes(opened(name, offered, **asked), tok, answer(tok, ("add", arguments)))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ["", "a", "12", "\n", 'say "so"\n\n', "<b>é 🌡</b>"], []),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "a\nb", "é🌡"], ["a", "abcd", ""]),
        ({"type": "string", "maxLength": 5000}, ["a <b" * 99], []),
        ({"type": "string", "pattern": "^a+$"}, ["a", "aa"], ["", "ab", "ba"]),
        ({"type": "string", "pattern": "b"}, ["abc", "\nb"], ["ac"]),
        ({"type": "string", "pattern": "^(a|/)b"}, ["abc", "/b"], ["bab"]),
        ({"type": "string", "pattern": "^/\\d+/$", "maxLength": 4}, ["/12/"], ["/123/", "12"]),
        ({"type": "string", "format": "date"}, ["2026-11-29"], ["2026-13-01", "so"]),
        ({"type": "string", "format": "date-time"}, ["2026-11-29T12:00:00Z"], ["2026-11-29"]),
        ({"type": "string", "format": "email"}, ["a.b@c.de"], ["a"]),
        ({"type": "string", "format": "odd"}, ["so"], []),
        ({"type": "integer", "minimum": 3, "maximum": 12}, [3, 12], [2, 13, "so"]),
        ({"type": "number"}, [1, -1.5], ["so"]),
        ({"type": "boolean"}, [True, False], ["yes", 1]),
        ({"type": "null"}, [None], ["so"]),
        ({"type": ["integer", "null", "boolean"]}, [1, None, True], ["so", 1.5]),
        ({"const": "so"}, ["so"], ["no", ""]),
        ({"enum": ["a", "a\n", "ab", 1, None, [2]]}, ["a", "a\n", "ab", 1, None, [2]], ["b", 2, ""]),
        ({"type": "string", "enum": ["a"]}, ["a"], ["b"]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["so", None, "12"], []),
        (
            {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "array"}]},
            ["so", [1, 2]],
            ["so long", {"x": 1}],
        ),
        ({"oneOf": [{"const": "so"}, {"type": "integer"}]}, ["so", 3], ["no"]),
        ({"allOf": [{"$ref": "#/$defs/Node"}], "description": "x"}, [{"next": {"x": 1}}], ["so", {"y": 1}]),
        ({"$ref": "#/$defs/Node"}, [{"next": {"x": 1}}, {}], ["so", {"y": 1}]),
        ({"type": "array", "items": {"$ref": "#/$defs/Word"}}, [["so"], []], [["no"], "so"]),
        ({"$ref": "#/$defs/Word"}, ["so"], ["no"]),
        ({}, ["so", 1, None, {"x": [1]}], []),
        (True, ["so", 1], []),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
            [[1], [1, 2]],
            [[], [1, 2, 3]],
        ),
        ({"type": "array"}, [[], [1, "so", None, ["a"], {"b": True}]], ["so"]),
        ({"type": "object"}, [{}, {"a": {"b": [1, "so"]}, "c": "so"}], ["so", [1]]),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}},
            [{}, {"a": "so"}],
            [{"a": 1}, {"b": 1}],
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["Qwen3-Coder", "MiniMax-M2", "OLMo 3", SPECIAL, GEMMA])
def test_values_follow_their_schemas(name: str, schema: Any, good: list[Any], bad: list[Any]) -> None:
    offered = tool("add", {"x": schema}, **{"$defs": {"Node": NODE, "Word": {"const": "so"}}})
    for value in good:
        assert fits(name, offered, {"x": value}), value
    for value in bad:
        assert not fits(name, offered, {"x": value}), value
    assert not fits(name, offered, {})


KEYED = ["Qwen3-Coder", "GLM 4.7", "MiniMax-M2", "OLMo 3", GEMMA]


@pytest.mark.parametrize("name", KEYED)
def test_references_point_into_the_whole_schema(name: str) -> None:
    """Also ``#`` and ``#/properties/...``, as zod-to-json-schema writes them."""
    number = {"type": "integer"}
    kids = {"type": "array", "items": {"$ref": "#"}}
    offered = tool("add", {"age": number, "kids": kids})
    assert fits(name, offered, {"age": 1, "kids": [{"age": 2, "kids": [{"age": 3, "kids": []}]}]})
    assert not fits(name, offered, {"age": 1, "kids": [{"age": 2}]})
    assert not fits(name, offered, {"age": 1, "kids": [1]})
    cells = {"type": "array", "items": {"type": "object", "properties": {"c": number}, "required": ["c"]}}
    same = {"type": "array", "items": {"$ref": "#/properties/x/items"}}
    # A definition that has the name of the copy, and one that refers to the whole.
    defs = {"root": {"const": "so"}, "Cell": {"$ref": "#/properties/x/items"}}
    properties = {"x": cells, "y": same, "z": {"$ref": "#/$defs/root"}, "a": {"$ref": "#/$defs/Cell"}}
    offered = tool("add", properties, **{"$defs": defs})
    good = {"x": [{"c": 1}], "y": [{"c": 2}], "z": "so", "a": {"c": 3}}
    ordered = sorted(properties) if name == GEMMA else [*properties]  # Whose template sorts them.
    offered["function"]["parameters"]["properties"] = {key: properties[key] for key in ordered}
    assert fits(name, offered, good)
    for bad in ({**good, "y": [2]}, {**good, "z": "no"}, {**good, "a": {}}):
        assert not fits(name, offered, bad)
    looks_like_one = {"type": "string", "pattern": "#/a"}
    assert with_root_defined(looks_like_one) is looks_like_one
    within = with_root_defined({"anyOf": [{"$ref": "#"}, {"type": "null"}]})
    assert within["anyOf"][0] == {"$ref": "#/$defs/root"}


@pytest.mark.parametrize("name", ["Qwen3-Coder", GEMMA])
@pytest.mark.parametrize("reference", ["#/$defs/a~1b%20c", "#/properties/w/anyOf/1"])
def test_references_may_be_escaped_and_lead_into_unions(name: str, reference: str) -> None:
    either = {"anyOf": [{"type": "null"}, {"const": "so"}]}
    offered = tool(
        "add", {"w": either, "x": {"$ref": reference}}, ["x"], **{"$defs": {"a/b c": {"const": "so"}}}
    )
    assert fits(name, offered, {"x": "so"})
    assert not fits(name, offered, {"x": "no"})


@pytest.mark.parametrize("least", [0, 1])
def test_lists_of_one_item(least: int) -> None:
    offered = tool(
        "add", {"x": {"type": "array", "minItems": least, "maxItems": 1, "items": {"const": "so"}}}
    )
    assert fits(GEMMA, offered, {"x": ["so"]})
    assert fits(GEMMA, offered, {"x": []}) == (not least)
    assert not fits(GEMMA, offered, {"x": ["so", "so"]})


def strict(schema: Any, **more: Any) -> Any:
    offered = tool("add", {"x": schema}, **more)
    offered["function"]["strict"] = True
    return offered


@pytest.mark.parametrize("name", KEYED)
def test_of_two_limits_the_stricter_counts(name: str) -> None:
    for union in ("anyOf", "allOf", "oneOf"):
        number = {"type": "integer", "minimum": 3, "maximum": 9, union: [{"minimum": 1, "maximum": 100}]}
        for value, good in ((3, True), (9, True), (2, False), (10, False)):
            assert fits(name, strict(number), {"x": value}) == good
        if name == "OLMo 3":
            continue  # Where JSON's grammar does the same.
        text = {"type": "string", "maxLength": 2, union: [{"maxLength": 5, "minLength": 1}]}
        for value, good in (("", False), ("ab", True), ("abc", False)):
            assert fits(name, strict(text), {"x": value}) == good
        kinds = {"type": ["string", "null"], union: [{"type": ["null", "boolean"]}]}
        assert fits(name, strict(kinds), {"x": None})
        assert not any(fits(name, strict(kinds), {"x": value}) for value in ("so", True))
        words = {"enum": ["a", "b"], union: [{"enum": ["b", "c"]}]}
        assert [fits(name, strict(words), {"x": value}) for value in "abc"] == [False, True, False]


def test_items_and_properties_of_two_schemas_follow_both() -> None:
    at, text = {"type": "integer", "maximum": 9}, {"type": "string"}
    lists = {"type": "array", "items": at, "allOf": [{"items": {"minimum": 3}}]}
    objects = {"type": "object", "properties": {"a": at}, "required": ["a"]}
    for schema, good, bad in (
        (lists, [[3], [9]], [[2], [10]]),
        ({**objects, "allOf": [{"properties": {"a": {"minimum": 3}}}]}, [{"a": 3}], [{"a": 2}, {"a": 10}]),
        ({**objects, "allOf": [{"properties": {"a": True, "b": text}}]}, [{"a": 1, "b": "so"}], [{"a": 10}]),
    ):
        assert all(fits(GEMMA, tool("add", {"x": schema}), {"x": value}) for value in good), schema
        assert not any(fits(GEMMA, tool("add", {"x": schema}), {"x": value}) for value in bad), schema


@pytest.mark.parametrize("name", KEYED)
def test_prescribed_values_are_of_the_type(name: str) -> None:
    named = {"type": "string", "enum": ["a", None]}
    assert fits(name, strict(named), {"x": "a"})
    assert not fits(name, strict(named), {"x": None})
    numbers = {"type": "integer", "enum": [1, 2.0, True, "3"]}
    assert [fits(name, strict(numbers), {"x": value}) for value in (1, True)] == [True, False]


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ({"$ref": "#/$defs/nope"}, "the reference '#/\\$defs/nope', which leads nowhere"),
        ({"$ref": "#foo"}, "the reference '#foo'"),
        ({"$ref": "https://a.b/c"}, "the reference 'https://a.b/c'"),
        ({"type": "array", "items": {"$ref": "#/x"}}, "the reference '#/x'"),
        ({"oneOf": [{"type": "string", "minLength": 2}, {"type": "string", "maxLength": 3}]}, "oneOf, as a"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf, as a value may follow two of"),
        ({"type": "string", "pattern": "^a", "allOf": [{"pattern": "b$"}]}, "allOf of text"),
        ({"type": "string", "enum": [1]}, "keywords that leave no value"),
        ({"type": "string", "allOf": [{"type": "null"}]}, "keywords that leave no value"),
        ({"type": ["string", "float"]}, "'float' is no type of a JSON schema. Write 'number'"),
        ({"type": ["string", "integer"], "minimum": 3, "maxLength": 3}, "minimum of text"),
    ],
)
@pytest.mark.parametrize("name", ["Qwen3-Coder", "MiniMax-M2"])
def test_strict_tools_refuse_what_would_not_be_kept(name: str, schema: Any, match: str) -> None:
    assert opened(GEMMA, tool("add", {"x": schema}))
    with pytest.raises(ConfigError, match=match):
        opened(name, strict(schema))


def test_lists_by_place_are_refused_where_quotes_are_not_json_s() -> None:
    schema = {"type": "array", "items": [{"type": "boolean"}]}
    assert opened(GEMMA, tool("add", {"x": schema}))
    with pytest.raises(ConfigError, match="items of lists"):
        opened(GEMMA, strict(schema))


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize(
    ("kind", "meant"), [("float", "'number'"), ("STR", "'string'"), ("odd", "'array', 'b")]
)
def test_types_that_are_none_are_refused(name: str, kind: str, meant: str) -> None:
    for offered in (tool("add", {"x": {"type": kind}}), strict({"type": "array", "items": {"type": kind}})):
        with pytest.raises(ConfigError, match=kind):
            opened(name, offered)
    with pytest.raises(ConfigError, match=f"Write {meant}"):
        opened(name, tool("add", {"x": {"type": kind}}))


def test_of_arguments_that_exclude_each_other_there_are_no_two() -> None:
    properties = {"a": {"type": "integer"}, "b": {"type": "integer"}}
    needs: list[Any] = [{"required": ["a"]}, {"required": ["b"]}]
    shapes: list[Any] = [{"properties": {key: properties[key]}, "required": [key]} for key in "ab"]
    told: list[Any] = [
        {"properties": {"kind": {"const": key}, "c": {"type": "string"}}, "required": ["kind"]}
        for key in "ab"
    ]
    function: dict[str, Any] = {"name": "add", "strict": True}
    for alike, schema in (
        (True, {"properties": properties, "oneOf": needs}),
        (True, {"oneOf": [{"properties": properties}, {"properties": properties, "required": ["a"]}]}),
        (False, {"oneOf": shapes}),
        (False, {"oneOf": told}),
    ):
        offered = {"type": "function", "function": {**function, "parameters": {"type": "object", **schema}}}
        if alike:
            with pytest.raises(ConfigError, match="oneOf, as a value may follow two of"):
                opened(GEMMA, offered)
        else:
            assert opened(GEMMA, offered)


@pytest.mark.parametrize("name", KEYED)
def test_an_argument_that_may_be_nothing_is_not_written(name: str) -> None:
    offered = tool("add", {"a": {"type": "integer"}, "b": False}, ["a"])
    assert fits(name, offered, {"a": 1})
    assert not fits(name, offered, {"a": 1, "b": 1})


@pytest.mark.parametrize("name", KEYED)
def test_what_forbids_nothing_is_taken_by_strict_tools(name: str) -> None:
    notes = {"example": "a", "x-foo": 1, "nullable": False, "enumNames": ["a"], "contentMediaType": "a"}
    for schema in ({"type": "string"}, {"type": "array"}, {"type": "object"}, {"type": "integer"}, {}):
        assert opened(name, strict({**schema, **notes}, **notes))
    assert opened(name, strict({"type": "string", "minimum": 3}))


@pytest.mark.parametrize("name", [name for name in KEYED if name != "OLMo 3"])
def test_digits_and_letters_of_patterns_are_ascii_s(name: str) -> None:
    """As in JSON."""
    for pattern, good, bad in (
        (r"^\d+$", "12", "٣"),
        (r"^\w+$", "a_1", "é"),
        (r"^[\w.-]+$", "a.-1", "é"),
        (r"^[^\d]$", "٣", "1"),
        (r"^\D\W$", "٣é", "1é"),
        (r"^[\]\d]\\d$", "1\\d", "1\\1"),
        (r"^[^\W_]+$", "a1", "é"),
        (r"^[\D]$", "٣", "1"),
        (r"^[\w-\.]+@([\w-]+\.)+[\w-]{2,4}$", "a-b@c.de", "é@c.de"),
    ):
        offered = strict({"type": "string", "pattern": pattern})
        assert fits(name, offered, {"x": good}), pattern
        assert not fits(name, offered, {"x": bad}), pattern


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("more", [False, {"type": "string"}])
def test_what_is_required_and_not_described_is_written_and_read(name: str, more: Any) -> None:
    offered = tool("add", {"a": {"type": "integer"}}, ["a", "zz"], additionalProperties=more)
    assert not fits(name, offered, {"a": 1})
    assert fits(name, offered, {"a": 1, "zz": "so"})
    _, [found] = read(name, answer(TOKENIZERS[name], ("add", {"a": 1, "zz": "12"})), offered)
    assert isinstance(found, ToolCall), found.error
    assert found.arguments == {"a": 1, "zz": "12" if more or name in (GEMMA, "OLMo 3") else 12}


@pytest.mark.parametrize("name", ["Qwen3-Coder", "MiniMax-M2", SPECIAL])
def test_what_cannot_be_enforced_is_left_out_where_it_may_be(name: str) -> None:
    for pattern in ("^a|b$", "a|b$", "(?=a)"):
        assert fits(name, tool("add", {"x": {"type": "string", "pattern": pattern}}), {"x": "so"})
    # Bounded text holds no closing markup at all.
    assert not fits(name, tool("add", {"x": {"type": "string", "maxLength": 99}}), {"x": "</b>"})


@pytest.mark.parametrize("name", [name for name in FORMS if name != GEMMA])  # Whose template sorts them.
def test_arguments_are_those_that_a_tool_takes(name: str) -> None:
    number, text = {"type": "integer"}, {"type": "string"}
    offered = tool("add", {"a": number, "ab": text, "c": number}, ["ab"])
    for good in ({"ab": "x"}, {"a": 1, "ab": "x"}, {"a": 1, "ab": "x", "c": 2}, {"ab": "x", "c": 2}):
        assert fits(name, offered, good)
    for bad in ({}, {"a": 1}, {"ab": "x", "a": 1}, {"ab": "x", "d": 1}, {"ab": "x", "c": 2, "x": 1}):
        assert not fits(name, offered, bad)
    # What is required need not be described.
    assert fits(name, tool("add", {}, ["x"]), {"x": "so"})
    assert not fits(name, tool("add", {}, ["x"]), {})
    assert fits(name, tool("add", {}), {})
    assert not fits(name, tool("add", {}), {"x": 1})


def test_further_arguments_where_a_schema_lets_them_be() -> None:
    number = {"type": "integer"}
    offered = tool("add", {"a": number}, additionalProperties=number)
    for good in ({"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 2, "ab_1": 3}):
        assert fits("Qwen3-Coder", offered, good)
    for bad in ({"a": 1, "b": "so"}, {"b": 2}, {"a": 1, "b c": 2}):
        assert not fits("Qwen3-Coder", offered, bad)
    assert fits("Qwen3-Coder", tool("add", {}, additionalProperties=True), {"b": "so", "c": 1})


def test_arguments_of_several_shapes() -> None:
    shapes = [
        {"properties": {"kind": {"const": kind}, kind: {"type": "integer"}}, "required": ["kind", kind]}
        for kind in ("a", "b")
    ]
    function = {"name": "add", "parameters": {"type": "object", "anyOf": shapes}}
    offered = {"type": "function", "function": function}
    for kind in ("a", "b"):
        assert fits("GLM 4.7", offered, {"kind": kind, kind: 1})
    assert not fits("GLM 4.7", offered, {"kind": "a", "b": 1})
    refers = {"$ref": "#/$defs/Node", "$defs": {"Node": {**NODE, "required": ["x"]}}}
    offered = {"type": "function", "function": {"name": "add", "parameters": refers}}
    assert fits("GLM 4.7", offered, {"next": {"x": 1}, "x": 2})
    assert not fits("GLM 4.7", offered, {"next": {"x": 1}})


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ({"properties": {"x": {"type": "string", "pattern": "^a|b$"}}}, "pattern '\\^a\\|b\\$' of text"),
        ({"properties": {"x": {"type": "string", "format": "odd"}}}, "format 'odd' of text"),
        ({"properties": {"x": {"type": "string", "not": {"const": "a"}}}}, "not of text"),
        ({"properties": {"x": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"properties": {"x": {}}, "minProperties": 1}, "minProperties of the arguments of 'add'"),
        ({"patternProperties": {"^x": {}}}, "patternProperties of the arguments of 'add'"),
    ],
)
def test_what_cannot_be_enforced_is_refused_where_it_must_be(schema: Any, match: str) -> None:
    function = {"name": "add", "parameters": {"type": "object", **schema}}
    assert opened("Qwen3-Coder", {"type": "function", "function": function})
    with pytest.raises(ConfigError, match=match):
        opened("Qwen3-Coder", {"type": "function", "function": {**function, "strict": True}})


@pytest.mark.parametrize(
    "odd",
    [
        {"properties": [1]},
        {"properties": {"x": 3}},
        {"properties": {"x": {"type": 3}}},
        {"properties": {"x": {"type": {"a": 1}}}},
        {"properties": {"x": {"enum": "so"}}},
        {"properties": {"x": {"anyOf": 3, "allOf": "so", "$ref": 3}}},
        {"properties": {"x": {"$ref": "#/nowhere"}}},
        {"properties": {"x": {"$ref": "#/properties/x"}}},
        {"properties": {"x": {}}, "required": True},
        {"properties": {"x": {}}, "required": [3]},
        {"allOf": [{"properties": [1], "required": 3}, {"properties": {"x": {}}, "required": ["x"]}]},
        {"$ref": "#"},
        {"properties": {"x": {"type": "string", "pattern": 3, "minLength": "so", "format": ["so"]}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["Qwen3-Coder", GEMMA])
def test_schemas_that_are_none_break_nothing(name: str, odd: Any) -> None:
    offered = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", **odd}}}
    with suppress(ConfigError):
        opened(name, offered)
    for value in (1, "so", None):
        assert read(name, answer(TOKENIZERS[name], ("add", {"x": value})), offered)[1]


@pytest.mark.parametrize(
    "offered",
    [
        tool("add", {"x": {"enum": ["a</tool_call>"]}}),
        tool("add", {"x": {"const": "a</parameter>"}}),
        tool("add", {"</tool_call>": {}}),
        tool("</tool_call>", {}),
    ],
)
def test_what_would_end_a_call_is_no_part_of_one(offered: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be written in a call of this model: it holds '</"):
        opened("Qwen3-Coder", offered)


def test_keys_without_quotes_are_words() -> None:
    assert opened(GEMMA, tool("add", {"a.b-c_1": {}}))
    with pytest.raises(ConfigError, match="the key 'a b' cannot be written"):
        opened(GEMMA, tool("add", {"x": {"type": "object", "properties": {"a b": {}}}}))


@pytest.mark.parametrize("name", FORMS)
def test_strict_tools_leave_words_free(name: str) -> None:
    tok = TOKENIZERS[name]
    offered = tool("add", {"x": {"type": "integer"}})
    offered["function"]["strict"] = True
    for text, good in (
        ("So be it.", True),
        (answer(tok, ("add", {"x": 1})), True),
        ("So: " + answer(tok, ("add", {"x": 1}), ("add", {"x": 2})), True),
        (answer(tok, ("add", {"x": "so"})), False),
        (answer(tok, ("other", {})), False),
    ):
        assert takes(opened(name, offered, tool_choice="auto"), tok, text) == good, text


@pytest.mark.parametrize("name", [name for name in FORMS if not name.startswith(("OLMo", "LFM2"))])
def test_text_that_is_free_does_not_end_the_call(name: str) -> None:
    """Names in JSON's quotes aside, which the splitter of an answer cuts as it ever did."""
    form = FORMS[name]
    assert form is not None
    for offered in (tool("add", {"x": {"type": "string"}}), tool("add", {"x": {}})):
        tok, text = TOKENIZERS[name], answer(TOKENIZERS[name], ("add", {"x": "a rsd b"}))
        head, tail = text.split("rsd")
        constraint = opened(name, offered)
        constraint.push(tok.encode(head, add_special_tokens=False))
        spelled = [token for sign in form.closing for token in tok.encode(sign, add_special_tokens=False)]
        assert not all(constraint.takes(token) and constraint.push([token]) is None for token in spelled)
        assert fits(name, offered, {"x": "a rsd b"}) and tail


def test_further_arguments_are_none_of_those_that_are_named() -> None:
    offered = tool("add", {"a": {"type": "integer"}}, [], additionalProperties={"type": "string"})
    assert fits("Qwen3-Coder", offered, {"b": "so"})
    assert not fits("Qwen3-Coder", offered, {"b": "so", "a": "so"})
