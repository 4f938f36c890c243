"""JSON schemas of arguments, as far as calls by keys and values are written and read by them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import product
from typing import Any
from urllib.parse import unquote

__all__ = ["KINDS", "branches", "kinds", "with_root_defined"]

_DATA = ("const", "default", "enum", "examples")
"""Keywords whose values are no schemas."""
_NAMED = ("$defs", "definitions", "patternProperties", "properties")
"""Keywords whose values are schemas by name."""
_ELSEWHERE = re.compile(r"#(?!/(\$defs|definitions)/)(/|$)")
"""A reference to what is no definition."""
_JOINED = ("$ref", "anyOf", "oneOf", "allOf")
_MOST_BRANCHES = 1024
"""Alternatives of a schema (unions within unions), above which any value is taken."""
KINDS: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}
"""What JSON schemas call the types."""


def branches(schema: Any, root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A schema's alternatives, one of which a value has to follow: without references and unions at the top.

    Args:
        root: what references refer to.
    """
    return _branches(schema, root, frozenset(), {})


def _branches(
    schema: Any, root: Mapping[str, Any], seen: frozenset[str], known: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The same.

    Args:
        seen: references that led here.
        known: references that were resolved before.
    """
    if not isinstance(schema, Mapping):
        return [{}]
    found = [{key: value for key, value in schema.items() if key not in _JOINED}]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        if reference not in known:
            known[reference] = _branches(_referred(reference, root), root, seen | {reference}, known)
        found = _each(known[reference], found)
    for union in (schema.get("anyOf"), schema.get("oneOf")):
        if isinstance(union, list) and union:
            found = _each(found, [one for part in union for one in _branches(part, root, seen, known)])
    parts = schema.get("allOf")
    for part in parts if isinstance(parts, list) else ():
        found = _each(found, _branches(part, root, seen, known))
    return found


def kinds(branch: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a schema's values have; an empty set where it does not say."""
    if "const" in branch or isinstance(branch.get("enum"), list):
        given = [branch["const"]] if "const" in branch else branch["enum"]
        return frozenset(KINDS.get(type(value), "string") for value in given)
    named = branch.get("type")
    given = named if isinstance(named, list) else [named]
    return frozenset(one for one in given if isinstance(one, str))


def _each(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(first) * len(second) > _MOST_BRANCHES:
        return [{}]
    made = [_both(one, other) for one, other in product(first, second)]
    return list({json.dumps(one): one for one in made}.values())


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """A schema of values that follow both; where both have the same keyword, the second's counts, except
    that properties and required ones are joined.
    """
    both = {**first, **second}
    parts = first.get("properties"), second.get("properties")
    if isinstance(parts[0], Mapping) and isinstance(parts[1], Mapping):
        both["properties"] = {**parts[0], **parts[1]}
    needed = first.get("required"), second.get("required")
    if isinstance(needed[0], list) and isinstance(needed[1], list):
        both["required"] = [*needed[0], *needed[1]]
    return both


def with_root_defined(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema whose references all point below its definitions, so that a part of it can stand alone with
    these: what refers to the whole or to a sibling (``#``, ``#/properties/a/items``) refers to a copy there.
    """
    defined = schema.get("$defs")
    defined = defined if isinstance(defined, Mapping) else {}
    name = "root"
    while name in defined:
        name += "_"
    pointed = _pointed(schema, f"#/$defs/{name}")
    if pointed == schema:
        return schema
    whole = {key: part for key, part in pointed.items() if key not in ("$defs", "definitions")}
    return {**pointed, "$defs": {**(pointed["$defs"] if defined else {}), name: whole}}


def _pointed(part: Any, root: str) -> Any:
    """A part of a schema in which references that point to no definition point below ``root``."""
    if isinstance(part, list):
        return [_pointed(one, root) for one in part]
    if not isinstance(part, Mapping):
        return part
    return {key: _pointed_keyword(key, value, root) for key, value in part.items()}


def _pointed_keyword(key: str, value: Any, root: str) -> Any:
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _pointed(one, root) for name, one in value.items()}
    if key == "$ref" and isinstance(value, str):
        return root + value[1:].removesuffix("/") if _ELSEWHERE.match(value) else value
    return value if key in _DATA else _pointed(value, root)


def _referred(reference: str, root: Any) -> Any:
    """What a reference within a schema refers to; where that is missing, what allows any value."""
    if not reference.startswith("#"):
        return {}
    for part in map(unquote, filter(None, reference[1:].split("/"))):
        if isinstance(root, list):  # An alternative of a union.
            root = dict(enumerate(root)).get(int(part) if re.fullmatch("[0-9]{1,9}", part) else -1)
        else:
            root = root.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root
