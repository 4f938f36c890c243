"""Values as models write them: JSON, Python's literals, and text that a schema tells from these. Pure."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from rsd_integrations.text.arguments import KINDS

WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
"""What JSON and Python call true, false and null. Models mix them up, so both are understood."""
_TOO_DEEP = "it is nested too deep"
_NOT_READ = object()
_QUOTED = r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
"""A text in quotes."""
_PIECES = re.compile(_QUOTED + r"""|([\[({])|([\])}])|(,)|[^\[\](){}"',]+""", re.DOTALL)
"""A piece of a literal: a text in quotes, a bracket that opens, one that closes, a comma, or all else."""
_BEGUN = (
    r"""("{3}(?:[^"\\]|\\.|"{1,2}(?!"))*(?:"{3}|\\?\Z)|'{3}(?:[^'\\]|\\.|'{1,2}(?!'))*(?:'{3}|\\?\Z)"""
    r"""|"(?:[^"\\]|\\.)*(?:"|\\?\Z)|'(?:[^'\\]|\\.)*(?:'|\\?\Z)|#[^\n]*)"""
)
"""A text in quotes, or in three, which may lack the last: else the rest is searched from each quote in it
again. Or a comment of Python's, whose quotes are none.
"""
_BARE = re.compile(_BEGUN + r"|([\w.$+-]+)(\s*:)?", re.DOTALL)
"""A text in quotes, or a word without any, perhaps a key."""
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(r"""\\(?:([4-7][0-7]{2})|(\\|['"abfnrtv0-7xNuU\n]))?""")
"""A backslash, with an octal escape above 255, or with the character that it escapes, if it is known."""
_PYTHON = re.compile(
    rf"""(?<=\w)(?<!\b[uUrR])["']|{_BEGUN}|\b(true|false|null)\b|(?<=[\w.])(and|else|for|if|in|is|not|or)""",
    re.DOTALL,
)
"""Quotes behind letters (formatted texts and bytes, which JSON has not), a text in quotes, a word of JSON's
that Python spells otherwise, or a keyword right behind a number.
"""


def read_json(text: str) -> Any:
    """A JSON document. Unlike Python's own parser this takes no NaN or infinity, which are not JSON.

    Raises:
        ValueError: the text is no JSON document.
    """
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def read_first(text: str) -> tuple[Any, str]:
    """The JSON document that a text begins with, and the text behind it.

    Raises:
        ValueError: it begins with none.
    """
    try:
        value, end = _DECODER.raw_decode(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    return value, text[end:].strip()


def read_value(text: str, allowed: frozenset[str]) -> Any:
    """The value of a text written without quotes, where strings and all else look alike.

    Args:
        allowed: JSON types that it may have; if empty, any.

    Raises:
        ValueError: it is a number that is too large.
    """
    if allowed == {"string"}:
        return text
    value = _unquoted(text.strip())
    if value is _NOT_READ and allowed and "string" not in allowed and _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text.strip()[:40]!r} is too large a number")
    if value is _NOT_READ:
        return text
    if allowed and "string" not in allowed:
        return value
    # What is none of the allowed types is text; so is a string in quotes, which nobody asked for.
    kind = KINDS[type(value)]
    named = kind in allowed or (kind == "integer" and "number" in allowed)
    return value if kind != "string" and (named or not allowed) else text


def read_literal(text: str) -> Any:
    """The value of a literal of JSON or Python, with strings in quotes.

    Raises:
        ValueError: the text is no literal.
    """

    def spelled(found: re.Match[str]) -> str:
        quoted, word, colon = found.groups()
        if colon:
            return f'"{word}"{colon}'
        return quoted or (json.dumps(WORDS[word]) if word in WORDS else word)

    text = text.strip()
    value = _unquoted(_BARE.sub(spelled, text))
    if value is not _NOT_READ:
        return value
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]  # Some templates put quotes around a text without escaping it.
    raise ValueError(f"{text[:40]!r} is no value")


def requoted(text: str, quotes: str) -> str:
    """A text in which what stands between these quotes is written as JSON strings."""
    parts = text.split(quotes)
    for place in range(1, len(parts) - 1, 2):
        parts[place] = json.dumps(parts[place])
    if len(parts) % 2 == 0:  # The last quote is not closed.
        parts[-1] = quotes + parts[-1]
    return "".join(parts)


def literal_end(text: str, start: int) -> int:
    """Where a literal ends: in front of a comma or a bracket that is none of its own."""
    depth = 0
    while found := _PIECES.match(text, start):
        _, opens, closes, comma = found.groups()
        if depth == 0 and (closes or comma):
            break
        depth += bool(opens) - bool(closes)
        start = found.end()
    return start


def _unquoted(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    try:
        return read_json(text)
    except ValueError:
        pass
    if not text.startswith(("[", "{", "(", "'", '"')):
        return _NOT_READ
    # Some templates write lists and objects by Python's str. What Python would warn of is written otherwise:
    # a model could fill the logs with it, and no thread can turn off warnings for itself alone.
    try:
        return _plain(ast.literal_eval(_PYTHON.sub(_as_python, _ESCAPE.sub(_escaped, text))))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return _NOT_READ


def _escaped(found: re.Match[str]) -> str:
    octal, known = found.groups()
    return f"\\u{int(octal, 8):04x}" if octal else found[0] if known else r"\\"


def _as_python(found: re.Match[str]) -> str:
    quoted, word, keyword = found.groups()
    if not (quoted or word or keyword):
        raise ValueError(f"{found.string[:40]!r} has a text that JSON has not")
    return quoted or (f" {keyword}" if keyword else {"true": "True", "false": "False", "null": "None"}[word])


def _plain(value: Any) -> Any:
    """A Python value as JSON has it: tuples become lists.

    Raises:
        ValueError: JSON has no such thing.
    """
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r:.80} is nothing that JSON has")


def _finite(written: str) -> float:
    value = float(written)
    if not math.isfinite(value):
        raise ValueError(f"{written} is no finite number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
