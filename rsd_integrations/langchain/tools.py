"""Tools and structured output in LangChain's words."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.messages import InvalidToolCall as InvalidCallMessage
from langchain_core.messages import ToolCall as CallMessage
from langchain_core.messages.tool import (
    ToolCallChunk,
    invalid_tool_call,
    tool_call,
    tool_call_chunk,
)
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from pydantic import BaseModel

from rsd_integrations.adapters.whole import Flaw, cut_off, no_document, no_whole_call
from rsd_integrations.errors import ConfigError
from rsd_integrations.langchain.schemas import as_tool, document_schema, is_pydantic
from rsd_integrations.types import InvalidToolCall, ToolCall

_FIRST_CALL = 1000
"""Index of a stream's first call. Calls without an index LangChain joins, as if they were pieces of one; with
a small one it joins them to text and reasoning, whose blocks have small indexes of its own."""

METHODS = ("json_schema", "function_calling", "json_mode")


def binding(
    tools: Sequence[Any],
    *,
    tool_choice: Any = None,
    strict: bool | None = None,
    parallel_tool_calls: bool | None = None,
    response_format: Any = None,
) -> dict[str, Any]:
    """Call parameters that offer these tools.

    Args:
        tools: whatever LangChain takes: functions, tools, Pydantic models, OpenAI dicts, ...

    Raises:
        ConfigError: one of them is no tool.
    """
    # A lone LangChain tool can be iterated over, too, but yields no tools.
    if isinstance(tools, str | Mapping) or not isinstance(tools, Collection):
        raise ConfigError(f"tools={tools!r:.200} is no list of tools.", hint="Write bind_tools([tool, ...]).")
    given = {
        "tools": [as_tool(tool, strict) for tool in tools],
        "tool_choice": tool_choice,
        "parallel_tool_calls": parallel_tool_calls,
        "response_format": response_format,
    }
    return {name: value for name, value in given.items() if value is not None and value != []}


def structured(
    model: BaseChatModel, schema: Any, *, method: str, include_raw: bool, strict: bool | None
) -> Runnable[LanguageModelInput, Any]:
    """A model whose answers are objects of the schema.

    Args:
        schema: Pydantic model, TypedDict, JSON schema or OpenAI tool; None only with "json_mode".
        method: "json_schema": the answer is a document of the schema; "function_calling": the
            arguments of a forced call; "json_mode": any JSON object (say in the prompt which one).

    Raises:
        ConfigError: the method is unknown, ``schema`` is missing or no schema, or "json_mode" is to be
            strict.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is not known.", hint=f"Use one of {', '.join(METHODS)}.")
    if schema is None and method != "json_mode":
        raise ConfigError(f"method={method!r} needs a schema.", hint='Give one, or use method="json_mode".')
    if schema is not None and method == "json_mode" and strict:
        raise ConfigError("json_mode cannot be strict: it holds no schema.", hint='Use method="json_schema".')
    parser: Runnable[Any, Any]
    if method == "function_calling":
        tool = as_tool(schema, strict)
        name = tool["function"]["name"]
        tools, asked = [tool], {"tool_choice": name, "parallel_tool_calls": False}
        parser = RunnableLambda(_called) | _tool_parser(schema, name)
    else:
        document = None if schema is None else document_schema(schema)
        tool = {} if document is None else _shown(document)
        tools, asked = [], {"response_format": _format(document if method == "json_schema" else None, strict)}
        known = is_pydantic(schema)
        parser = RunnableLambda(_whole) | (
            _DocumentParser(pydantic_object=schema) if known else JsonOutputParser()
        )
    told = {"kwargs": {"method": method, "strict": strict}, "schema": tool}
    bound = model.bind_tools(tools, **asked, ls_structured_output_format=told)
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    ).with_fallbacks([RunnablePassthrough.assign(parsed=lambda _: None)], exception_key="parsing_error")
    # The model goes first: a chain passes the parameters of a call to its first part alone.
    return bound | RunnableMap(raw=RunnablePassthrough()) | parsed


def as_messages(
    calls: Sequence[ToolCall], invalid: Sequence[InvalidToolCall]
) -> dict[str, list[CallMessage] | list[InvalidCallMessage]]:
    """Fields of an AIMessage."""
    return {
        "tool_calls": [tool_call(name=call.name, args=call.arguments, id=call.id) for call in calls],
        "invalid_tool_calls": [
            invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=call.error)
            for call in invalid
        ],
    }


def as_chunks(calls: Sequence[ToolCall | InvalidToolCall], before: int) -> list[ToolCallChunk]:
    """Calls of a stream, each whole.

    Args:
        calls: the next ones.
        before: how many calls the stream has had.
    """
    # LangChain mends the JSON of chunks: an invalid call keeps its markup, so that it stays invalid.
    return [
        tool_call_chunk(
            name=call.name,
            args=json.dumps(call.arguments, ensure_ascii=False) if isinstance(call, ToolCall) else call.text,
            id=call.id,
            index=index,
        )
        for index, call in enumerate(calls, _FIRST_CALL + before)
    ]


class _DocumentParser(PydanticOutputParser[Any]):
    def _parse_obj(self, obj: Any) -> Any:
        try:
            return _as_model(self.pydantic_object, obj)
        except ValueError as error:  # Of either version of Pydantic.
            raise self._parser_exception(error, obj) from error


def _format(document: dict[str, Any] | None, strict: bool | None) -> dict[str, Any]:
    if document is None:
        return {"type": "json_object"}
    named = {"name": document["title"], "schema": document, "strict": bool(strict)}
    return {"type": "json_schema", "json_schema": named}


def _shown(document: dict[str, Any]) -> dict[str, Any]:
    """A schema as traces show it: LangChain's tracing reads tools."""
    return {"type": "function", "function": {"name": document["title"], "parameters": document}}


def _tool_parser(schema: Any, name: str) -> Runnable[Any, Any]:
    parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    if not is_pydantic(schema):
        return parser
    return parser | RunnableLambda(partial(_as_model, schema))


def _as_model(model: Any, document: Any) -> Any:
    """The object that a document is, read as JSON: there alone strict models take strings for dates."""
    if issubclass(model, BaseModel):
        return model.model_validate_json(json.dumps(document))
    return model.parse_obj(document)  # Of Pydantic 1, which knows no strictness.


def _whole(message: AIMessage) -> AIMessage:
    """The message, unless its document is cut off: LangChain's parsers would mend it silently."""
    _refuse(_cut(message) or no_document(message.text), message.text)
    return message


def _called(message: AIMessage) -> AIMessage:
    """The message, unless its call is cut off: LangChain's parsers would give None."""
    _refuse(_cut(message), message.text)
    if not message.tool_calls:
        written = "".join(call["args"] or "" for call in message.invalid_tool_calls) or message.text
        _refuse(no_whole_call(written), written)
    return message


def _cut(message: AIMessage) -> Flaw | None:
    return cut_off(message.text, message.response_metadata.get("finish_reason"))


def _refuse(flaw: Flaw | None, written: str) -> None:
    if flaw is not None:
        raise OutputParserException(str(flaw), llm_output=written)
