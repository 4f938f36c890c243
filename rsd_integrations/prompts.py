"""Check a prompt before anything is queued: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsd_integrations.errors import PromptError
from rsd_integrations.types import Message, Prompt

__all__ = ["as_messages", "check_prompt"]


def check_prompt(prompt: Any) -> Prompt:
    """A prompt as the backends take it: text, or a list of plain message dicts.

    Raises:
        PromptError: it is empty or no such thing.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError(f"the prompt is empty: {prompt!r}.", hint="Give a question or a chat.")
        return prompt
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(
            f"a prompt must be a string or a list of messages, not {type(prompt).__name__}: {prompt!r}.",
            hint='Write "text" or [{"role": "user", "content": "text"}].',
        )
    if not prompt:
        raise PromptError("the list of messages is empty.", hint="Give at least one message.")
    return [_check_message(message, index) for index, message in enumerate(prompt)]


def _check_message(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(
            f"message {index} must be a dict with a role, not {message!r}.",
            hint='Write {"role": "user", "content": "text"}.',
        )
    if "content" not in message and "tool_calls" not in message:
        raise PromptError(
            f"message {index} has neither content nor tool_calls: {message!r}.",
            hint='Add "content": "text".',
        )
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise PromptError(
            f"the content of message {index} must be a string or a list of text parts, not {content!r}.",
            hint="Convert it to text first.",
        )
    return dict(message)


def as_messages(prompt: Prompt) -> list[Message]:
    """A lone text is one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
