"""JSON schemas of arguments, as far as calls by keys and values are written and read by them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, product
from typing import Any

from rsd_integrations.schemas import DATA, NAMED, referred

_ELSEWHERE = re.compile(r"#(?!/(\$defs|definitions)/)(/|$)")
"""A reference to what is no definition."""
LIMITS = {
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    **dict.fromkeys(
        ("number", "integer"),
        frozenset(("minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum")),
    ),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
    "array": frozenset(
        ("items", "prefixItems", "additionalItems", "unevaluatedItems", "minItems", "maxItems")
    )
    | {"uniqueItems", "contains", "minContains", "maxContains"},
    "object": frozenset(("properties", "required", "additionalProperties", "unevaluatedProperties"))
    | {"patternProperties", "propertyNames", "minProperties", "maxProperties"}
    | {"dependentRequired", "dependentSchemas", "dependencies"},
}
"""Keywords that forbid values of a type."""
LIMITS_OF_ALL = frozenset(("not", "if", "allOf", "enum", "const", "$dynamicRef", "$recursiveRef"))
"""Those that forbid values of any."""
_LIMITING = LIMITS_OF_ALL.union(*LIMITS.values())
_STRICTER: dict[str, Callable[[float, float], float]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}
_IMPOSSIBLE: dict[str, Any] = {"not": {}}
"""Marks what no value follows: refused in strict schemas; else llguidance leaves it out."""
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
    return [*map(_typed, _branches(schema, root, frozenset(), {}))]


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
            known[reference] = _branches(referred(reference, root), root, seen | {reference}, known)
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
        return frozenset(KINDS.get(type(value), "string") for value in prescribed(branch))
    return _types(branch.get("type"))


def prescribed(branch: Mapping[str, Any]) -> list[Any]:
    """The only values that a schema allows; none where it does not name them."""
    if "const" in branch:
        return [branch["const"]]
    return list(branch["enum"]) if isinstance(branch.get("enum"), list) else []


def _typed(branch: dict[str, Any]) -> dict[str, Any]:
    """The same with those values only that are of its types."""
    values, types = prescribed(branch), _types(branch.get("type"))
    fitting = [one for one in values if _is_of(one, types)]
    if not values or not types or len(fitting) == len(values):
        return branch
    return {**branch, "enum": fitting} if fitting else {**_IMPOSSIBLE, **branch}


def _types(named: Any) -> frozenset[str]:
    return frozenset(one for one in (named if isinstance(named, list) else [named]) if isinstance(one, str))


def _is_of(value: Any, types: frozenset[str]) -> bool:
    if isinstance(value, float) and value.is_integer():
        return bool(types & {"integer", "number"})
    kind = KINDS.get(type(value))
    return kind in types or (kind == "integer" and "number" in types)


def _shared(first: frozenset[str], second: frozenset[str]) -> frozenset[str]:
    """The types that are of both."""
    one, other = (types | {"integer"} if "number" in types else types for types in (first, second))
    both = one & other
    return both - {"integer"} if "number" in both else both


def _each(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(first) * len(second) > _MOST_BRANCHES:
        return [{}]
    pairs = list(product(first, second))
    made = [both for pair in pairs if (both := _both(*pair)) is not None]
    made = made or [{**_IMPOSSIBLE, **one, **other} for one, other in pairs]
    return list({json.dumps(one): one for one in made}.values())


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any] | None:
    """A schema of values that follow both; None where no type has any. What no keyword can say stays in an
    allOf.
    """
    both, beside = {**first, **second}, [*first.get("allOf", ()), *second.get("allOf", ())]
    for keyword, one in first.items():
        other = second.get(keyword, one)
        if one == other or keyword == "allOf":
            continue
        if keyword == "type" and (types := (_types(one), _types(other))) and all(types):
            both["type"] = sorted(_shared(*types))
            if not both["type"]:
                return None
        elif (joined := _joined(keyword, one, other)) is not None:
            both[keyword] = joined
        elif keyword in _LIMITING:
            beside.append({keyword: one})
    return {**both, "allOf": beside} if beside else both


def _joined(keyword: str, one: Any, other: Any) -> Any:
    """The value of a keyword that forbids what either does; None where there is no such value."""
    if keyword in _STRICTER and type(one) in (int, float) and type(other) in (int, float):
        return _STRICTER[keyword](one, other)
    if keyword in ("items", "additionalProperties"):
        return _either(one, other)
    if keyword == "properties" and isinstance(one, Mapping) and isinstance(other, Mapping):
        shared = {key: _either(one[key], other[key]) for key in one if key in other}
        return {**one, **other, **shared}
    if isinstance(one, list) and isinstance(other, list) and keyword in ("required", "enum"):
        written = {*map(json.dumps, other)}
        # Values of which none is in both lists stay as they are, with the allOf that none follows.
        return (
            [*one, *other] if keyword == "required" else [v for v in one if json.dumps(v) in written] or None
        )
    return None


def _either(one: Any, other: Any) -> Any:
    """A schema of what follows both."""
    if one is False or other is False:
        return False
    said = [part for part in (one, other) if part is not True and part != {}]
    return {"allOf": said} if len(said) > 1 and one != other else said[0] if said else {}


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
    if key in NAMED and isinstance(value, Mapping):
        return {name: _pointed(one, root) for name, one in value.items()}
    if key == "$ref" and isinstance(value, str):
        return root + value[1:].removesuffix("/") if _ELSEWHERE.match(value) else value
    return value if key in DATA else _pointed(value, root)


def lost(schema: Mapping[str, Any]) -> Iterator[str]:
    """What is not kept of a schema of arguments when it is taken apart into branches, in words."""
    for part in _subschemas(schema):
        reference, union = part.get("$ref"), part.get("oneOf")
        if isinstance(reference, str) and referred(reference, schema) is None:
            yield f"the reference {reference!r:.200}, which leads nowhere in its schema"
        # A discriminator says which property tells them apart.
        if isinstance(union, list) and "discriminator" not in part and not _told_apart(part, schema):
            yield f"oneOf, as a value may follow two of {union!r:.200}"


def _subschemas(part: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all within it."""
    if isinstance(part, Mapping):
        yield part
        named = (part[key] for key in NAMED if isinstance(part.get(key), Mapping))
        rest = [one for key, one in part.items() if key not in (*NAMED, *DATA)]
        part = [*(schema for schemas in named for schema in schemas.values()), *rest]
    for one in part if isinstance(part, list) else ():
        yield from _subschemas(one)


def _told_apart(schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """Whether no value follows two schemas of a oneOf."""
    beside = {key: part for key, part in schema.items() if key not in _JOINED}
    ways = [branches({"allOf": [beside, part]}, root) for part in schema["oneOf"]]
    return all(_apart(*pair, root) for two in combinations(ways, 2) for pair in product(*two))


def _apart(
    one: Mapping[str, Any], other: Mapping[str, Any], root: Mapping[str, Any], within: int = 2
) -> bool:
    """Whether no value follows both schemas, as far as that is plain to see."""
    values = prescribed(one), prescribed(other)
    if all(values):
        return not {*map(json.dumps, values[0])} & {*map(json.dumps, values[1])}
    types = kinds(one), kinds(other)
    if all(types) and not _shared(*types):
        return True
    if not types[0] == types[1] == {"object"} or not within:
        return False
    told = _keys(one), _keys(other)
    for (named, needed), (others, _), closed in ((*told, other), (*told[::-1], one)):
        if needed - others.keys() and closed.get("additionalProperties") is False:
            return True
        for key in needed & told[0][1] & told[1][1] & named.keys() & others.keys():
            ways = branches(named[key], root), branches(others[key], root)
            if all(_apart(*pair, root, within - 1) for pair in product(*ways)):
                return True
    return False


def _keys(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], frozenset[str]]:
    """The properties that an object may have, and which it must have."""
    named, needed = schema.get("properties"), schema.get("required")
    return named if isinstance(named, Mapping) else {}, _types(needed)
