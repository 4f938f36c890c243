"""Pieces of llguidance's form of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as json.dumps writes it. Where it may go on forever, a weak model goes on forever."""


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> str:
    """A document of a schema."""
    options = {**_COMPACT, "lenient": not strict}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def escaped(text: str) -> str:
    """A text within a regular expression."""
    # By code points: a backslash gives some characters another meaning ("\\<" is the start of a word).
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)
