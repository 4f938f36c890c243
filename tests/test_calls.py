"""Formats of tool calls found in chat templates, and reading calls back."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations.backends.shared.constrain import Grammars
from rsd_integrations.backends.shared.tooling import Calls, Tooling, call_format, call_reader, check_template
from rsd_integrations.errors import ConfigError
from rsd_integrations.opening import check_tools
from rsd_integrations.output import Output
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.text.calls import CALL_ID, HERMES, CallFormat, plain_reader
from rsd_integrations.types import InvalidToolCall, Message, ToolCall
from tests.keyed_templates import tokenizer as tokenizer_of_keyed_calls
from tests.small_tokenizers import byte_level

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"x": {"enum": [1, 22]}}, "required": ["x"]},
    },
}
HEADER = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
)
FOOTER = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NAMED = '{"name": "{{ c.function.name }}", '
ARGUMENTS = "{{ c.function.arguments | tojson }}"
TEMPLATES: dict[str, tuple[str, tuple[str, ...], CallFormat]] = {
    "hermes": (
        HEADER
        + "{% for c in m.tool_calls or [] %}{% if not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n"
        + NAMED
        + '"arguments": '
        + ARGUMENTS
        + "}\n</tool_call>{% endfor %}"
        + FOOTER,
        ("<tool_call>", "</tool_call>"),
        HERMES,
    ),
    "hermes, spelled out": (
        HEADER
        + "{% for c in m.tool_calls or [] %}{% if not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n"
        + NAMED
        + '"arguments": '
        + ARGUMENTS
        + "}\n</tool_call>{% endfor %}"
        + FOOTER,
        (),
        HERMES,
    ),
    "bare, one at a time": (
        HEADER
        + "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"
        + "{% set c = m.tool_calls[0] %}"
        + NAMED
        + '"parameters": '
        + ARGUMENTS
        + "}{% endif %}"
        + FOOTER,
        (),
        CallFormat('{"name": "', '", "parameters": ', "}"),
    ),
    "a list with ids": (
        HEADER
        + "{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
        + NAMED
        + '"arguments": '
        + ARGUMENTS
        + ', "id": "{{ c.id }}"}'
        + "{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}"
        + FOOTER,
        ("[TOOL_CALLS]",),
        CallFormat(
            '[TOOL_CALLS] [{"name": "',
            '", "arguments": ',
            f', "id": "{CALL_ID}"}}]',
            f', "id": "{CALL_ID}"}}, {{"name": "',
        ),
    ),
    "a name outside of the JSON": (
        HEADER
        + "{% for c in m.tool_calls or [] %}<|call|>function<|sep|>{{ c.function.name }}\n"
        + ARGUMENTS
        + "<|done|>{% endfor %}"
        + FOOTER,
        ("<|call|>", "<|sep|>", "<|done|>"),
        CallFormat("<|call|>function<|sep|>", "\n", "<|done|>", "<|done|><|call|>function<|sep|>"),
    ),
}


def tokenizer(name: str) -> Any:
    template, added, _ = TEMPLATES[name]
    return byte_level(template, added=added)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_shows_its_format(name: str) -> None:
    assert call_format(tokenizer(name)) == TEMPLATES[name][2]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_is_read_back(name: str) -> None:
    tok, form = tokenizer(name), TEMPLATES[name][2]
    read = plain_reader(form)
    function = {"name": "add", "arguments": {"x": 1, "why": '"}</tool_call'}}
    answer: Message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "abcdefghi", "function": function}],
    }
    text = tok.apply_chat_template([answer], tokenize=False)
    text = text.removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")
    found = read(text)
    assert found is not None
    assert [(call.name, call.arguments) for call in found] == [("add", function["arguments"])]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("parallel", [True, False])
def test_what_is_forced_is_read_back(name: str, parallel: bool) -> None:
    """Follow the grammar with the largest allowed id: some text of the grammar's language."""
    tok, form = tokenizer(name), call_format(tokenizer(name))
    output = Output.of(tools=[TOOL], tool_choice="required", parallel_tool_calls=parallel)
    constraint = Grammars(tok, frozenset([tok.eos_token_id]), form, "x").open(output, None)
    ids: list[int] = []
    for _ in range(200):
        allowed = constraint.allowed(len(tok)).nonzero().flatten().tolist()
        if tok.eos_token_id in allowed:
            break
        # The shortest piece: forced text is one token anyway, and a choice should come to an end.
        ids.append(min(allowed, key=lambda token: (len(tok.decode([token])), -token)))
        constraint.push(ids[-1:])
    text = tok.decode(ids)
    assert form is not None
    found = plain_reader(form)(text)
    assert found is not None and found
    assert {(call.name, json.dumps(call.arguments)) for call in found} <= {
        ("add", '{"x": 1}'),
        ("add", '{"x": 22}'),
    }


def test_an_empty_thought_that_a_template_writes_is_no_part_of_the_format() -> None:
    """As Qwen 3's does."""
    template, added, form = TEMPLATES["hermes"]
    thoughtful = template.replace(
        "{% for c in m.tool_calls or []",
        "{% if m.tool_calls %}<think>\n\n</think>\n\n{% endif %}{% for c in m.tool_calls or []",
    )
    assert thoughtful != template
    assert call_format(byte_level(thoughtful, added=(*added, "<think>", "</think>"))) == form


def test_a_template_may_take_no_tools() -> None:
    class Source:
        tokenizer = byte_level(HEADER.replace("tools", "nothing") + FOOTER)
        name = "mute"

    with pytest.raises(ValueError, match="'mute' takes no tools"):
        check_template(Source())  # type: ignore[arg-type]
    assert call_format(Source.tokenizer) is None


UNKNOWN = (
    HEADER
    + "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function.name }}: "
    + "{% for k, v in c.function.arguments.items() %}{{ v }}; {% endfor %}\n</tool_call>{% endfor %}"
    + FOOTER
)
"""A template whose calls do not say what is what."""


def test_calls_that_nobody_could_read_are_refused_before(tmp_path: Path) -> None:
    tok = byte_level(UNKNOWN, added=("<tool_call>", "</tool_call>"))
    form = call_format(tok)
    assert form is not None and form.between is None
    assert (form.unbroken.opening, form.unbroken.closing) == ("<tool_call>", "</tool_call>")
    tooling = Tooling(tok, "odd", frozenset([tok.eos_token_id]), Calls.of(tok))
    assert not tooling.takes_tools
    for choice in ("auto", "required"):
        with pytest.raises(ConfigError, match="not known how 'odd' writes calls"):
            tooling.check(Output.of(tools=[TOOL], tool_choice=choice))
    tooling.check(Output())
    [call] = call_reader(tok, form).read("<tool_call>\nadd: 22;\n</tool_call>") or []
    assert isinstance(call, InvalidToolCall)
    assert call.error == "the format that this model's calls are written in is not known"
    # Only what the target writes is read.
    readable = byte_level(TEMPLATES["hermes"][0])
    for name, saved in (("odd", tok), ("readable", readable)):
        saved.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    odd, good = str(tmp_path / "odd"), str(tmp_path / "readable")
    check_tools(odd, good)
    with pytest.raises(ConfigError, match=r"not known how .*odd' writes calls"):
        check_tools(good, odd)


def test_what_a_response_template_reads_need_not_be_known() -> None:
    tok = byte_level(UNKNOWN, added=("<tool_call>", "</tool_call>"))
    tok.response_template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "content": {},
            "tool_calls": {
                "open": "<tool_call>",
                "close": "</tool_call>",
                "content": "xml-inline",
                "content_args": {"tag_pattern": r"(?P<key>\w+): (?P<value>.*?);"},
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "add", "arguments": "{content}"}},
            },
        },
    }
    form = call_format(tok)
    reader = call_reader(tok, form)
    assert (reader.unbroken.opening, reader.unbroken.closing) == ("<tool_call>", "</tool_call>")
    [call] = reader.read("<tool_call>\nx: 22;\n</tool_call>") or []
    assert (call.name, call.arguments) == ("add", {"x": "22"})
    tooling = Tooling(tok, "odd", frozenset([tok.eos_token_id]), Calls(form, reader))
    assert tooling.takes_tools
    tooling.check(Output.of(tools=[TOOL]))
    with pytest.raises(ConfigError, match="not known how 'odd' writes calls of tools, so none can be forced"):
        tooling.check(Output.of(tools=[TOOL], tool_choice="required"))


def test_a_response_template_need_not_read_what_the_schemas_tell_better() -> None:
    tok = tokenizer_of_keyed_calls("Qwen3-Coder")
    calls = {
        "open": "<tool_call>",
        "close": "</tool_call>",
        "content": "xml-inline",
        "content_args": {"tag_pattern": r"<parameter=(?P<key>\w+)>\n(?P<value>.*?)\n</parameter>"},
        "repeats": True,
        "transform": {"type": "function", "function": {"name": "add", "arguments": "{content}"}},
    }
    tok.response_template = {"start_anchor": "<|im_start|>assistant\n", "fields": {"tool_calls": calls}}
    form = call_format(tok)
    text = "<tool_call>\n<function=add>\n<parameter=x>\n22\n</parameter>\n</function>\n</tool_call>"
    reader = call_reader(tok, form)
    assert (reader.unbroken.opening, reader.unbroken.closing) == ("<tool_call>", "</tool_call>")
    for written, meant in ((text, 22), (text.replace("</function>\n", ""), "22")):
        [call] = reader.among(Output.of(tools=[TOOL])).read(written) or []
        assert (call.name, call.arguments) == ("add", {"x": meant})


DEEP = "[" * 120 + "]" * 120


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('<tool_call>{"name": "add", "arguments": {"x": }}</tool_call>', "malformed"),
        ('<tool_call>{"arguments": {"x": 1}}</tool_call>', "names no tool"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "are no object"),
        ('<tool_call>{"name": "add", "arguments": "{x"}</tool_call>', "arguments is malformed"),
        ('<tool_call>{"name": "add", "arguments": {"x": NaN}}</tool_call>', "malformed: NaN"),
        ('<tool_call>{"name": "add", "arguments": {"x": -1e999}}</tool_call>', "malformed: -1e999"),
        ('<tool_call>"add"</tool_call>', "names no tool"),
        ('<tool_call>{"name": "add", "arguments": {"x": ["\\ud83d"]}}</tool_call>', "half a character"),
        ('<tool_call>{"name": "add", "arguments": {"\\ud83d": 1}}</tool_call>', "half a character"),
        ('<tool_call>{"name": "a\\ud83d", "arguments": {}}</tool_call>', "half a character"),
        (
            '<tool_call>{"name": "add", "arguments": "{\\"x\\": \\"\\\\ud83d\\"}"}</tool_call>',
            "half a character",
        ),
        ('<tool_call>{"name": "add", "arguments": {"x": ' + DEEP + "}}</tool_call>", "too deep"),
        ('<tool_call>{"name": "add", "argum', "malformed"),
    ],
)
def test_what_is_no_call_says_why(text: str, error: str) -> None:
    (found,) = plain_reader(HERMES)(text) or [None]
    assert isinstance(found, InvalidToolCall)
    assert error in found.error
    assert found.text == text
    found.model_dump_json()  # Whatever is wrong with it, it can be sent and saved.


def test_what_is_a_call_fits_into_the_next_turn() -> None:
    """However deep: there it lies in a message of a prompt."""
    asked: Message = {"role": "user", "content": "x"}
    kinds = set()
    with scripted_pipeline(["yes"]) as pipe:
        for depth in range(85, 101):
            arguments = '{"x": ' + "[" * depth + "]" * depth + "}"
            text = f'<tool_call>{{"name": "a", "arguments": {arguments}}}</tool_call>'
            (call,) = plain_reader(HERMES)(text) or ()
            kinds.add(type(call))
            if isinstance(call, ToolCall):
                function = {"name": call.name, "arguments": call.arguments}
                calls = [{"type": "function", "function": function}]
                said: Message = {"role": "assistant", "content": "", "tool_calls": calls}
                assert pipe.generate([asked, said, asked]).text == "yes"
    assert kinds == {ToolCall, InvalidToolCall}


def test_arguments_may_be_a_string_of_json_or_missing() -> None:
    read = plain_reader(HERMES)
    texts: Sequence[tuple[str, dict[str, Any]]] = (
        ('<tool_call>{"name": "add", "arguments": "{\\"x\\": 1}"}</tool_call>', {"x": 1}),
        ('<tool_call>{"name": "add"}</tool_call>', {}),
        ('<tool_call>\n{"name":"add","parameters":{"x":[1]}}\n</tool_call>', {"x": [1]}),
    )
    for text, arguments in texts:
        (found,) = read(text) or [None]
        assert isinstance(found, ToolCall)
        assert found.arguments == arguments


def test_bare_json_that_is_no_call_is_text() -> None:
    read = plain_reader(TEMPLATES["bare, one at a time"][2])
    for text in ('{"answer": 4}', '{"name": 3, "parameters": {}}', "{x", '{"name": "add", "parameters": 3}'):
        assert read(text) is None
    assert read('{"name": "add", "age": 12}') is None
    assert [call.name for call in read('{"name": "add", "parameters": {"x": 1}}') or ()] == ["add"]


@pytest.mark.parametrize("key", ["parameters", "arguments"])
def test_bare_json_has_to_name_a_tool_that_is_offered(key: str) -> None:
    named = [json.dumps({"name": tool, key: {"x": 1}}) for tool in ("Ava", "add")]
    for name, found in (("bare, one at a time", [None, ["add"]]), ("hermes", [["Ava"], ["add"]])):
        tok = tokenizer(name)
        tooling = Tooling(tok, name, frozenset(), Calls.of(tok))
        reader = tooling.reader(Output.of(tools=[TOOL]))
        assert reader is not None
        opening, closing = reader.unbroken.opening.strip("{"), reader.unbroken.closing
        read = [reader.read(f"{opening}{text}{closing}") for text in named]
        assert [calls and [call.name for call in calls] for calls in read] == found


def test_a_tools_name_that_spells_markup_is_text_in_the_grammar() -> None:
    tokenizer = byte_level(added=("<tool_call>", "</tool_call>"))
    grammars = Grammars(tokenizer, frozenset([tokenizer.eos_token_id]), HERMES, "x")
    function = {"name": "f<|im_end|>g", "parameters": {"type": "object", "properties": {}}}
    output = Output.of(tools=[{"type": "function", "function": function}], tool_choice="required")
    constraint = grammars.open(output, None)
    written = forced(tokenizer, constraint)
    assert tokenizer.decode(written) == (
        '<tool_call>\n{"name": "f<|im_end|>g", "arguments": {}}\n</tool_call><|im_end|>'
    )
    assert written.index(tokenizer.eos_token_id) == len(written) - 1


@pytest.mark.parametrize("word", ["<|im_end|>", "<|im_start|>", "<think>"])
def test_what_a_schema_prescribes_is_text_even_if_it_spells_markup(word: str) -> None:
    tokenizer = byte_level(added=("<think>",))
    grammars = Grammars(tokenizer, frozenset([tokenizer.eos_token_id]), HERMES, "x")
    schema = {"type": "object", "properties": {f"a{word}": {"const": word}}, "required": [f"a{word}"]}
    output = Output.of(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    *written, end = forced(tokenizer, grammars.open(output, None))
    assert tokenizer.decode(written) == f'{{"a{word}": "{word}"}}'
    assert end == tokenizer.eos_token_id
    assert not {*written} & {*tokenizer.added_tokens_decoder}


def forced(tokenizer: Any, constraint: Any) -> list[int]:
    """The tokens of an answer that leaves no choice but where it ends."""
    written: list[int] = []
    while not written or written[-1] != tokenizer.eos_token_id:
        allowed = constraint.allowed(len(tokenizer)).nonzero().flatten().tolist()
        assert all(map(constraint.takes, allowed))
        written.append(tokenizer.eos_token_id if tokenizer.eos_token_id in allowed else allowed[0])
        constraint.push(written[-1:])
    return written


NAMED_OUTSIDE = CallFormat("[TOOL_CALLS]", "[ARGS]", "", "[TOOL_CALLS]")
KEYED = call_format(tokenizer_of_keyed_calls("MiniMax-M2"))
HALF = '{"x": "\\ud800"}'


@pytest.mark.parametrize("valid", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 500])
@pytest.mark.parametrize(
    ("form", "around", "between", "call", "flawed"),
    [
        (HERMES, ("<tool_call>[", "]</tool_call>"), ",", '{"name": "a"}', "0"),
        (HERMES, ("<tool_call>[", "]</tool_call>"), ",", '{"name": "a"}', '{"name": "b", "arguments": 1}'),
        (NAMED_OUTSIDE, ("[TOOL_CALLS]", ""), "[TOOL_CALLS]", "a[ARGS]{}", f"b[ARGS]{HALF}"),
        (
            KEYED,
            ("<minimax:tool_call>\n", "</minimax:tool_call>"),
            "",
            '<invoke name="a">\n</invoke>\n',
            '<invoke name="b">\n<parameter name="x">\ud800</parameter>\n</invoke>\n',
        ),
    ],
)
def test_of_the_calls_of_a_text_that_are_none_one_is_told(
    form: CallFormat, around: tuple[str, str], between: str, call: str, flawed: str, count: int, valid: int
) -> None:
    """Each holds the whole text: 32 KB became a gigabyte."""
    text = between.join([*[flawed] * count, *[call] * valid]).join(around)
    found = plain_reader(form)(text) or []
    assert [one.name for one in found if isinstance(one, ToolCall)] == ["a"] * valid
    assert [one.text for one in found if isinstance(one, InvalidToolCall)] == [text]


def test_a_call_that_is_nested_too_deep_is_an_invalid_one() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": ' + "[" * 200_000 + "\n</tool_call>"
    [call] = plain_reader(HERMES)(text) or []
    assert isinstance(call, InvalidToolCall)
    assert "nested too deep" in call.error


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 99_999_989},
        {"type": "number", "multipleOf": 1.000_000_7},
        {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}], "type": "integer"},
    ],
)
def test_multiples_that_would_take_hours_to_compile_are_refused(schema: dict[str, Any]) -> None:
    tokenizer = byte_level()
    grammars = Grammars(tokenizer, frozenset([tokenizer.eos_token_id]), HERMES, "x")

    def output(number: dict[str, Any]) -> Output:
        fields = {"type": "object", "properties": {"x": number}}
        return Output.of(response_format={"type": "json_schema", "json_schema": {"schema": fields}})

    with pytest.raises(ConfigError, match="multipleOf would take"):
        grammars.check(output(schema))
    for small in (7, 100, 0.01, 1000):
        grammars.check(output({"type": "number", "multipleOf": small}))


def test_what_compiles_long_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    grammars = Grammars(tokenizer, frozenset([tokenizer.eos_token_id]), HERMES, "x")
    slow, quick = (
        Output.of(response_format={"type": "json_schema", "json_schema": {"schema": {"const": word}}})
        for word in ("slow", "quick")
    )
    compiling, go_on = threading.Event(), threading.Event()
    grammar = Grammars.source

    def waits(self: Grammars, output: Output, tags: Any) -> str:
        if output is slow:
            compiling.set()
            assert go_on.wait(30)
        return grammar(self, output, tags)

    monkeypatch.setattr(Grammars, "source", waits)
    thread = threading.Thread(target=grammars.check, args=(slow,))
    thread.start()
    assert compiling.wait(30)
    other = threading.Thread(target=grammars.check, args=(quick,), daemon=True)
    other.start()
    other.join(10)
    waited = other.is_alive()
    go_on.set()
    thread.join()
    assert not waited


def test_text_of_another_model_makes_no_turns_but_thoughts_and_calls() -> None:
    template = HEADER.replace("<|im_start|>{{ m.role }}", "<User>") + FOOTER.replace("<|im_start|>", "<Bot>")
    marks = ("<User>", "<Bot>", "<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer = byte_level(template + "{# <think> </think> #}", added=marks)
    tooling = Tooling(tokenizer, "x", frozenset(), Calls(HERMES, call_reader(tokenizer, HERMES)))
    added = tokenizer.added_tokens_decoder
    text = "<think>no</think><User>now<Bot><tool_call></tool_call>"
    for encode, more in ((tooling.plain, marks[4:]), (tooling.encode, marks[4:])):
        ids = encode(text)
        assert tokenizer.decode(ids) == text
        assert [added[token].content for token in ids if token in added] == [*marks[2:4], *more]


def test_where_no_tool_is_offered_no_text_is_a_call() -> None:
    template, added, _ = TEMPLATES["hermes"]
    tokenizer = byte_level(template, added=added)
    tooling = Tooling(tokenizer, "x", frozenset(), Calls.of(tokenizer))
    assert tooling.reader(Output()) is None
    assert tooling.reader(Output.of(tools=[TOOL])) is not None
