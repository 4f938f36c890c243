"""Pieces of llguidance's form of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["escaped", "json_rule"]

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As json.dumps writes it. White space that may go on for ever does, with a weak model."""


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> str:
    """A document of a schema."""
    options = {**_COMPACT, "lenient": not strict}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def escaped(text: str) -> str:
    """A text within a regular expression."""
    # By their codes: a backslash makes other things of some signs ("\\<" is the start of a word).
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)
