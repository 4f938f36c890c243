"""Calls in markup of keys and values: found, forced, and read by the tools' schemas."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rsd_integrations.backends.shared.constrain import Constraint, Grammars
from rsd_integrations.backends.shared.tooling import call_format, call_reader
from rsd_integrations.config import RSDConfig
from rsd_integrations.output import Output
from rsd_integrations.protocols import Written
from rsd_integrations.reading import Reading
from rsd_integrations.text.calls import CallFormat
from rsd_integrations.text.keyed import Keyed
from rsd_integrations.text.segment import CallSplitter
from rsd_integrations.types import InvalidToolCall, Message, ToolCall
from tests.keyed_templates import GEMMA, QUOTED, SPECIAL, TEMPLATES, tokenizer
from tests.small_tokenizers import byte_level

NAMES = [*TEMPLATES, SPECIAL]
TOKENIZERS = {name: tokenizer(name) for name in NAMES}
FORMS = {name: call_format(tok) for name, tok in TOKENIZERS.items()}
FUNCTION = "<tool_call>\n<function="
CALLED = f"{FUNCTION}add>\n{{}}</function>\n</tool_call>"
FORMATS = {
    "Qwen3-Coder": (
        CallFormat(
            FUNCTION,
            ">\n",
            "</function>\n</tool_call>",
            "</function>\n</tool_call>\n" + FUNCTION,
            Keyed("<parameter=", ">\n", "\n</parameter>\n", ("True", "False", "None")),
        ),
        ("<tool_call>", "</tool_call>"),
    ),
    "Seed-OSS": (
        CallFormat(
            "<seed:tool_call>\n<function=",
            ">\n",
            "</function>\n</seed:tool_call>",
            "</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=",
            Keyed("<parameter=", ">", "</parameter>\n", ("True", "False", "None")),
        ),
        ("<seed:tool_call>", "</seed:tool_call>"),
    ),
    "GLM 4.5": (
        CallFormat(
            "<tool_call>",
            "\n",
            "</tool_call>",
            "</tool_call>\n<tool_call>",
            Keyed("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
        ),
        ("<tool_call>", "</tool_call>"),
    ),
    "GLM 4.7": (
        CallFormat(
            "<tool_call>",
            "",
            "</tool_call>",
            "</tool_call><tool_call>",
            Keyed("<arg_key>", "</arg_key><arg_value>", "</arg_value>"),
        ),
        ("<tool_call>", "</tool_call>"),
    ),
    "MiniMax-M2": (
        CallFormat(
            '<minimax:tool_call>\n<invoke name="',
            '">\n',
            "</invoke>\n</minimax:tool_call>",
            '</invoke>\n<invoke name="',
            Keyed('<parameter name="', '">', "</parameter>\n"),
        ),
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    "OLMo 3": (
        CallFormat("<function_calls>", "(", ")</function_calls>", ")\n", Keyed("", "=", "", apart=", ")),
        ("<function_calls>", "</function_calls>"),
    ),
    GEMMA: (
        CallFormat(
            "<|tool_call>call:",
            "{",
            "}<tool_call|>",
            "}<tool_call|><|tool_call>call:",
            Keyed("", ":", "", ("true", "false", "None"), apart=",", quotes='<|"|>'),
        ),
        ("<|tool_call>", "<tool_call|>"),
    ),
}


def tool(name: str, properties: dict[str, Any], required: Any = None, **more: Any) -> dict[str, Any]:
    required = list(properties) if required is None else required
    schema = {"type": "object", "properties": properties, "required": required, **more}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


SMALL = [
    tool(
        "add",
        {
            "text": {"type": "string", "maxLength": 5},
            "sure": {"type": "boolean"},
            "unit": {"enum": ["C", "°F 🌡", 3, None, True]},
            "note": {"anyOf": [{"type": "string", "const": "so"}, {"type": "null"}]},
            "many": {"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 2},
            "at": {"$ref": "#/$defs/Place"},
        },
        ["sure", "unit", "at"],
        **{"$defs": {"Place": {"type": "object", "properties": {"x": {"const": 7}}, "required": ["x"]}}},
    ),
    tool("look_up", {}),
]


def answer(tok: Any, *calls: tuple[str, dict[str, Any]]) -> str:
    """What the template makes of an answer, thoughts aside."""
    said: Message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "id": f"abcdefgh{number}",
                "function": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate(calls)
        ],
    }
    text = str(tok.apply_chat_template([said], tokenize=False)).removeprefix("<|im_start|>assistant\n")
    text = text.removesuffix("<|im_end|>\n").removesuffix("<|tool_response>")
    return text.rpartition("</think>")[2].lstrip("\n")


def read(name: str, text: str, *tools: Any) -> tuple[str, list[ToolCall | InvalidToolCall]]:
    """(text, calls) of an answer."""
    reader = call_reader(TOKENIZERS[name], FORMS[name]).among(Output.of(tools=tools))
    shown, calls = CallSplitter(reader.unbroken).push(text, final=True)
    return shown, [found for call in calls for found in reader.read(call) or ()]


def opened(name: str, *tools: Any, **asked: Any) -> Constraint:
    """The constraint of an answer that is a call."""
    return grammars(name).open(Output.of(tools=tools, **{"tool_choice": "required", **asked}), None)


@cache
def grammars(name: str) -> Grammars:
    tok = TOKENIZERS[name]
    return Grammars(tok, frozenset([tok.eos_token_id]), FORMS[name], "x")


def takes(constraint: Constraint, tok: Any, text: str) -> bool:
    """Whether a whole answer may be written."""
    for token in [*tok.encode(text, add_special_tokens=False), tok.eos_token_id]:
        if not constraint.takes(token):
            return False
        constraint.push([token])
    return True


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_shows_its_format(name: str) -> None:
    form = FORMS[name]
    assert form == FORMATS[name][0]
    assert form is not None and (form.opening, form.closing) == FORMATS[name][1]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_template_writes_is_read_back(name: str) -> None:
    tools = tool("add", {"x": {"type": "integer"}, "why": {"type": "string"}, "y": {}}), tool("look_up", {})
    calls: list[tuple[str, dict[str, Any]]] = [
        ("add", {"x": 1, "why": '\n <b>"1"</b>\n\n', "y": {"z": [22, None]}}),
        ("look_up", {}),
        ("add", {"why": "3"}),
    ]
    for count in (1, 2, 3):
        text, found = read(name, "So: " + answer(TOKENIZERS[name], *calls[:count]) + "\nDone.", *tools)
        assert [(call.name, call.arguments) for call in found] == calls[:count]
        assert text == "So:\nDone."


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parallel", [True, False])
def test_what_is_forced_is_read_back(name: str, parallel: bool) -> None:
    tok, counts, seen = TOKENIZERS[name], set(), set()
    for seed in range(10):
        constraint, choice, ids = (
            opened(name, *SMALL, parallel_tool_calls=parallel),
            random.Random(seed),
            [-1],
        )
        while ids[-1] != tok.eos_token_id:
            ids.append(choice.choice(constraint.allowed(len(tok)).nonzero().flatten().tolist()))
            constraint.push(ids[-1:])
        _, found = read(name, tok.decode(ids[1:-1]), *SMALL)
        counts.add(len(found))
        for call in found:
            assert isinstance(call, ToolCall)
            seen |= {call.name, *call.arguments}
            assert call.name == "add" or call.arguments == {}
            if call.name == "add":
                check_small(call.arguments)
    assert len(seen & {"text", "note", "many"}) >= 2  # Which need not be there.
    assert seen >= {"add", "look_up", "sure", "unit", "at"}
    assert min(counts) >= 1
    assert (max(counts) > 1) == parallel


def check_small(arguments: dict[str, Any]) -> None:
    """Whether arguments follow the schema of ``SMALL``."""
    assert {"sure", "unit", "at"} <= arguments.keys()
    assert len(arguments.get("text", "")) <= 5
    assert arguments["sure"] in (True, False)
    assert arguments["unit"] in ("C", "°F 🌡", 3, None, True)
    assert arguments.get("note") in ("so", None)
    assert arguments["at"] == {"x": 7}
    assert all(one in (1, "a") for one in arguments.get("many", []))


MARKUP = re.compile("</?([a-z]+:)?(think|tool_call|arg_key|arg_value|parameter|function|invoke)>")
"""What ends calls, or is a token that free text never holds where a form is forced."""
TEXTS = (
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Co", "Cn"]) | st.just("\n"), max_size=12)
    | st.lists(st.sampled_from(["<", "</", "parameter", "=x>", "\n", "<b>", "{", '"', "'"])).map("".join)
).filter(lambda text: not MARKUP.search(text))
NUMBERS = st.integers(-(10**9), 10**9)
KINDS: dict[str, tuple[dict[str, Any], st.SearchStrategy[Any]]] = {
    "text": ({"type": "string"}, TEXTS),
    "whole": ({"type": "integer"}, NUMBERS),
    "number": (
        {"type": "number"},
        NUMBERS | st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3)),
    ),
    "sure": ({"type": "boolean"}, st.booleans()),
    "list": ({"type": "array", "items": {"type": "string"}}, st.lists(TEXTS, max_size=3)),
    "object": ({"type": "object", "additionalProperties": True}, st.dictionaries(TEXTS, NUMBERS, max_size=2)),
    "optional": ({"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}, NUMBERS | st.none()),
    "choice": ({"enum": ["a b", "<c>", 'd"']}, st.sampled_from(["a b", "<c>", 'd"'])),
    "maybe": ({"type": ["string", "null"]}, st.none() | st.sampled_from(["so", "12", "[1]", ""])),
}


@st.composite
def called(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tool, and arguments that it takes, in the order of its properties."""
    keys = draw(st.lists(st.sampled_from(sorted(KINDS)), unique=True))
    required = [key for key in keys if draw(st.booleans())]
    given = {key: draw(KINDS[key][1]) for key in keys if key in required or draw(st.booleans())}
    return tool("add", {key: KINDS[key][0] for key in keys}, required), given


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(made=called())
def test_what_follows_a_schema_may_be_written_and_means_the_same(name: str, made: Any) -> None:
    offered, arguments = made
    if name == GEMMA:  # Its template sorts keys, and puts no quotes around them.
        assume(all(re.fullmatch("[a-z]+", key) for key in arguments.get("object", ())))
        schema = offered["function"]["parameters"]
        schema["properties"] = dict(sorted(schema["properties"].items()))
    tok = TOKENIZERS[name]
    text = answer(tok, ("add", arguments))
    # Seed-OSS's template shows lists and objects by Python's repr, but what is forced is JSON.
    if name != "Seed-OSS" or not {"list", "object"} & arguments.keys():
        assert takes(opened(name, offered), tok, text)
    _, [found] = read(name, text, offered)
    assert (found.name, found.arguments) == ("add", arguments)


TYPED = tool(
    "add",
    {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "sure": {"type": "boolean"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "any": {},
        "place": {"$ref": "#/$defs/Place"},
        "list": {"type": "array"},
        "a>b": {"type": "string"},
    },
    [],
    **{"$defs": {"Place": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
)


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("text", "12", "12"),
        ("text", "null", "null"),
        ("text", "", ""),
        ("text", "\na\n\n", "\na\n\n"),
        ("text", " a ", " a "),
        ("text", "</parameter>", "</parameter>"),
        ("text", "if a < b and b > c:\n    <b>'x'</b> \"y\" </function", None),
        ("a>b", "x", "x"),
        ("count", "12", 12),
        ("count", " 12 ", 12),
        ("count", "twelve", "twelve"),
        ("sure", "true", True),
        ("sure", "True", True),
        ("sure", "yes", "yes"),
        ("maybe", "None", None),
        ("maybe", "null", None),
        ("maybe", "12", "12"),
        ("maybe", "[1]", "[1]"),
        ("either", "12", 12),
        ("either", "12 a", "12 a"),
        ("either", "1.5", "1.5"),
        ("any", '{"x": [1, null]}', {"x": [1, None]}),
        ("any", "{'x': [1, None, (True, 'a')]}", {"x": [1, None, [True, "a"]]}),
        ("any", "so it is", "so it is"),
        ("any", '"so"', '"so"'),
        ("place", '{"x": 1}', {"x": 1}),
        ("place", "{'x': 1}", {"x": 1}),
        ("place", "{1: 2}", "{1: 2}"),
        ("place", "{'x': 1e999}", "{'x': 1e999}"),
        ("place", "{'x': b'a'}", "{'x': b'a'}"),
        ("list", "{'x'", "{'x'"),
        ("list", "[" * 100_000, None),
        ("list", "-" * 100_000, None),
        ("list", "(" + "-" * 100_000, None),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("name", ["Qwen3-Coder", "GLM 4.7"])
def test_values_are_read_by_their_schemas(name: str, key: str, written: str, meant: Any) -> None:
    unless = {"maybe"}  # Else None stands for the text itself.
    meant = written if meant is None and key not in unless else meant
    text = answer(TOKENIZERS[name], ("add", {key: written}))
    _, [found] = read(name, text, TYPED)
    assert isinstance(found, ToolCall)
    assert found.arguments == {key: meant}
    assert type(found.arguments[key]) is type(meant)


@pytest.mark.parametrize("written", ["1e999", "-1.5E+999", " 1e999 ", "9" * 5000])
def test_numbers_that_are_too_large_make_a_call_invalid(written: str) -> None:
    """As in JSON, where text would be taken for one."""
    for key, error in (("count", True), ("either", False), ("text", False)):
        _, [found] = read("GLM 4.7", answer(TOKENIZERS["GLM 4.7"], ("add", {key: written})), TYPED)
        assert isinstance(found, InvalidToolCall if error else ToolCall)
        assert not error or f"{written.strip()[:40]!r} is too large a number" in str(found)
        assert error or found.arguments == {key: written}


def test_without_a_schema_values_are_what_they_look_like() -> None:
    text = answer(TOKENIZERS["Qwen3-Coder"], ("other", {"x": 12, "y": "so", "z": [True]}))
    for offered in ([], [TYPED]):
        _, [found] = read("Qwen3-Coder", text, *offered)
        assert (found.name, found.arguments) == ("other", {"x": 12, "y": "so", "z": [True]})


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("Qwen3-Coder", "<tool_call>", "'' stands where a call should begin"),
        ("Qwen3-Coder", "<tool_call>\n{}\n</tool_call>", "'{}' stands where a call should begin"),
        ("Qwen3-Coder", "<tool_call>\nSo:\n<function=add>\n</function>\n</tool_call>", "stands where a call"),
        ("Qwen3-Coder", "<tool_call>\n<function=add>\n</function>\nSo.\n</tool_call>", "'So.' stands where"),
        ("Qwen3-Coder", "<tool_call>\n<function=>\n</function>\n</tool_call>", "it names no tool"),
        ("Qwen3-Coder", "<tool_call>\n<function=add\n</function>\n</tool_call>", "it names no tool"),
        ("Qwen3-Coder", "<tool_call>\n<function=add", "it names no tool"),
        ("Qwen3-Coder", "<tool_call>\n<function=add>\n", "it has no end"),
        ("Qwen3-Coder", "<tool_call>\n<function=add>\n</tool_call>", "it has no end"),
        (
            "Qwen3-Coder",
            "<tool_call>\n<function=add>\nSo.\n</function>\n</tool_call>",
            "'So.\\n</function>' stands",
        ),
        (
            "Qwen3-Coder",
            "<tool_call>\n<function=add>\n<parameter=x\n",
            "an argument without a name or a value",
        ),
        (
            "Qwen3-Coder",
            "<tool_call>\n<function=add>\n<parameter=x>\n1\n</tool_call>",
            "argument 'x' has no end",
        ),
        (
            "Qwen3-Coder",
            "<tool_call>\n<function=add>\n<parameter=x>\n1\n</parameter>\n",
            "argument 'x' has no end",
        ),
        ("Qwen3-Coder", CALLED.format("<parameter=y>\n1\n</parameter>\n"), "'add' takes no argument 'y'"),
        (
            "Qwen3-Coder",
            CALLED.format("<parameter=x>\n" + "[" * 130 + "]" * 130 + "\n</parameter>\n"),
            "too deep",
        ),
        ("Qwen3-Coder", CALLED.format('<parameter=x>\n["\\ud83d"]\n</parameter>\n'), "half a character"),
        (
            "GLM 4.7",
            "<tool_call>add<arg_key>x</arg_key><arg_value>1</arg_value>",
            "its </tool_call> is missing",
        ),
        ("GLM 4.7", "<tool_call>add<arg_key>x</arg_key></tool_call>", "without a name or a value"),
        ("GLM 4.7", "<tool_call></tool_call>", "it names no tool"),
        ("MiniMax-M2", '<minimax:tool_call>\n<invoke name="add">\n</minimax:tool_call>', "it has no end"),
        (GEMMA, '<|tool_call>call:add{x:<|"|>a}<tool_call|>', "stands where an argument or its end"),
        (GEMMA, "<|tool_call>call:add{x:[1]", "it has no end"),
        (GEMMA, "<|tool_call>call:add{y:1}<tool_call|>", "'add' takes no argument 'y'"),
        ("OLMo 3", '<function_calls>add("so")</function_calls>', "an argument without a name or a value"),
        ("OLMo 3", "<function_calls>add(x=so)</function_calls>", "'so' is no value"),
        ("OLMo 3", "<function_calls>add(x=[1], y=2)</function_calls>", "'add' takes no argument 'y'"),
        ("OLMo 3", "<function_calls>add(x=[1] x=2)</function_calls>", "'[1] x=2' is no value"),
        ("OLMo 3", "<function_calls>add(x=[1]", "it has no end"),
        ("OLMo 3", "<function_calls>add(x=[1", "it has no end"),
        ("OLMo 3", "<function_calls>add(x=[1]], x=[1])</function_calls>", "'], x=[1])' stands where"),
        ("OLMo 3", "<function_calls>add(x='a", "stands where an argument or its end should"),
        ("OLMo 3", "<function_calls>add</function_calls>", "it names no tool"),
        ("OLMo 3", "<function_calls>add(x=__import__('os'))</function_calls>", "is no value"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_no_call_says_why(name: str, text: str, error: str) -> None:
    _, [found] = read(name, text, tool("add", {"x": {"type": "array"}}))
    assert isinstance(found, InvalidToolCall)
    assert error in found.error
    assert found.text == text
    found.model_dump_json()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Qwen3-Coder", "<tool_call><function=add><parameter=x>1</parameter></function></tool_call>"),
        ("Qwen3-Coder", "<tool_call>\n  <function=add>\n  <parameter=x>\n1\n  </parameter>\n  </function>"),
        ("GLM 4.5", "<tool_call>add<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>"),
        ("OLMo 3", "<function_calls>\nadd( x = 1 )\n</function_calls>"),
        (GEMMA, "<|tool_call>call:add{x: 1}<tool_call|>"),
        (GEMMA, '<|tool_call>call:add{"x": 1}<tool_call|>'),
        ("LFM2, if its template showed calls", "<|tool_call_start|>[add(x=1)]"),
        ("GLM 4.7", "<tool_call>\nadd\n<arg_key> x </arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),
        (
            "MiniMax-M2",
            '<minimax:tool_call><invoke name="add"><parameter name="x">1</parameter></invoke>',
        ),
    ],
)
def test_a_call_need_not_be_as_the_template_has_it(name: str, text: str) -> None:
    _, [found] = read(name, text, tool("add", {"x": {"type": "integer"}}))
    assert (found.name, found.arguments) == ("add", {"x": 1})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("'it\\'s'", "it's"),
        ('"a, (b] {c"', "a, (b] {c"),
        ('"\\u00e9 \\n"', "é \n"),
        ("[True, None, 'a', (1,)]", [True, None, "a", [1]]),
        ('[true, null, {"a": false}]', [True, None, {"a": False}]),
        ("None", None),
        ("-1.5", -1.5),
        ('"12"', "12"),
    ],
)
def test_literals_of_python_and_json_are_read(written: str, meant: Any) -> None:
    text = f"<function_calls>add(x={written}, y={written})\nlook_up()</function_calls>"
    _, found = read("OLMo 3", text, tool("add", {"x": {"type": "string"}, "y": {}}), tool("look_up", {}))
    assert [call.arguments for call in found] == [{"x": meant, "y": meant}, {}]


def test_quotes_of_a_format_s_own_hold_any_text() -> None:
    arguments = {"x": "a, {b: 'c'} \"d\" ]\n", "y": {"k": ["<|", 1, None], "of": "so: {"}}
    text = answer(TOKENIZERS[GEMMA], ("add", arguments), ("add", {"x": "12"}))
    _, found = read(GEMMA, text, tool("add", {"x": {"type": "string"}, "y": {}}))
    assert [call.arguments for call in found] == [arguments, {"x": "12"}]


def test_several_calls_in_one_markup_are_all_read_or_none() -> None:
    calls: list[tuple[str, dict[str, Any]]] = [("add", {"x": 1}), ("look_up", {}), ("add", {"x": 2})]
    tools = tool("add", {"x": {"type": "integer"}}), tool("look_up", {})
    text = answer(TOKENIZERS["MiniMax-M2"], *calls)
    assert text.count("<minimax:tool_call>") == 1
    _, found = read("MiniMax-M2", text, *tools)
    assert [(call.name, call.arguments) for call in found] == calls
    _, [flawed] = read("MiniMax-M2", text.replace('"x">2', '"y">2'), *tools)
    assert isinstance(flawed, InvalidToolCall)
    both = CALLED.format("<parameter=x>\n1\n</parameter>\n").replace(
        "</function>\n", "</function>\n<function=look_up>\n</function>\n"
    )
    _, found = read("Qwen3-Coder", both, *tools)
    assert [(call.name, call.arguments) for call in found] == calls[:2]


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "add",
    ">",
    "\n",
    "</function>",
    "<parameter=",
    "x",
    "</parameter>",
    "1",
    "{",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["Qwen3-Coder", "GLM 4.5"]), st.lists(st.sampled_from(PIECES)).map("".join))
def test_whatever_is_written_is_read(name: str, text: str) -> None:
    """And raises nothing."""
    _, found = read(name, "<tool_call>" + text, tool("add", {"x": {"type": "string"}}, []))
    for call in found:
        assert isinstance(call, InvalidToolCall) or call.arguments.keys() <= {"x"} or call.name != "add"


@pytest.mark.parametrize(
    "piece", ["</parameter>", "</parameter>\n", " ", "\n", "<parameter=x>\n1\n</parameter>\n", "<", "x>"]
)
@pytest.mark.parametrize("before", ["", "<parameter=x>\n"])
def test_long_calls_are_read_in_time(before: str, piece: str) -> None:
    """Five megabytes: what is not linear would never end."""
    text = f"<tool_call>\n<function=add>\n{before}{piece * (5_000_000 // len(piece))}"
    assert read("Qwen3-Coder", text, tool("add", {"x": {"type": "string"}}))[1]


@pytest.mark.parametrize("piece", ["a(", "x=", "x=1, ", "'", '"', "[", "x='", " ", "\\", "x=[a", "x=a"])
def test_long_calls_of_python_are_read_in_time(piece: str) -> None:
    text = f"<function_calls>add({piece * (1_000_000 // len(piece))}"
    assert read("OLMo 3", text, tool("add", {"x": {"type": "string"}}))[1]


def test_a_format_that_marks_types_is_not_known() -> None:
    """As DeepSeek V3.2's: what is around a number is not what is around a text."""
    tok = tokenizer("MiniMax-M2")
    assert tok.chat_template.count("'\">' +") == 1
    tok.chat_template = tok.chat_template.replace("'\">' +", "('\">' if v is string else '\" json>') +")
    form = call_format(tok)
    assert form is not None and form.between is None
    assert not call_reader(tok, form).known


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("x='a\\nb'", "a\nb"),
        ("x='a\nb'", "a\nb"),
        ('x="it\'s"', "it's"),
        ("x='it\\'s'", "it's"),
        ("x='C:\\dir'", "C:\\dir"),
        ("x=[\"it's\", 'b', True, None]", ["it's", "b", True, None]),
        ("x={'a': [1, 'b']}", {"a": [1, "b"]}),
    ],
)
def test_texts_that_a_template_quotes_by_hand_are_read_as_python(written: str, meant: Any) -> None:
    tok = byte_level(QUOTED, added=("<|tool_call_start|>", "<|tool_call_end|>"))
    form = call_format(tok)
    assert form is not None and form.keyed is not None
    assert (form.keyed.apart, form.keyed.quotes) == (", ", "")
    reader = call_reader(tok, form).among(Output.of(tools=[tool("add", {"x": {}})]))
    [found] = reader.read(f"<|tool_call_start|>[add({written})]<|tool_call_end|>") or []
    assert isinstance(found, ToolCall), found
    assert found.arguments == {"x": meant}


def test_a_format_that_says_the_name_twice_is_not_known() -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
        "{%- for c in m.tool_calls or [] %}"
        "{{- '<call to=' + c.function.name + '><invoke ' + c.function.name + '>' }}"
        "{{- c.function.arguments | tojson + '</call>' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    )
    form = call_format(byte_level(template))
    assert form is not None and form.between is None


def test_each_tool_s_references_are_its_own() -> None:
    """Pydantic names models alike that are not."""
    places = {"one": {"x": {"type": "integer"}}, "two": {"y": {"enum": ["p", "q"]}}}
    offered = [
        tool(
            name,
            {"at": {"$ref": "#/$defs/Place"}},
            **{"$defs": {"Place": {"type": "object", "properties": properties, "required": [*properties]}}},
        )
        for name, properties in places.items()
    ]
    made = ("one", {"x": 3}, True), ("two", {"y": "p"}, True), ("two", {"x": 3}, False)
    for name in set(NAMES) - {"Seed-OSS"}:  # Its template shows objects by Python's repr.
        tok = TOKENIZERS[name]
        for called, at, fits in made:
            assert takes(opened(name, *offered), tok, answer(tok, (called, {"at": at}))) is fits, (name, at)


def test_many_unions_in_unions_take_no_time() -> None:
    """Twice itself each, 2 to the 40th; whatever they say is taken."""
    defs = {f"D{n}": {"anyOf": [{"$ref": f"#/$defs/D{n + 1}"}] * 2} for n in range(40)}
    offered = tool("add", {"x": {"$ref": "#/$defs/D0"}}, **{"$defs": {**defs, "D40": {"type": "string"}}})
    _, [found] = read("Qwen3-Coder", answer(TOKENIZERS["Qwen3-Coder"], ("add", {"x": "12"})), offered)
    assert found.arguments == {"x": "12"}


def test_of_several_calls_in_one_markup_one_is_taken_where_there_may_be_one() -> None:
    tok = TOKENIZERS["MiniMax-M2"]
    output = Output.of(tools=[tool("add", {"x": {"type": "integer"}})], parallel_tool_calls=False)
    reader = call_reader(tok, FORMS["MiniMax-M2"]).among(output)
    reading = Reading(RSDConfig(), None, output, reader)
    text = answer(tok, ("add", {"x": 1}), ("add", {"x": 2}))
    reading.push(Written(text, (), "eos", None, ""))
    reading.finish()
    assert [call.arguments for call in reading.outcome.calls] == [{"x": 1}]
