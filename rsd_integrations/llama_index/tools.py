"""Tools in LlamaIndex's words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool

from rsd_integrations.adapters.whole import Flaw, cut_off, no_whole_call
from rsd_integrations.errors import BackendError, ConfigError

__all__ = ["chat_arguments", "cut", "one_call", "react_arguments", "read_arguments", "refuse", "selections"]


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
    tools = tools or ()
    wrong = [tool for tool in tools if not isinstance(tool, BaseTool)]
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
    offered = tool.metadata.to_openai_tool(skip_length_check=True)
    # As LlamaIndex will look for it: OpenAI's API takes fewer characters than models here.
    offered["function"]["name"] = tool.metadata.get_name()
    return offered


def selections(response: ChatResponse, *, required: bool, forced: bool) -> list[ToolSelection]:
    """The calls of an answer.

    Args:
        required: there has to be one.
        forced: the model could write nothing else.

    Raises:
        BackendError: it was cut off, at a limit or (where it was forced) by a stop string.
        ValueError: there is none, and there has to be one; or one cannot be read.
    """
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if required and not calls:
        refuse(cut(response, "call"))
        if forced:
            refuse(no_whole_call(response.message.content or ""))
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
            given = json.loads(given) if given.strip() else {}
        except ValueError:
            return None
    return {} if given is None else given if isinstance(given, dict) else None


def cut(response: ChatResponse, what: str) -> Flaw | None:
    """What is wrong with an answer that a limit ended. ``what``: it was to be."""
    reason = response.raw.get("finish_reason") if response.raw else None
    return cut_off(response.message.content or "", reason, what)


def refuse(flaw: Flaw | None) -> None:
    """Raise what is wrong, if anything is.

    Raises:
        BackendError: it is.
    """
    if flaw is not None:
        raise BackendError(flaw.message, hint=flaw.hint)


def _arguments_of(call: ToolCallBlock) -> dict[str, Any]:
    arguments = read_arguments(call.tool_kwargs)
    if arguments is None:
        # Without them, tools that need none would run.
        raise ValueError(
            f"The arguments of {call.tool_name!r} are no JSON object: {call.tool_kwargs!r:.300}."
        )
    return arguments


def one_call(response: ChatResponse) -> ChatResponse:
    """With the first call alone."""
    message = response.message
    calls = [index for index, block in enumerate(message.blocks) if isinstance(block, ToolCallBlock)]
    message.blocks = [block for index, block in enumerate(message.blocks) if index not in calls[1:]]
    if told := message.additional_kwargs.get("tool_calls"):
        message.additional_kwargs["tool_calls"] = told[:1]
    return response


_REACT = ("react_chat_formatter", "output_parser", "tool_retriever", "memory")
_CALLING = (
    "user_msg",
    "chat_history",
    "verbose",
    "allow_parallel_tool_calls",
    "error_on_no_tool_call",
    "error_on_tool_error",
    "tool_required",
)
"""Arguments of ``predict_and_call`` itself."""


def react_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of ``predict_and_call``, with the parts of ReAct that LlamaIndex leaves out by default; and
    the parameters of the call.
    """
    given: dict[str, Any] = {
        "react_chat_formatter": ReActChatFormatter(),
        "output_parser": ReActOutputParser(),
    }
    given |= {name: value for name, value in kwargs.items() if name in (*_REACT, *_CALLING)}
    return given, {name: value for name, value in kwargs.items() if name not in given}
