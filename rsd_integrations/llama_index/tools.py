"""Tools in LlamaIndex's words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.tools import BaseTool, FunctionTool

from rsd_integrations.adapters.whole import Flaw, cut_off, no_whole_call
from rsd_integrations.errors import BackendError, ConfigError
from rsd_integrations.text.values import read_json

_REACT_ARGUMENTS = (
    "user_msg",
    "chat_history",
    "verbose",
    "allow_parallel_tool_calls",
    "error_on_no_tool_call",
    "error_on_tool_error",
    "tool_required",
    "tool_choice",
    "react_chat_formatter",
    "output_parser",
    "tool_retriever",
    "memory",
)


def chat_arguments(
    tools: Sequence[BaseTool] | None,
    user_msg: str | ChatMessage | None,
    chat_history: Sequence[ChatMessage] | None,
    *,
    parallel: bool,
    required: bool,
    tool_choice: Any,
) -> dict[str, Any]:
    """Arguments of ``chat`` that offer these tools.

    Raises:
        ConfigError: one of them is no tool.
    """
    wrong = [tool for tool in tools or () if not isinstance(tool, BaseTool)]
    if wrong:
        raise ConfigError(
            f"tools must be LlamaIndex tools, not {wrong[0]!r:.200}.",
            hint="Wrap functions: FunctionTool.from_defaults(fn).",
        )
    asked = ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg
    given: dict[str, Any] = {"messages": [*(chat_history or ()), *([asked] if asked else ())]}
    if tools:
        given["tools"] = [_offered(tool) for tool in tools]
        given["tool_choice"] = tool_choice or ("required" if required else "auto")
        given["parallel_tool_calls"] = parallel
    return given


def _offered(tool: BaseTool) -> dict[str, Any]:
    made = tool.metadata.to_openai_tool(skip_length_check=True)
    # Made names are OpenAI's, with "_" for spaces, dots and brackets; LlamaIndex looks tools up by their own.
    made["function"]["name"] = tool.metadata.name
    return made


def is_program(tools: Sequence[BaseTool] | None) -> bool:
    """Whether a program of LlamaIndex makes the call: its tool is one that programs make of a form."""
    return any(
        isinstance(tool, FunctionTool) and tool.real_fn.__module__ == get_function_tool.__module__
        for tool in tools or ()
    )


def selections(response: ChatResponse, *, required: bool, forced: bool) -> list[ToolSelection]:
    """The calls of an answer.

    Args:
        required: there has to be one.
        forced: the model could write nothing else.

    Raises:
        BackendError: there has to be one, and the answer was cut off at a limit; or it was forced, and a stop
            string cut it off, or it is invalid.
        ValueError: there is none, and there has to be one; or one cannot be read.
    """
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if required and not calls:
        refuse(cut(response, "call"))
        if forced:
            refuse(_wrong_call(response.message))
        raise ValueError(f"Expected at least one tool call, but got {response.message.content!r:.300}.")
    return [
        ToolSelection(
            tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=_arguments_of(call)
        )
        for call in calls
    ]


def read_arguments(given: Any) -> dict[str, Any] | None:
    """Arguments of a call, which other LLMs give as JSON text; None if they are no JSON object."""
    if isinstance(given, str):
        try:
            given = read_json(given) if given.strip() else {}
        except ValueError:
            return None
    return {} if given is None else given if isinstance(given, dict) else None


def cut(response: ChatResponse, what: str) -> Flaw | None:
    """What is wrong with an answer that a limit ended. ``what``: what it was to be."""
    reason = response.raw.get("finish_reason") if response.raw else None
    return cut_off(response.message.content or "", reason, what)


def refuse(flaw: Flaw | None) -> None:
    """Raise what is wrong, if anything is.

    Raises:
        BackendError: something is.
    """
    if flaw is not None:
        raise BackendError(flaw.message, hint=flaw.hint)


def _wrong_call(message: ChatMessage) -> Flaw:
    for call in message.additional_kwargs.get("invalid_tool_calls", ()):
        if _is_whole(call["text"]):  # Nothing cut it.
            name = f" of {call['name']!r}" if call["name"] else ""
            return Flaw(
                f"the call{name} cannot be used, {call['error']}: {call['text'][-200:]!r}.",
                "Give the tool an object with properties for its arguments, and bounds for its numbers: "
                "those are enforced.",
            )
    return no_whole_call(message.content or "")


def _is_whole(text: str) -> bool:
    """Whether the JSON of a call is complete, valid or not: Python's parser also takes NaN and the like."""
    try:
        json.JSONDecoder().raw_decode(text, max(0, text.find("{")))
    except (ValueError, RecursionError):
        return False
    return True


def _arguments_of(call: ToolCallBlock) -> dict[str, Any]:
    arguments = read_arguments(call.tool_kwargs)
    if arguments is None:
        # With none in their place, a tool that needs none would run.
        raise ValueError(
            f"The arguments of {call.tool_name!r} are no JSON object: {call.tool_kwargs!r:.300}."
        )
    return arguments


def one_call(response: ChatResponse) -> ChatResponse:
    """The response with its first call alone."""
    message = response.message
    calls = [index for index, block in enumerate(message.blocks) if isinstance(block, ToolCallBlock)]
    message.blocks = [block for index, block in enumerate(message.blocks) if index not in calls[1:]]
    if told := message.additional_kwargs.get("tool_calls"):
        message.additional_kwargs["tool_calls"] = told[:1]
    return response


def react_arguments(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of ``predict_and_call`` that LlamaIndex reads, with the parts of ReAct that it leaves out by
    default; and the rest.
    """
    own = {name: value for name, value in given.items() if name in _REACT_ARGUMENTS}
    parts = {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser()}
    return parts | own, {name: value for name, value in given.items() if name not in own}
