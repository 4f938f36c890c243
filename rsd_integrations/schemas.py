"""JSON schemas, made so that a model that is forced to follow them invents no properties. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from rsd_integrations.errors import ConfigError

DATA = ("enum", "const", "default", "examples", "required")
"""Keywords whose values are not schemas."""

NAMED = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
"""Keywords whose values are schemas by name."""

_SHARED = ("anyOf", "oneOf", "if", "then", "else", "dependentSchemas")
"""Keywords whose subschemas describe the same object as the ``properties``, ``$ref`` or ``allOf`` beside
them, so none may forbid what another names."""

_BESIDE = frozenset(("properties", "required", "allOf", *_SHARED))
"""Keywords that say more of the object that a ``$ref`` beside them describes."""

_OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties")
"""Keywords by which a schema itself says what else an object may hold."""

_TYPES = ("type", "enum", "const")
"""Keywords that say of what type a value is."""

_JOINING = frozenset(("properties", "allOf", "$ref"))
"""Keywords that describe an object, so that unions beside them describe the same."""

_BESIDE_KEYS = (_BESIDE - {"required"}) | {"$ref", "patternProperties", "minProperties", "maxProperties"}
"""Keywords beside which the names of keys are no mere list of properties."""

_EVERY = frozenset("*")
"""In place of names: any may be described twice."""

_OPENED = "x-open-"
"""Begins the names of definitions that are left open, since what refers to them is closed as a whole."""


def closed_schema(schema: Any) -> Any:
    """A JSON schema whose objects hold only the properties they name, if any, unless it says otherwise.

    Without this, models that are forced to write JSON invent properties for as long as they may.

    Raises:
        ConfigError: references lead to references too often.
    """
    try:
        return _Closer(schema).closed()
    except RecursionError as error:
        raise ConfigError(
            "a schema's references lead from one to the next more than 100 times.",
            hint="Let fewer schemas inherit from each other.",
        ) from error


@dataclass
class _Described:
    """What the parts of a schema (itself, what it refers to, its ``allOf``) say of one object together."""

    names: dict[str, None] = field(default_factory=dict)
    required: dict[str, None] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """Each name as often as something is said of it, in unions, too."""
    seen: set[str] = field(default_factory=set)
    """References that were followed."""
    described: bool = False
    """Whether a part has ``properties``."""
    typed: bool = False
    """Whether a part says what else than an object it may be."""
    more: bool = False
    """Whether a part allows properties that are not named here, or may do so."""

    @property
    def twice(self) -> frozenset[str]:
        """Names of which more than one part says something."""
        return frozenset(name for name, times in Counter(self.said).items() if times > 1)


class _Closer:
    """Closes the objects of one schema.

    Args:
        root: the schema, which references are to.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._opened: dict[tuple[str, frozenset[str]], str] = {}
        self._copies: dict[str, Any] = {}

    def closed(self) -> Any:
        closed = self._close(self._root)
        return {**closed, "$defs": {**closed.get("$defs", {}), **self._copies}} if self._copies else closed

    def _close(self, schema: Any, twice: frozenset[str] | None = None) -> Any:
        """A schema with its objects closed.

        Args:
            twice: others describe the same object, so it is left open itself, and so are these of its
                properties, which they describe, too; None where nothing else describes it.
        """
        if isinstance(schema, list):
            return [self._close(part, twice) for part in schema]
        if not isinstance(schema, Mapping):
            return schema
        schema = schema if twice is not None else self._named_keys(schema)
        joined = twice
        one = twice is None and _only_refines(schema)
        if twice is None and _JOINING & schema.keys() and not one:
            joined = self._described(schema, _Described()).twice
        closed = {name: self._part(name, part, joined) for name, part in schema.items()}
        if isinstance(schema.get("$ref"), str) and (twice is not None or _BESIDE & schema.keys()):
            # As a part of an allOf, what it says of a property counts beside a property that is only named.
            also = {"$ref": self._open(closed.pop("$ref"), joined or frozenset())}
            if not _BESIDE & schema.keys():
                return {**closed, **also}
            closed["allOf"] = [*_listed(closed.get("allOf", [])), also]
        if twice is None and not one:
            self._shut(schema, closed)
        return closed

    def _part(self, name: str, part: Any, joined: frozenset[str] | None) -> Any:
        """What a keyword says, closed.

        Args:
            joined: the names that are described twice, where unions and an allOf describe one object.
        """
        if name in DATA or name == "not":  # Closing what is forbidden would forbid less.
            return part
        twice = joined if name in ("allOf", *_SHARED) else None
        if name not in NAMED or not isinstance(part, Mapping):
            return self._close(part, twice)
        if name == "properties" and joined:
            return {
                key: self._close(one, _EVERY if joined & {key, *_EVERY} else None)
                for key, one in part.items()
            }
        return {key: one if key.startswith(_OPENED) else self._close(one, twice) for key, one in part.items()}

    def _shut(self, schema: Mapping[str, Any], closed: dict[str, Any]) -> None:
        """Close the object that a schema describes alone, if it is one and all of it is known."""
        if "$ref" in closed:
            return
        patterns = isinstance(schema.get("patternProperties"), Mapping)
        none_else = schema.get("unevaluatedProperties") is False
        bare = {key: part for key, part in schema.items() if key != "patternProperties" or not patterns}
        found = self._described(bare, _Described(described=patterns or none_else))
        if not found.typed and (found.described or found.required):
            closed["type"] = "object"
        if found.described and not found.more and closed.get("additionalProperties") is not False:
            own = closed["properties"] if isinstance(closed.get("properties"), Mapping) else {}
            # What is required only is described by nothing, but it has to be there.
            names = found.names if none_else else {**found.names, **found.required}
            closed["properties"] = {name: own.get(name, {}) for name in names}
            closed["additionalProperties"] = False
            closed.pop("unevaluatedProperties", None)  # It says the same.

    def _named_keys(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """A schema whose keys are of an enum, with these as its properties, since only those are enforced."""
        keys = schema.get("propertyNames")
        if isinstance(keys, Mapping) and keys.keys() == {"$ref"}:
            keys = referred(keys["$ref"], self._root)
        names = keys.get("enum") if isinstance(keys, Mapping) else None
        if not isinstance(names, list) or _BESIDE_KEYS & schema.keys():
            return schema
        value = schema.get("additionalProperties", {})
        properties = {name: value for name in names if isinstance(name, str)}
        left = {key: part for key, part in schema.items() if key != "propertyNames"}
        return {**left, "properties": properties, "additionalProperties": False}

    def _described(self, schema: Any, found: _Described) -> _Described:
        if not isinstance(schema, Mapping):
            return found
        for name, part in schema.items():
            if name == "properties" and isinstance(part, Mapping):
                found.described = True
                found.names |= dict.fromkeys(part)
                found.said += [key for key, one in part.items() if one not in ({}, True)]
            elif name == "required" and isinstance(part, list):
                found.required |= dict.fromkeys(one for one in part if isinstance(one, str))
            elif name == "allOf" and isinstance(part, list):
                for one in part:
                    self._described(one, found)
            elif name == "$ref":
                target = referred(part, self._root)
                found.more |= target is None
                if target is not None and part not in found.seen:
                    found.seen.add(part)
                    self._described(target, found)
            elif name in _SHARED:
                found.more |= _has(part, {"properties", "$ref"})
                for one in part.values() if isinstance(part, Mapping) and name in NAMED else _listed(part):
                    self._described(one, _Described(said=found.said, seen=found.seen))
                found.typed |= name in ("anyOf", "oneOf") and any(map(_typed, _listed(part)))
            elif name in _TYPES:
                found.typed = True
            elif name in _OPEN and part is not False:
                found.more = True
        return found

    def _open(self, reference: str, twice: frozenset[str]) -> str:
        """A reference to the same, left open."""
        target = referred(reference, self._root)
        if not isinstance(target, Mapping) or reference.startswith(f"#/$defs/{_OPENED}"):
            return reference
        if (reference, twice) not in self._opened:
            name = self._opened[reference, twice] = f"{_OPENED}{len(self._opened) + 1}"
            bare = {key: part for key, part in target.items() if key not in ("$defs", "definitions")}
            self._copies[name] = self._close(bare, twice)
        return f"#/$defs/{self._opened[reference, twice]}"


def referred(reference: Any, root: Any) -> Any:
    """What a reference within a schema refers to; None where it is elsewhere or missing.

    Args:
        root: the schema.
    """
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        return None
    for part in filter(None, unquote(reference[1:]).split("/")):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(root, list):  # An alternative of a union.
            root = dict(enumerate(root)).get(int(name) if re.fullmatch("[0-9]{1,9}", name) else -1)
        else:
            root = root.get(name) if isinstance(root, Mapping) else None
    return root


def _only_refines(schema: Mapping[str, Any]) -> bool:
    """Whether at most one part of an allOf describes an object, and nothing beside it does.

    Pydantic and others write a reference so to put a description beside it.
    """
    parts = schema.get("allOf")
    described = (_BESIDE | {"$ref", *_OPEN}) - {"allOf"}
    if not isinstance(parts, list) or described & schema.keys():
        return False
    return sum(bool((described | {"allOf"}) & part.keys()) for part in parts if isinstance(part, Mapping)) < 2


def _listed(part: Any) -> list[Any]:
    return part if isinstance(part, list) else [part]


def _typed(part: Any) -> bool:
    return isinstance(part, Mapping) and any(keyword in part for keyword in (*_TYPES, "$ref", "allOf"))


def _has(part: Any, keywords: set[str]) -> bool:
    """Whether a schema has one of these keywords, anywhere."""
    if isinstance(part, Mapping):
        return bool(keywords & part.keys()) or any(_has(one, keywords) for one in part.values())
    return isinstance(part, list) and any(_has(one, keywords) for one in part)
