"""Formats of calls that chat templates of real models write (excerpts), forced and read back."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rsd_integrations.backends.shared.constrain import Grammars
from rsd_integrations.backends.shared.tooling import call_format, call_reader
from rsd_integrations.output import Output
from rsd_integrations.text.calls import CALL_ID, HERMES, CallFormat, plain_reader
from rsd_integrations.text.segment import CallSplitter
from rsd_integrations.types import InvalidToolCall, Message, ToolCall
from tests.small_tokenizers import byte_level

HEADER = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
EACH = "{% for c in m.tool_calls or [] %}"
NAMED = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
ARGUMENTS = "{{ c.function.arguments | tojson }}"
FOOTER = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
HERMES_CALLS = EACH + "{{ '\n' if not loop.first }}<tool_call>\n" + NAMED + "\n</tool_call>{% endfor %}"
PLAIN = HEADER + TURN + FOOTER + "{% endif %}"

TEMPLATES: dict[str, tuple[str, tuple[str, ...], CallFormat, tuple[str, str]]] = {
    "QwQ, whose prompts open a thought": (
        HEADER + TURN + HERMES_CALLS + FOOTER + "<think>\n{% endif %}",
        ("<tool_call>", "</tool_call>", "<think>", "</think>"),
        HERMES,
        ("<tool_call>", "</tool_call>"),
    ),
    "Mistral Small 3.2": (
        HEADER
        + TURN
        + EACH
        + "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]"
        + ARGUMENTS
        + "{% endfor %}"
        + FOOTER
        + "{% endif %}",
        ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        CallFormat("[TOOL_CALLS]", f"[CALL_ID]{CALL_ID}[ARGS]", "", "[TOOL_CALLS]"),
        ("[TOOL_CALLS]", ""),
    ),
    "Devstral": (
        HEADER
        + TURN
        + EACH
        + "[TOOL_CALLS]{{ c.function.name }}[ARGS]"
        + ARGUMENTS
        + "{% endfor %}"
        + FOOTER
        + "{% endif %}",
        ("[TOOL_CALLS]", "[ARGS]"),
        CallFormat("[TOOL_CALLS]", "[ARGS]", "", "[TOOL_CALLS]"),
        ("[TOOL_CALLS]", ""),
    ),
    "Apriel": (
        HEADER
        + TURN
        + "{% if m.tool_calls %}<tool_calls>["
        + EACH
        + NAMED
        + "{{ ', ' if not loop.last }}{% endfor %}]</tool_calls>{% endif %}"
        + FOOTER
        + "{% endif %}",
        (),
        CallFormat('<tool_calls>[{"name": "', '", "arguments": ', "}]</tool_calls>", '}, {"name": "'),
        ("<tool_calls>", "</tool_calls>"),
    ),
    "Command R7B, which writes more behind an answer": (
        HEADER
        + TURN
        + "{% if m.tool_calls %}<|START_ACTION|>[\n"
        + EACH
        + '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.function.name }}", "parameters": '
        + ARGUMENTS
        + "}{{ ',' if not loop.last }}\n{% endfor %}]<|END_ACTION|>{% endif %}"
        + "<|im_end|>{% endfor %}<|im_start|>assistant\n<|START_THINKING|><|END_THINKING|>",
        ("<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        CallFormat(
            '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "',
            '", "parameters": ',
            "}\n]<|END_ACTION|>",
            '},\n    {"tool_call_id": "1", "tool_name": "',
        ),
        ("<|START_ACTION|>", "<|END_ACTION|>"),
    ),
    "Kimi K2": (
        HEADER
        + TURN
        + "{% if m.tool_calls %}<|tool_calls_section_begin|>"
        + EACH
        + "<|tool_call_begin|>functions.{{ c.function.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>"
        + ARGUMENTS
        + "<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>{% endif %}"
        + FOOTER
        + "{% endif %}",
        ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        CallFormat(
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.",
            ":0<|tool_call_argument_begin|>",
            "<|tool_call_end|><|tool_calls_section_end|>",
            "<|tool_call_end|><|tool_call_begin|>functions.",
        ),
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    "functionary": (
        HEADER
        + TURN
        + EACH
        + "<function={{ c.function.name }}>"
        + ARGUMENTS
        + "</function>{% endfor %}{% if m.tool_calls %}<|eom_id|>{% endif %}"
        + FOOTER
        + "{% endif %}",
        (),
        CallFormat("<function=", ">", "</function><|eom_id|>", "</function><function="),
        ("<function=", "</function>"),
    ),
    "Falcon 3, whose calls are wrapped": (
        HEADER
        + TURN
        + "{% if m.tool_calls %}<tool_call>\n["
        + EACH
        + '{"type": "function", "function": '
        + NAMED
        + "}{{ ', ' if not loop.last }}{% endfor %}]\n</tool_call>{% endif %}"
        + FOOTER
        + "{% endif %}",
        ("<tool_call>", "</tool_call>"),
        CallFormat(
            '<tool_call>\n[{"type": "function", "function": {"name": "',
            '", "arguments": ',
            "}}]\n</tool_call>",
            '}}, {"type": "function", "function": {"name": "',
        ),
        ("<tool_call>", "</tool_call>"),
    ),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"x": {"enum": [1, 22]}}, "required": ["x"]},
        },
    }
    for name in ("add", "look_up")
]


def tokenizer(name: str) -> Any:
    template, added, *_ = TEMPLATES[name]
    return byte_level(template, added=added)


def read(tok: Any, text: str) -> tuple[str, list[ToolCall | InvalidToolCall]]:
    """(text, calls) of an answer."""
    reader = call_reader(tok, call_format(tok))
    shown, calls = CallSplitter(reader.unbroken).push(text, final=True)
    return shown, [found for call in calls for found in reader.read(call) or ()]


def answer(tok: Any, *calls: tuple[str, dict[str, Any]]) -> str:
    """What the template makes of an answer."""
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    said: Message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": f"abcdefgh{index}", "function": function}
            for index, function in enumerate(functions)
        ],
    }
    text = str(tok.apply_chat_template([said], tokenize=False))
    return text.removeprefix("<|im_start|>assistant\n").partition("<|im_end|>")[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_shows_its_format(name: str) -> None:
    form = call_format(tokenizer(name))
    assert form == TEMPLATES[name][2]
    assert (form.opening, form.closing) == TEMPLATES[name][3]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_is_read_back(name: str) -> None:
    tok = tokenizer(name)
    calls = [("add", {"x": 1, "why": '{"}]['}), ("look_up", {}), ("add", {"x": {"y": [22]}})]
    for count in (1, 2, 3):
        text, found = read(tok, answer(tok, *calls[:count]))
        assert [(call.name, call.arguments) for call in found] == calls[:count]
        assert text.strip() in ("", "<|eom_id|>")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("parallel", [True, False])
def test_what_is_forced_is_read_back(name: str, parallel: bool) -> None:
    tok = tokenizer(name)
    output = Output.of(tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel)
    grammars = Grammars(tok, frozenset([tok.eos_token_id]), call_format(tok), "x")
    counts = set()
    for seed in range(4):
        constraint, choice, ids = grammars.open(output, None), random.Random(seed), [-1]
        while ids[-1] != tok.eos_token_id:
            ids.append(choice.choice(constraint.allowed(len(tok)).nonzero().flatten().tolist()))
            constraint.push(ids[-1:])
        _, found = read(tok, tok.decode(ids[1:-1]))
        assert {call.name for call in found} <= {"add", "look_up"}
        assert all(call.arguments in ({"x": 1}, {"x": 22}) for call in found)
        counts.add(len(found))
    assert min(counts) >= 1
    assert (max(counts) > 1) == parallel


@pytest.mark.parametrize(
    ("prompted", "call", "opening"),
    [
        # GLM 4.7: what ends the thought that a prompt opens begins as the prompt's own markup does.
        (
            "<think>",
            "</think><tool_call>{{ c.function.name }}<arg_value>1</arg_value></tool_call>",
            "<tool_call>",
        ),
        # Apertus
        (
            "",
            '<|tools_prefix|>[{"{{ c.function.name }}": ' + ARGUMENTS + "}]<|tools_suffix|>",
            "<|tools_prefix|>",
        ),
    ],
)
def test_what_is_no_json_with_a_name_is_found_but_not_forced(prompted: str, call: str, opening: str) -> None:
    template = HEADER + TURN + EACH + call + "{% endfor %}" + FOOTER + prompted + "{% endif %}"
    form = call_format(byte_level(template, added=("<think>", "</think>", "<tool_call>", "</tool_call>")))
    assert form is not None and form.between is None
    assert (form.opening, form.closing) == (opening, opening.replace("<t", "</t").replace("prefix", "suffix"))


def test_of_templates_by_name_the_one_for_tools_is_looked_at() -> None:
    """As Hermes 3 has them."""
    tok = tokenizer("Apriel")
    tok.chat_template = {"default": PLAIN.replace("tools", "nothing"), "tool_use": tok.chat_template}
    assert call_format(tok) == TEMPLATES["Apriel"][2]


def test_a_prompt_that_ends_in_another_way_than_history_shows_no_format() -> None:
    """Command R+ asks for calls between the last message and the answer."""
    turn = (
        "<|im_start|>{% if m.role == 'assistant' %}<|bot|>{% else %}{{ m.role }}\n{% endif %}{{ m.content }}"
    )
    prompt = FOOTER.replace("assistant\n", "system\nCall!<|im_end|>\n<|im_start|><|bot|>")
    template = HEADER + turn + HERMES_CALLS
    assert call_format(byte_level(template + prompt + "{% endif %}")) is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[TOOL_CALLS]add", "malformed"),
        ("[TOOL_CALLS]add[CALL_ID]abcdefgh0[ARGS]", "malformed"),
        ('[TOOL_CALLS]add[CALL_ID]abcdefgh0[ARGS]{"x": 1', "malformed"),
        ('[TOOL_CALLS]add[CALL_ID]abcdefgh0[ARGS]{"x": 1}, I think', "malformed: , I think is behind it"),
        ('[TOOL_CALLS]add[CALL_ID]abcdefgh0[ARGS]{"x": 1}[TOOL_CALLS]look_up', "malformed"),
        ('[TOOL_CALLS]add[CALL_ID]abcdefgh0[ARGS]{"x": NaN}', "malformed: NaN"),
        ('[TOOL_CALLS]add[CALL_ID]abcdefgh0[ARGS]{"x": ' + "[" * 200_000, "too deep"),
    ],
)
def test_calls_with_a_name_outside_of_their_json_are_whole_or_none(text: str, error: str) -> None:
    [found] = plain_reader(TEMPLATES["Mistral Small 3.2"][2])(text) or []
    assert isinstance(found, InvalidToolCall)
    assert error in found.error
    assert found.text == text


def test_a_call_need_not_be_as_the_template_has_it() -> None:
    for name, text in (
        ("Mistral Small 3.2", '[TOOL_CALLS] add {"x": 1}'),
        ("Mistral Small 3.2", '[TOOL_CALLS]add[CALL_ID]call-7[ARGS]\n{"x": 1}\n'),
        (
            "Kimi K2",
            '<|tool_calls_section_begin|>add:12<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|>',
        ),
        (
            "Command R7B, which writes more behind an answer",
            '<|START_ACTION|>{"name": "add", "arguments": {"x": 1}}',
        ),
    ):
        _, [found] = read(tokenizer(name), text)
        assert (found.name, found.arguments) == ("add", {"x": 1}), text


def test_where_a_response_template_gives_a_pattern_the_format_says_what_ends_a_call() -> None:
    """As TRL's for Qwen does."""
    tok = byte_level(PLAIN.replace(TURN, TURN + HERMES_CALLS), added=("<tool_call>", "</tool_call>"))
    calls = {
        "open": "<tool_call>",
        "close_pattern": r"</tool_call>\s*",
        "repeats": True,
        "content": "json",
        "transform": {"type": "function", "function": "{content}"},
    }
    tok.response_template = {"start_anchor": "<|im_start|>assistant\n", "fields": {"tool_calls": calls}}
    assert call_reader(tok, call_format(tok)).unbroken.closing == "</tool_call>"
    text, found = read(tok, answer(tok, ("add", {"x": 1}), ("look_up", {})) + " So be it.")
    assert [(call.name, call.arguments) for call in found] == [("add", {"x": 1}), ("look_up", {})]
    assert text.strip() == "So be it."


def test_what_a_response_template_does_not_find_is_read_as_the_chat_template_writes_it() -> None:
    """TRL's for Llama 3.1 wants the end of the answer, which is no part of its text."""
    tok = byte_level(PLAIN.replace(TURN, TURN + EACH + NAMED + "{% endfor %}"))
    calls = {
        "open_pattern": r'\{"name":\s*"(?P<name>[^"]+)",\s*"arguments":\s*',
        "close_pattern": r"\}<\|im_end\|>\s*",
        "content": "json",
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
    }
    tok.response_template = {"start_anchor": "<|im_start|>assistant\n", "fields": {"tool_calls": calls}}
    text, [found] = read(tok, answer(tok, ("add", {"x": 1})))
    assert (found.name, found.arguments, text) == ("add", {"x": 1}, "")
    reader = call_reader(tok, call_format(tok)).among(Output.of(tools=TOOLS))
    assert reader.read('{"answer": 4}') is None
