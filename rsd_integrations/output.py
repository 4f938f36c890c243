"""What an answer may be besides text: calls of tools, a JSON document. Pure.

Requests describe it in the terms of OpenAI's API (``tools``, ``tool_choice``, ``response_format``), which
chat templates and both frameworks use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rsd_integrations.errors import ConfigError
from rsd_integrations.schemas import closed_schema
from rsd_integrations.types import DEEPEST

Tool = Mapping[str, Any]

_NOT_IN_NAMES = '"\\{}'
"""Characters that would end a tool's name in most models' markup of calls."""

_NOTES = ("default", "examples")
"""Keywords that forbid nothing."""

_NOTHING = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Output:
    """What an answer may be.

    Args:
        tools: functions the model may call, ``{"type": "function", "function": {...}}`` each.
        choice: "auto" lets the model choose whether to call; "required": it calls a tool and writes no text.
        parallel: whether it may make more than one call.
        schema: JSON schema that the answer must follow, calls aside; None for free text. Objects that name
            properties take no others, unless their schema says ``additionalProperties``; an ``allOf`` and
            what it refers to are one object.
        strict: all that the schemas say is enforced, or refused; else keywords that cannot be enforced
            while writing are left for the answer's reader to check.
    """

    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "required"] = "auto"
    parallel: bool = True
    schema: Mapping[str, Any] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse malformed fields.

        Raises:
            ConfigError: one is malformed.
        """
        _check_depth(self.tools, "tools")
        _check_depth(self.schema, "schema")
        object.__setattr__(self, "tools", tuple(_plain(_check_tools(self.tools), "tools")))
        if self.choice not in ("auto", "required") or (self.choice == "required" and not self.tools):
            raise ConfigError(
                f"choice={self.choice!r} does not go with {len(self.tools)} tools.",
                hint='Use "auto", or "required" with tools; leave the tools out where none may be called.',
            )
        if not isinstance(self.schema, Mapping | None):
            raise ConfigError(f"schema={self.schema!r:.200} is no JSON schema.", hint="Give it as a dict.")
        object.__setattr__(self, "schema", closed_schema(_plain(self.schema, "schema")))

    def __hash__(self) -> int:
        # Schemas have none; equal outputs are equal in the others, too.
        return hash((tuple(name for name, _ in self.functions), self.choice, self.parallel, self.strict))

    @classmethod
    def of(
        cls,
        *,
        tools: Sequence[Tool] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> Output:
        """An output from a request's parameters, as OpenAI's API names them.

        Args:
            tools: OpenAI function tools.
            tool_choice: "auto" (default), "none", "required" or "any", a tool's name (it is then
                called exactly once), or OpenAI's ``{"type": "function", "function": {"name": ...}}``.
            parallel_tool_calls: False allows one call at most.
            response_format: ``{"type": "text" | "json_object"}`` or ``{"type": "json_schema",
                "json_schema": {"schema": {...}, "strict": bool}}``.

        Raises:
            ConfigError: something is malformed, or names a tool that is not there.
        """
        _check_depth(tools, "tools")
        _check_depth(response_format, "response_format")
        checked = _check_tools(() if tools is None else tools)
        choice, checked, single = _chosen(tool_choice, checked)
        schema, strict = _format(response_format)
        return cls(
            tools=tuple(checked),
            choice=choice,
            parallel=not single and parallel_tool_calls is not False,
            schema=schema,
            strict=strict or any(function.get("strict") for function in map(_function, checked)),
        )

    @property
    def constrained(self) -> bool:
        """Whether some texts are forbidden."""
        return bool(self.schema is not None or (self.tools and (self.choice == "required" or self.strict)))

    @property
    def key(self) -> str:
        """A key for caches. The order of properties counts: answers are written in it."""
        return json.dumps([self.tools, self.choice, self.parallel, self.schema, self.strict])

    @property
    def functions(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Name and JSON schema of the arguments of each tool."""
        return [(str(function["name"]), _arguments(function)) for function in map(_function, self.tools)]


def as_output(given: object) -> Output:
    """What a call gave as its output. None is free text.

    Raises:
        ConfigError: it is no ``Output``.
    """
    if given is None:
        return Output()
    if not isinstance(given, Output):
        raise ConfigError(f"output={given!r:.200} is no Output.", hint="Write output=Output.of(...).")
    return given


def _arguments(function: Mapping[str, Any]) -> Any:
    """The schema of a function's arguments: a function that names no parameters takes none."""
    parameters = function.get("parameters") or {}
    named = parameters.keys() - {"type", "title", "description", "required"}
    return closed_schema({"type": "object", **parameters} if named else {**_NOTHING, **parameters})


def _function(tool: Tool) -> Mapping[str, Any]:
    function: Mapping[str, Any] = tool["function"]
    return function


def _check_depth(value: Any, name: str, left: int = DEEPEST) -> None:
    """Refuse what is nested too deep to be compiled or rendered.

    Raises:
        ConfigError: it is nested too deep, or contains itself.
    """
    if left < 0:
        raise ConfigError(
            f"{name} are nested more than {DEEPEST} levels deep.",
            hint='Flatten them, or name schemas under "$defs" and refer to them.',
        )
    if type(value) is str:
        return
    if type(value) is dict or isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for part in value:
        _check_depth(part, name, left - 1)


def _plain(value: Any, name: str, *, note: bool = False) -> Any:
    """A copy in JSON's own types, which whoever gave the original cannot change.

    Args:
        note: it forbids nothing, so numbers that JSON does not have may be named.

    Raises:
        ConfigError: JSON cannot say it.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is dict or isinstance(value, Mapping):
        return {
            key if type(key) is str else _key(key, name): _plain(part, name, note=note or key in _NOTES)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(part, name, note=note) for part in value]
    return _leaf(value, name, note)


def _leaf(value: Any, name: str, note: bool) -> str | int | float:
    if isinstance(value, str):  # Enums, too: templates would write their names.
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__float__(value)
    if isinstance(value, float) and note:  # Pydantic leaves such a default as it is.
        return json.dumps(value)
    raise ConfigError(
        f"{value!r:.200} in {name} is no JSON.",
        hint="Give text, finite numbers, booleans, None, lists and dicts: a date's isoformat(), an Enum's "
        "value, a set as a list.",
    )


def _key(key: Any, name: str) -> str:
    """A key as json.dumps writes it."""
    plain = _plain(key, name)
    if isinstance(plain, list | dict):
        raise ConfigError(f"the key {key!r:.200} in {name} is no text.", hint="Write it as text.")
    return plain if isinstance(plain, str) else json.dumps(plain)


def _check_tools(tools: Any) -> list[dict[str, Any]]:
    if isinstance(tools, str | Mapping) or not isinstance(tools, Collection):
        raise ConfigError(
            f"tools={tools!r:.200} is no list of tools.",
            hint='Write [{"type": "function", "function": {"name": ..., "parameters": {...}}}, ...].',
        )
    known: dict[str, dict[str, Any]] = {}
    for tool in map(_check_tool, tools):
        # Agents list one twice that was also retrieved, LangChain's tests a model beside its schema.
        first = known.setdefault(name := tool["function"]["name"], tool)
        if first is not tool and _untitled(first) != _untitled(tool):
            raise ConfigError(
                f"two tools have the name {name!r:.200}, so calls of one would be taken for the other's.",
                hint="Rename one.",
            )
    return list(known.values())


def _untitled(value: Any) -> Any:
    if isinstance(value, Mapping):
        # A property of that name is a schema.
        kept = {key: part for key, part in value.items() if key != "title" or not isinstance(part, str)}
        return {key: _untitled(part) for key, part in kept.items()}
    return [*map(_untitled, value)] if isinstance(value, list | tuple) else value


def _check_tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ConfigError(
            f"a tool must name a function, not {tool!r:.200}.",
            hint='Write {"type": "function", "function": {"name": ..., "parameters": {...}}}.',
        )
    if any(sign in _NOT_IN_NAMES or not sign.isprintable() for sign in function["name"]):
        raise ConfigError(
            f"the tool's name {function['name']!r:.200} cannot be written in a call.",
            hint="Leave out quotes, backslashes, braces and line breaks.",
        )
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise ConfigError(
            f"the parameters of tool {function['name']!r} are {parameters!r:.200}.",
            hint="Give the JSON schema of an object.",
        )
    kind = parameters.get("type", "object") if parameters else "object"
    if "object" not in (kind if isinstance(kind, list) else [kind]):  # Calls are read with objects only.
        raise ConfigError(
            f"the parameters of tool {function['name']!r} are of type {kind!r}, but arguments are an object.",
            hint='Make it a property of an object, or, where it is the whole answer, use "json_schema".',
        )
    return {"type": "function", "function": dict(function)}


def _chosen(
    asked: Any, tools: list[dict[str, Any]]
) -> tuple[Literal["auto", "required"], list[dict[str, Any]], bool]:
    """The choice, the tools that are left to choose from, and whether exactly one call is asked for."""
    if isinstance(asked, Mapping):
        named = asked.get("function")
        called = named if isinstance(named, Mapping) else asked
        asked = called.get("name", named or asked.get("type", asked))
    if asked is None or asked is False or asked == "auto":
        return "auto", tools, False
    if asked is True:
        asked = "required"
    names = [tool["function"]["name"] for tool in tools]
    if asked in names:
        return "required", [tools[names.index(asked)]], True
    if asked == "none":  # A model that may not call is not shown what it could call.
        return "auto", [], False
    if asked in ("any", "required") and tools:
        return "required", tools, False
    there = f"The tools are: {', '.join(names)}." if tools else "There are no tools."
    raise ConfigError(
        f"tool_choice={asked!r} is no tool that was given.",
        hint=f'{there} Use "auto", "any", "none" or the name of a tool.',
    )


def _format(asked: Any) -> tuple[Mapping[str, Any] | None, bool]:
    given = asked if isinstance(asked, Mapping) else {"type": asked}
    kind = given.get("type")
    if kind in (None, "text"):
        return None, False
    if kind == "json_object":
        return {"type": "object"}, False
    if kind == "json_schema":
        named = given.get("json_schema")
        schema = named.get("schema") if isinstance(named, Mapping) else None
        if isinstance(named, Mapping) and isinstance(schema, Mapping):
            return schema, bool(named.get("strict"))
    raise ConfigError(
        f"response_format={asked!r:.200} is not known.",
        hint='Use {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": {...}}}.',
    )
