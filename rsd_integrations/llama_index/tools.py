"""Tools in LlamaIndex's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool

from rsd_integrations.errors import ConfigError

__all__ = ["chat_arguments", "one_call", "react_arguments", "selections"]


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


def selections(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """The calls of an answer.

    Raises:
        ValueError: there is none, and there has to be one.
    """
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if required and not calls:
        raise ValueError(f"Expected at least one tool call, but got {response.message.content!r:.300}.")
    return [
        ToolSelection(
            tool_id=call.tool_call_id or "",
            tool_name=call.tool_name,
            tool_kwargs=call.tool_kwargs if isinstance(call.tool_kwargs, dict) else {},
        )
        for call in calls
    ]


def one_call(response: ChatResponse) -> ChatResponse:
    """With the first call alone."""
    blocks = response.message.blocks
    calls = [index for index, block in enumerate(blocks) if isinstance(block, ToolCallBlock)]
    response.message.blocks = [block for index, block in enumerate(blocks) if index not in calls[1:]]
    return response


def react_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``predict_and_call`` with the parts of ReAct that LlamaIndex leaves out by default."""
    return {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser()} | given
