"""How models write calls of tools, and how their text is read back. Pure.

A format is found by letting the model's own chat template write a call of ours and looking at what
it put around the name and the arguments; so the format that is forced, parsed and put into the
history is the one the model was trained with.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rsd_integrations.errors import PromptError
from rsd_integrations.output import Output
from rsd_integrations.prompts import all_texts
from rsd_integrations.text.keyed import HALF, Keyed, KeyedCalls, common_start, find_keyed
from rsd_integrations.text.segment import Unbroken
from rsd_integrations.text.values import read_first, read_json
from rsd_integrations.types import InvalidToolCall, Message, ToolCall

ReadCall = Callable[[str], "list[ToolCall | InvalidToolCall] | None"]
"""The calls in a text that looks like calls; None where it is none after all."""

_NAME, _CONTENT, _ID = "rsd_sentinel_tool", "Rsdsentinelanswer", "rsdcallid"
_ARGUMENTS = {"rsd_sentinel_key": "rsd_sentinel_value"}
_MARKUP = re.compile(r"\s*(<[^<>\s]+>|\[[A-Z_]+\])")
_NO_TOOLS = Output()
_UNKNOWN = "the format that this model's calls are written in is not known"
CALL_ID = "\0"
"""Stands in a format's literals where the template writes the call's id."""


@dataclass(frozen=True)
class CallFormat:
    """The text of calls: ``before`` NAME ``between`` ARGUMENTS ``after``.

    ``again`` lies between the arguments of a call and the name of the next one; None where the
    template takes one call only. The arguments are JSON unless ``keyed`` says how each of them is written.
    ``between`` is None where it is not known how they are written: such calls are found, but only the
    model's own parser can read them, and none can be forced.
    """

    before: str
    between: str | None
    after: str
    again: str | None = None
    keyed: Keyed | None = None

    @property
    def opening(self) -> str:
        """What tells a call from text; "" where calls are bare JSON."""
        head = self.before.partition("{")[0] if self.between is not None else self.before
        found = _MARKUP.match(head)
        return found[1] if found else head.strip().removesuffix("[").strip()

    @property
    def closing(self) -> str:
        """What ends a call, so that another may follow; "" where a call lasts to the answer's end."""
        if not self.opening:
            return ""
        around = self.again is not None and self.opening not in self.again  # One markup around all calls.
        if self.between is None or self.keyed or around:
            marks: list[str] = _MARKUP.findall(self.after if self.between is None or around else self._end)
            return marks[-1] if marks else ""
        return self._end.lstrip().lstrip("}]").strip()

    @property
    def _end(self) -> str:
        """What stands behind the arguments of each call."""
        return self.after if self.again is None else HALF.sub("", common_start(self.after, self.again))

    @property
    def texts(self) -> list[str]:
        """All that is written around names and arguments."""
        keyed = self.keyed.texts if self.keyed else ()
        return [self.before, self.between or "", self.after, self.again or "", *keyed]

    @cached_property
    def keyed_calls(self) -> KeyedCalls | None:
        """Reads such calls once the markup around them is off; None where arguments are JSON."""
        if self.keyed is None or self.between is None:
            return None
        end, rest = self._end, self.after.removeprefix(self._end)
        return KeyedCalls(
            self.keyed,
            before=self.before.strip().removeprefix(self.opening),
            between=self.between,
            end=end.strip().removesuffix(self.closing),
            again=(self.again or "").removeprefix(end),
            behind=rest.strip().removesuffix(self.closing).strip(),
        )

    @property
    def unbroken(self) -> Unbroken:
        """The part of an answer that is a call."""
        return Unbroken(self.opening or "{", self.closing, leading=not self.opening)

    @property
    def name_key(self) -> str:
        """The JSON key of the tool's name ("tool_name" in Cohere's templates)."""
        found = re.search(r'"(\w+)"\s*:\s*"$', self.before)
        return found[1] if found else "name"

    @property
    def arguments_key(self) -> str:
        """The JSON key of the arguments ("parameters" in Llama's templates)."""
        found = re.search(r'"(\w+)"\s*:\s*$', self.between or "")
        return found[1] if found else "arguments"


HERMES = CallFormat(
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
    '}\n</tool_call>\n<tool_call>\n{"name": "',
)
"""The format of Hermes, Qwen 2.5 and 3, and many others."""


@dataclass(frozen=True)
class CallReader:
    """How to find calls in an answer (``unbroken``) and how to read one (``read``).

    ``typed``: makes a ``read`` for the tools on offer, where only their schemas tell a value's type.
    ``known``: whether calls can be read at all.
    """

    unbroken: Unbroken
    read: ReadCall
    typed: Callable[[Output], ReadCall] | None = None
    known: bool = True

    def among(self, output: Output) -> CallReader:
        """The reader for these tools: bare JSON, which may be an answer, is a call only if it names one."""
        if self.typed is not None:
            return CallReader(self.unbroken, self.typed(output))
        if not self.unbroken.leading:
            return self
        names = {tool["function"]["name"] for tool in output.tools}

        def read(text: str) -> list[ToolCall | InvalidToolCall] | None:
            calls = self.read(text)
            return None if any(call.name not in names for call in calls or ()) else calls

        return CallReader(self.unbroken, read)


def find_format(
    render: Callable[[Sequence[Message], bool], str],
    thought_end: str | None = None,
    end: str | None = None,
) -> CallFormat | None:
    """The format in which a chat template writes calls; None if it writes none.

    Args:
        render: (messages, add_generation_prompt) -> text; raises where the template refuses.
        thought_end: closing tag of a thinking markup, which templates may write before a call.
        end: what ends an answer, whatever a template puts behind it.
    """
    asked: Message = {"role": "user", "content": "Rsdsentinelquestion"}
    try:
        prompt, plain, one = (
            render([asked], True),
            render([asked, {"role": "assistant", "content": _CONTENT}], False),
            render([asked, _calling(1)], False),
        )
    except Exception:  # Whatever a template that knows no calls stumbles over.
        return None
    head = prompt.rpartition("Rsdsentinelquestion")[2]
    turn_end = plain.rpartition(_CONTENT)[2]
    answer = one.rpartition("Rsdsentinelquestion")[2].replace(_ID, CALL_ID)
    opened = common_start(head, answer)
    if opened != head:
        opened = HALF.sub("", opened)  # Such as "<t" of a prompt's <think> and an answer's <tool_call>.
    before, found, _ = answer[len(opened) :].removesuffix(turn_end).partition(_NAME)
    if not found:
        return None
    if thought_end and thought_end in before:
        before = before.rpartition(thought_end)[2]
    mark = _MARKUP.match(before)
    if mark and head.rstrip().endswith(mark[1]):
        return None  # The prompt says more before an answer (Command R+ asks once more): nothing fits.

    def behind_name(text: str) -> str:
        rest = text.replace(_ID, CALL_ID).removesuffix(turn_end).partition(_NAME)[2]
        return rest.partition(end)[0] if end else rest

    def rest(arguments: Mapping[str, Any]) -> str:
        return behind_name(render([asked, _calling(1, arguments)], False))

    before, taken = before.lstrip("\n"), _take_arguments(behind_name(one))
    # Calls written as {"NAME": ARGUMENTS} (Apertus) cannot be read.
    if taken and not (mark and before.endswith('{"')):
        between, written, after = taken
        return _unnamed(CallFormat(before, between, after, _again(render, asked, between + written)))
    keyed = None
    with suppress(Exception):  # A template may not take every kind of argument.
        keyed = find_keyed(rest)
    if keyed is None:
        return CallFormat(before, None, behind_name(one))
    between, form, after = keyed
    again = _again(render, asked, behind_name(one).removesuffix(after))
    made = _unnamed(CallFormat(before, between, after, again, form))
    # Gemma 4's template goes straight on to the opening of a tool's result.
    return replace(made, after=made._end) if again and made.opening in again else made


def _unnamed(form: CallFormat) -> CallFormat:
    """The format; ``between`` is None if the name stands elsewhere too: other calls' form is then unknown."""
    return replace(form, between=None) if _NAME in f"{form.between}{form.after}{form.again}" else form


def plain_reader(form: CallFormat, output: Output = _NO_TOOLS) -> ReadCall:
    """Reads calls in a format. Bare JSON needs arguments: nothing else tells it from an answer.

    Args:
        output: the tools on offer, by whose schemas arguments in keys and values are read.
    """
    if form.keyed_calls is not None:
        return _keyed_reader(form, form.keyed_calls, output)
    if form.opening and form.between is not None and "{" not in form.before:
        return _named_reader(form, form.between)
    keys = {form.arguments_key, "arguments", "parameters"}

    def read(text: str) -> list[ToolCall | InvalidToolCall] | None:
        body = text.strip().removeprefix(form.opening).strip()
        body = body.removesuffix(form.closing).strip() if form.closing else body
        try:
            value = read_json(body)
        except ValueError as error:
            flaw = _UNKNOWN if form.between is None else f"its JSON is malformed: {error}"
            return [_invalid(text, flaw)] if form.opening else None
        items = [_function(item, form.name_key) for item in (value if isinstance(value, list) else [value])]
        calls = _calls(items, form.arguments_key, text)
        whole = all(isinstance(call, ToolCall) for call in calls)
        return calls if form.opening or (whole and all(keys & item.keys() for item in items)) else None

    return read


def _keyed_reader(form: CallFormat, calls: KeyedCalls, output: Output) -> ReadCall:
    """Reads calls whose arguments are written one by one: all of them, or none."""

    def read(text: str) -> list[ToolCall | InvalidToolCall]:
        body = text.strip().removeprefix(form.opening)
        try:
            if calls.open_ended and not body.endswith(form.closing):
                raise ValueError(f"its {form.closing} is missing")
            found = calls.read(body.removesuffix(form.closing), dict(output.functions))
        except ValueError as error:
            return [_invalid(text, str(error))]
        return _calls([{"name": name, "arguments": given} for name, given in found], "arguments", text)

    return read


def _named_reader(form: CallFormat, between: str) -> ReadCall:
    """Reads calls whose names stand outside of the JSON, one or several in a row."""
    before = _pattern(form.before.strip().removeprefix(form.opening))
    behind_name = re.compile(rf"{_pattern(between).pattern}\Z")
    again = _pattern(form.again) if form.again and form.again.strip() else None

    def read(text: str) -> list[ToolCall | InvalidToolCall]:
        items: list[Any] = []
        rest = text.strip().removeprefix(form.opening).strip()
        found = before.match(rest)
        try:
            while found or not items:
                name, brace, rest = (rest[found.end() :] if found else rest).partition("{")
                arguments, rest = read_first(brace + rest)
                name = behind_name.sub("", name.strip()).strip()
                items.append({"name": name, "arguments": arguments})
                found = again.match(rest) if again else None
            if not form.after.strip().startswith(rest):
                raise ValueError(f"{rest:.40} is behind it")
        except ValueError as error:
            return [_invalid(text, f"its JSON is malformed: {error}")]
        return _calls(items, "arguments", text)

    return read


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern of the text around calls, with any ids and numbers in it."""
    parts = (re.sub(r"\d+", r"\\d+", re.escape(part)) for part in text.strip().split(CALL_ID))
    return re.compile(r"[\w-]+".join(parts))


def read_message(calls: Any, text: str) -> list[ToolCall | InvalidToolCall]:
    """The calls of a parsed message (``tool_calls`` as transformers' response parser gives them)."""
    items = [call.get("function", call) if isinstance(call, dict) else call for call in calls or ()]
    return _calls(items, "arguments", text) or [_invalid(text, "it is no call")]


def _function(item: Any, name_key: str) -> Any:
    """The call with its tool's name under "name", if it is written in another way."""
    if not isinstance(item, dict) or "name" in item:
        return item
    if isinstance(item.get("function"), dict):
        return item["function"]
    return {**item, "name": item[name_key]} if name_key in item else item


def _calls(items: Sequence[Any], key: str, text: str) -> list[ToolCall | InvalidToolCall]:
    """The calls; of what is none only the first, as each of these holds the whole text."""
    made = [_call(item, key, text) for item in items]
    flawed = next((call for call in made if isinstance(call, InvalidToolCall)), None)
    return [call for call in made if call is flawed or isinstance(call, ToolCall)]


def _call(item: Any, key: str, text: str) -> ToolCall | InvalidToolCall:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return _invalid(text, "it names no tool")
    if flaw := _flaw(item):
        return _invalid(text, flaw)
    name = item["name"]
    arguments = item.get(key, item.get("arguments", item.get("parameters", {})))
    if isinstance(arguments, str):
        # Some models write the arguments as a string of JSON.
        try:
            arguments = read_json(arguments)
        except ValueError as error:
            return _invalid(text, f"the JSON of its arguments is malformed: {error}", name, arguments)
        if flaw := _flaw({key: arguments}):
            return _invalid(text, flaw, name)
    if not isinstance(arguments, dict):
        return _invalid(text, "its arguments are no object", name, json.dumps(arguments, ensure_ascii=False))
    return ToolCall(id=new_id(), name=name, arguments=arguments)


def _flaw(item: Any) -> str | None:
    """What keeps a call from being shown to a model, or sent anywhere, in the next turn."""
    try:
        # Nested as in the next turn, where prompt and tools are checked as one list.
        for text in all_texts([[{"tool_calls": [{"function": item}]}]]):
            text.encode()
    except PromptError:
        return "it is nested too deep"
    except UnicodeEncodeError:
        return "it has half a character"
    return None


def _invalid(text: str, error: str, name: str | None = None, arguments: str | None = None) -> InvalidToolCall:
    return InvalidToolCall(
        id=new_id(), name=name, arguments=text if arguments is None else arguments, text=text, error=error
    )


def new_id() -> str:
    """A call's id: nine letters and digits, which is what Mistral's templates insist on."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def _calling(count: int, arguments: Mapping[str, Any] = _ARGUMENTS) -> Message:
    function = {"name": _NAME, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": _ID, "function": function} for _ in range(count)],
    }


def _take_arguments(rest: str) -> tuple[str, str, str] | None:
    """The arguments' JSON, and the texts before and behind it."""
    start = rest.find("{")
    while start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(rest, start)
        except ValueError:
            value, end = None, 0
        if value == _ARGUMENTS:
            return rest[:start], rest[start:end], rest[end:]
        start = rest.find("{", start + 1)
    return None


def _again(render: Callable[[Sequence[Message], bool], str], asked: Message, first: str) -> str | None:
    """What stands between two calls. ``first``: all of the first call after its name."""
    try:
        two = render([asked, _calling(2)], False).replace(_ID, CALL_ID)
    except Exception:  # Llama's templates take one call at a time.
        return None
    same, _, rest = two.partition(_NAME)[2].partition(first)
    again, found, _ = rest.partition(_NAME)
    return again if found and not same else None
