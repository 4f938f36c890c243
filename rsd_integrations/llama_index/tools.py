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

from rsd_integrations.errors import BackendError, ConfigError

__all__ = ["chat_arguments", "check_length", "one_call", "react_arguments", "read_arguments", "selections"]


def chat_arguments(
    tools: Sequence[BaseTool],
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
    wrong = [tool for tool in tools if not isinstance(tool, BaseTool)]
    if wrong:
        raise ConfigError(
            f"tools must be LlamaIndex tools, not {wrong[0]!r:.200}.",
            hint="Wrap functions: FunctionTool.from_defaults(fn).",
        )
    asked = ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg
    given: dict[str, Any] = {"messages": [*(chat_history or ()), *([asked] if asked else ())]}
    if tools:
        given["tools"] = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        given["tool_choice"] = tool_choice or ("required" if required else "auto")
        given["parallel_tool_calls"] = parallel
    return given


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
        check_length(response, "call")
        if forced:
            raise BackendError(
                f"the answer holds no whole call: {response.message.content!r:.300}.",
                hint="Where a stop string ended it, leave that out.",
            )
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


def check_length(response: ChatResponse, what: str) -> None:
    """Refuse an answer that is no whole one.

    Args:
        what: it was to be, for the message.

    Raises:
        BackendError: it was cut off at a limit.
    """
    if response.raw and response.raw.get("finish_reason") == "length":
        text = response.message.content or ""
        raise BackendError(
            f"the {what} was cut off at a limit of tokens or steps: {text[-200:]!r}.",
            hint="Raise max_tokens or max_steps, or bound the lengths in the form.",
        )


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
    blocks = response.message.blocks
    calls = [index for index, block in enumerate(blocks) if isinstance(block, ToolCallBlock)]
    response.message.blocks = [block for index, block in enumerate(blocks) if index not in calls[1:]]
    return response


def react_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``predict_and_call`` with the parts of ReAct that LlamaIndex leaves out by default."""
    return {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser()} | given
