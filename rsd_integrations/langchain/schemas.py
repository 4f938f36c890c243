"""Whatever LangChain takes for a tool or a schema, as JSON schemas that lose nothing.

LangChain's own conversion drops what OpenAI's tools cannot say: a schema without "properties" at its root
becomes any JSON, and so do the inner objects of a model that refers to itself (a tree, a linked list).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from enum import EnumMeta
from types import GenericAlias
from typing import Any, cast

from langchain_core.tools import BaseTool, create_schema_from_function
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from rsd_integrations.errors import ConfigError

_UNTITLED = "answer"
"""What a schema without a title is called."""

_NAMES = {"title", "name", "function"}
_TOOLS = {"parameters", "input_schema", "toolSpec", "function"}
"""Keys that a tool has and no JSON schema."""


def document_schema(schema: Any) -> dict[str, Any]:
    """The JSON schema of an answer, with a title.

    Args:
        schema: Pydantic model, TypedDict, JSON schema, OpenAI's ``json_schema`` or tool.

    Raises:
        ConfigError: it is none of these.
    """
    schema = _unwrapped(schema)
    if isinstance(schema, Mapping) and not _TOOLS & schema.keys():
        return {"title": _UNTITLED, **schema}
    full = _arguments(schema)
    if full is not None and _holds_itself(full):
        return {**full, "title": schema.name} if isinstance(schema, BaseTool) else full
    tool = _converted(schema)
    if not isinstance(tool["function"].get("parameters", {}), Mapping):
        raise ConfigError(f"{schema!r:.200} has no schema as its parameters.", hint=_what_is_taken())
    return convert_to_json_schema(tool)


def as_tool(given: Any, strict: bool | None) -> dict[str, Any]:
    """An OpenAI tool.

    Args:
        given: whatever LangChain takes.
        strict: whether calls must keep to its schema to the letter, if the tool itself does not say.

    Raises:
        ConfigError: it cannot be made into one.
    """
    given = _unwrapped(given)
    tool = _converted(_rooted(given) if isinstance(given, Mapping) else given)
    if strict is not None:
        # Not by LangChain's conversion to strict tools: it empties dicts, which OpenAI's API cannot enforce.
        tool = {**tool, "function": {"strict": strict, **tool["function"]}}
    full = _arguments(given)
    if full is not None and _holds_itself(full):
        parameters = {name: part for name, part in full.items() if name not in ("title", "description")}
        tool["function"]["parameters"] = parameters
    return tool


def is_pydantic(schema: Any) -> bool:
    """Whether it is a Pydantic model."""
    return is_basemodel_subclass(schema)


def _converted(given: Any) -> dict[str, Any]:
    unnamed = isinstance(given, Mapping) and not given.keys() & _NAMES
    try:
        # LangChain makes wrong schemas of enums, and of list[int] and the like, classes in Python 3.10.
        if isinstance(given, GenericAlias | EnumMeta):
            raise TypeError("it is no function, schema or class with fields.")
        tool = convert_to_openai_tool(given)
    except Exception as error:  # Of any kind: what is no tool can fail anywhere in the conversion.
        raise ConfigError(
            f"{given!r:.200} cannot be made into a tool or a schema: {error}",
            hint=_what_is_taken(unnamed, error),
        ) from error
    if not isinstance(tool.get("function"), Mapping) or "name" not in tool["function"]:
        raise ConfigError(f"{given!r:.200} is no function that could be called.", hint=_what_is_taken())
    lost = isinstance(given, Mapping) and "parameters" not in tool["function"]
    if lost and given.keys() - {"title", "name", "description", "type", "function", "strict"}:
        raise ConfigError(
            f"{given!r:.200} describes no arguments, which are an object with properties.",
            hint='Name its "properties", or use method="json_schema".',
        )
    return tool


def _what_is_taken(unnamed: bool = False, error: Exception | None = None) -> str:
    if unnamed:
        return 'Add a "title", which names the tool; answers of method="json_schema" need none.'
    if "Required" in str(error):  # typing.Required, in a TypedDict.
        return (
            "LangChain reads no Required or NotRequired: for what may be missing write "
            "Annotated[T | None, None, 'what it is'], or give a Pydantic model."
        )
    return (
        "Give a function with a docstring, a @tool, a Pydantic model, a TypedDict, a JSON schema with a "
        "title, or an OpenAI tool."
    )


def _unwrapped(schema: Any) -> Any:
    """A schema without what OpenAI's API puts around an answer's, and with its name as the title."""
    if not isinstance(schema, Mapping):
        return schema
    inner = schema.get("json_schema", schema) if schema.get("type") == "json_schema" else schema
    if schema.get("type") == "function" and "function" not in schema and "name" in schema:
        # As OpenAI's Responses API has it.
        return {"type": "function", "function": {key: part for key, part in schema.items() if key != "type"}}
    if isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
        told = {"title": inner.get("name"), "description": inner.get("description")}
        schema = {**{name: text for name, text in told.items() if text is not None}, **inner["schema"]}
    if "name" in schema and not _TOOLS & schema.keys():
        schema = {"title": schema["name"], **{key: part for key, part in schema.items() if key != "name"}}
    return schema


def _model_schema(model: Any) -> dict[str, Any]:
    # Those of Pydantic 1 have no model_json_schema.
    made = model.model_json_schema() if hasattr(model, "model_json_schema") else model.schema()
    return _rooted(cast("dict[str, Any]", made))


def _rooted(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with the definition in place of a reference at its root (Pydantic's, if it is recursive)."""
    place = str(schema.get("$ref", "")).removeprefix("#/").split("/")
    definitions = schema.get(place[0])
    if len(place) != 2 or not isinstance(definitions, Mapping) or place[1] not in definitions:
        return dict(schema)
    return {**definitions[place[1]], **{name: part for name, part in schema.items() if name != "$ref"}}


def _arguments(given: Any) -> dict[str, Any] | None:
    """The whole schema of the arguments of a tool that LangChain would convert; None of others."""
    if isinstance(given, BaseTool):
        given = given.tool_call_schema
        if isinstance(given, Mapping):
            return _rooted(given)
    if is_pydantic(given):
        return _model_schema(given)
    if inspect.isroutine(given):
        name = given.__name__
        model = create_schema_from_function(
            name,
            given,
            filter_args=(),
            parse_docstring=True,
            error_on_invalid_docstring=False,
            include_injected=False,
        )
        return _model_schema(model)
    return None


def _holds_itself(schema: Mapping[str, Any]) -> bool:
    """Whether some definition refers to itself, directly or by way of others."""
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    inner = {name: {*_references(part)} for name, part in definitions.items()}
    for _ in inner:
        inner = {name: names.union(*(inner.get(one, ()) for one in names)) for name, names in inner.items()}
    return any(name in names for name, names in inner.items())


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"].rsplit("/", 1)[-1]
        for inner in part.values():
            yield from _references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _references(inner)
