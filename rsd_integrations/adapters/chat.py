"""Chats as chat templates like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsd_integrations.errors import PromptError
from rsd_integrations.types import Message

_MERGED = ("system", "user", "assistant")


def merge_turns(messages: Sequence[Message]) -> list[Message]:
    """Join neighbours of one role and name: many templates want user and assistant to alternate."""
    merged: list[Message] = []
    for message in messages:
        if merged and _are_one(merged[-1], message):
            texts = [str(text) for text in (merged[-1]["content"], message["content"]) if text]
            merged[-1] = {**merged[-1], "content": "\n\n".join(texts)}
        else:
            merged.append(dict(message))
    return merged


def check_chat(messages: Sequence[Message]) -> None:
    """Refuse a chat that says nothing.

    Raises:
        PromptError: there are no messages, or neither text nor a tool call in them.
    """
    if not messages:
        raise PromptError("the list of messages is empty.", hint="Give at least one message.")
    if not any(
        str(message.get("content") or "").strip() or message.get("tool_calls") for message in messages
    ):
        raise PromptError(f"the chat is empty: {list(messages)!r:.200}.", hint="Give a question.")


def call_turn(name: str, arguments: Any, id: str | None) -> dict[str, Any]:
    """A call in a turn. Templates write the arguments as JSON themselves: a string would be encoded twice."""
    return {"type": "function", "id": id or "", "function": {"name": name, "arguments": arguments}}


def _are_one(first: Message, second: Message) -> bool:
    if first["role"] not in _MERGED or not first.keys() | second.keys() <= {"role", "content", "name"}:
        return False
    return all(first.get(key) == second.get(key) for key in ("role", "name"))
