"""Arguments of calls that are written as keys and values in markup, where other models write JSON. Pure.

``<parameter=city>`` value ``</parameter>`` (Qwen3-Coder, Qwen 3.5, Seed-OSS), ``<arg_key>city</arg_key>
<arg_value>`` value ``</arg_value>`` (GLM), ``<parameter name="city">`` value ``</parameter>`` (MiniMax).
Strings are written as they are, all else as JSON or by Python's ``str``: only the tool's schema tells which.
Calls in Python's syntax (``city="Oslo", days=3``: OLMo 3) have strings in quotes, and commas between
arguments; so have Gemma 4's (``city:<|"|>Oslo<|"|>,days:3``), with quotes of their own and keys without any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rsd_integrations.text.arguments import branches, kinds
from rsd_integrations.text.values import WORDS, literal_end, read_literal, read_value, requoted

HALF = re.compile(r"[<\[][^<>\[\]\s]*$")
"""An unfinished piece of markup."""
_KEYS = ("rsd_sentinel_key", "rsd_sentinel_other")
_TEXTS = ('Rsd "first"\nvalue', "Rsd <second> value")
"""Of several words and lines, so that a template's quotes and escapes show."""
_QUOTES = ("'", '"')


@dataclass(frozen=True)
class Keyed:
    """Arguments as ``before`` KEY ``between`` VALUE ``after`` each.

    ``words``: how true, false and null are written. ``apart``: what stands between two arguments, if values
    are literals, with quotes around strings. ``quotes``: these, if they are neither JSON's nor Python's; then
    keys have none.
    """

    before: str
    between: str
    after: str
    words: tuple[str, str, str] = ("true", "false", "null")
    apart: str = ""
    quotes: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is written around keys and values."""
        return (self.before, self.between, self.after, self.quotes)

    def write(self, value: Any) -> str:
        """A value as the template has it."""
        if isinstance(value, str):
            return value
        if value is None or isinstance(value, bool):
            return self.words[(True, False, None).index(value)]
        return json.dumps(value, ensure_ascii=False)


def find_keyed(rest: Callable[[Mapping[str, Any]], str]) -> tuple[str, Keyed, str] | None:
    """(text in front of the arguments, how each is written, text behind them); None if not written by keys.

    Args:
        rest: what the template writes behind the name of a call with these arguments.
    """
    taken = _taken_apart(rest({}), rest(dict(zip(_KEYS, _TEXTS, strict=True))))
    if taken is None:
        return None
    start, form, behind = taken
    head, tail = f"{start}{form.before}{_KEYS[0]}{form.between}", form.after + behind

    def written(value: Any) -> str | None:
        text = rest({_KEYS[0]: value})
        whole = text.startswith(head) and text.endswith(tail)
        return text[len(head) : len(text) - len(tail)] if whole else None

    def word(value: bool | None) -> str:
        found = written(value)
        return found if found in WORDS else json.dumps(value)

    if written(12) != "12":
        return None
    return start, replace(form, words=(word(True), word(False), word(None))), behind


def _taken_apart(none: str, two: str) -> tuple[str, Keyed, str] | None:
    """The same, from what is written for no arguments and for two texts; None if these do not fit."""
    ways = (str, json.dumps, repr)
    parts = next((parts for way in ways if (parts := _parts(two, *map(way, _TEXTS)))), None)
    if parts is None:
        return None
    first, between, apart, again, last = parts
    start = HALF.sub("", common_start(none, first))
    before, behind = first[len(start) :], none[len(start) :]
    after = last.removesuffix(behind)
    if between != again or last != after + behind:
        return None
    if f"{_KEYS[0]}{between}{_TEXTS[0]}" not in two:
        form, marks = Keyed(before, between, after, apart=apart), (between, apart)
        return (start, form, behind) if not before + after and all(map(str.strip, marks)) else None
    if after and not before and between.endswith(after) and apart.startswith(after):
        between, apart = between.removesuffix(after), apart.removeprefix(after)
        whole = all(map(str.strip, (between, apart)))
        quotes = "" if after in _QUOTES else after  # Python's and JSON's can be read as they are.
        return (start, Keyed("", between, "", apart=apart, quotes=quotes), behind) if whole else None
    whole = apart == after + before and all(map(str.strip, (before, between, after)))
    return (start, Keyed(before, between, after), behind) if whole else None


def _parts(text: str, first: str, second: str) -> list[str] | None:
    """What stands around the keys and the values as they are written; None if they are not."""
    parts: list[str] = []
    for mark in (_KEYS[0], first, _KEYS[1], second):
        part, found, text = text.partition(mark)
        if not found:
            return None
        parts.append(part)
    return [*parts, text]


def named_properties(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The schemas one of which the arguments have to follow, each with ``properties`` and ``required``."""
    return [as_object(one) for one in branches(schema, schema)]


def as_object(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with valid ``properties`` and ``required``, empty where it has no valid ones."""
    properties, required = schema.get("properties"), schema.get("required")
    named = properties if isinstance(properties, Mapping) else {}
    needed = [key for key in required if isinstance(key, str)] if isinstance(required, list) else []
    # A required argument that is not described has to be there all the same.
    more = schema.get("additionalProperties") or {}
    named = {**named, **{key: more for key in needed if key not in named}}
    return {**schema, "properties": named, "required": needed}


class KeyedCalls:
    """Reads calls one after the other.

    Args:
        keyed: how each argument is written.
        before: markup in front of a name.
        between: markup behind it.
        end: markup behind the arguments; "" where a call goes on to the end of its text.
        again: markup in front of a further name, if it is not ``before``.
        behind: markup behind all the calls.
    """

    def __init__(self, keyed: Keyed, *, before: str, between: str, end: str, again: str, behind: str) -> None:
        self._keyed = keyed
        self._behind = behind
        self._apart = re.compile(rf"\s*{_loose(keyed.apart)}")
        key, end = _loose(keyed.before), _loose(end) or r"\Z"
        self.open_ended = end == r"\Z"
        """Whether no markup says where the arguments end."""
        self._begins = re.compile(rf"\s*{_loose(before)}")
        self._begins_again = re.compile(rf"\s*(?:{_loose(before)}|{_loose(again)})")
        self._named = _loose(between) or f"(?={key}|{end})"
        self._key = re.compile(rf"\s*{key}")
        self._key_over = _loose(keyed.between)
        # What closes a value may also stand within it, but there no other argument or end follows.
        self._value_over = re.compile(rf"{_loose(keyed.after)}(?=\s*(?:{key}|{end}))")
        self._end = re.compile(rf"\s*(?:{end})")
        self._lead = keyed.between[len(keyed.between.rstrip()) :]
        self._trail = keyed.after[: len(keyed.after) - len(keyed.after.lstrip())]

    def read(self, text: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
        """Names and arguments.

        Args:
            text: of the calls, without the markup around them.
            schemas: of the arguments of each tool.

        Raises:
            ValueError: the text is no such calls; the message says why.
        """
        calls: list[tuple[str, dict[str, Any]]] = []
        if self._keyed.quotes:
            text = requoted(text, self._keyed.quotes)
        place, text = 0, text.strip().removesuffix(self._behind).strip()
        while place < len(text) or not calls:
            begun = (self._begins_again if calls else self._begins).match(text, place)
            if begun is None:
                raise ValueError(f"{text[place:].strip()[:40]!r} stands where a call should begin")
            name, place = _named(text, begun.end(), schemas, self._named)
            if not name:
                raise ValueError("it names no tool")
            schema = schemas.get(name, {})
            objects = named_properties(schema)
            known = {key for one in objects for key in one["properties"]}
            written, place = self._arguments(text, place, known)
            calls.append((name, self._typed(name, written, objects, schema)))
        return calls

    def _arguments(self, text: str, place: int, known: Collection[str]) -> tuple[dict[str, str], int]:
        """The text of each argument as it is written, by key, and where they end."""
        found: dict[str, str] = {}
        while (end := self._end.match(text, place)) is None:
            apart = self._apart.match(text, place) if found else None
            begun = self._key.match(text, apart.end() if apart else place)
            if begun is None or (found and apart is None):
                rest = text[place:].strip()
                raise ValueError(
                    f"{rest[:40]!r} stands where an argument or its end should" if rest else "it has no end"
                )
            key, place = _named(text, begun.end(), known, self._key_over)
            if self._keyed.quotes:
                key = key.strip('"')  # Some models put quotes around keys all the same.
            if not key:
                raise ValueError("it has an argument without a name or a value")
            found[key], place = self._value(text, place, key)
        return found, end.end()

    def _value(self, text: str, place: int, key: str) -> tuple[str, int]:
        if self._keyed.apart:
            end = literal_end(text, place)
            return text[place:end], end
        over = self._value_over.search(text, place)
        if over is None:
            raise ValueError(f"its argument {key!r} has no end")
        value = text[place : over.start()]
        # One line break on each side is the format's; any more are the value's.
        return value.removeprefix(self._lead).removesuffix(self._trail), over.end()

    def _typed(
        self,
        name: str,
        written: Mapping[str, str],
        objects: Sequence[Mapping[str, Any]],
        schema: Mapping[str, Any],
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for key, text in written.items():
            of_key = [schemas for one in objects if (schemas := _schema_of(key, one)) is not None]
            if not of_key:
                raise ValueError(f"{name!r} takes no argument {key!r}")
            if self._keyed.apart:
                arguments[key] = read_literal(text)
                continue
            allowed = [kinds(one) for part in of_key for one in branches(part, schema)]
            types = frozenset[str]().union(*allowed) if all(allowed) else frozenset[str]()
            arguments[key] = read_value(text, types)
        return arguments


def _named(text: str, start: int, known: Collection[str], over: str) -> tuple[str, int]:
    """The name that begins at ``start``, and where the markup behind it ends; "" if there is none.

    Args:
        known: the names on offer, which may contain what looks like that markup.
        over: the markup, as a pattern.
    """
    for name in sorted(known, key=len, reverse=True):
        if text.startswith(name, start) and (end := re.compile(rf"\s*{over}").match(text, start + len(name))):
            return name, end.end()
    found = re.compile(over).search(text, start)
    name = text[start : found.start()].strip() if found else ""
    return ("", start) if found is None or "\n" in name else (name, found.end())


def _schema_of(key: str, arguments: Mapping[str, Any]) -> Any:
    """The schema that a schema of arguments has for one; None where it takes no argument of that name."""
    if key in arguments["properties"]:
        return arguments["properties"][key]
    more = arguments.get("additionalProperties", not arguments["properties"] or None)
    return {} if "patternProperties" in arguments else None if more is False else more


def _loose(mark: str) -> str:
    """A pattern of markup that takes any white space within it and between its tags."""
    return r"\s*".join(map(re.escape, re.split(r"\s+|(?<=>)(?=<)", mark.strip())))


def common_start(first: str, second: str) -> str:
    """What both texts begin with."""
    length = next(
        (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    return first[:length]
