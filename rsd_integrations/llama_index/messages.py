"""LlamaIndex messages to chat turns, and answers back: pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from rsd_integrations.adapters.chat import call_turn, check_chat, merge_turns
from rsd_integrations.adapters.steps import summarise
from rsd_integrations.errors import PromptError
from rsd_integrations.llama_index.tools import read_arguments
from rsd_integrations.types import Generation, InvalidToolCall, Message, StepEvent, ToolCall

REACT_STOP = "Observation:"
"""Where a ReAct model has to stop: what follows is the tool's to say."""

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def to_chat(messages: Sequence[ChatMessage], system_prompt: str | None = None) -> list[Message]:
    """Chat turns as chat templates take them, with the system prompt in front unless it is there already.

    Raises:
        PromptError: there are no messages, one has parts that are not text, or all are empty.
    """
    listed = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not listed or not all(isinstance(message, ChatMessage) for message in messages):
        raise PromptError(
            f"a chat must be a list of ChatMessage, not {messages!r:.200}.",
            hint="Write [ChatMessage(role='user', content='...')], or use complete(text).",
        )
    turns = [_turn(message) for message in messages]
    check_chat(turns)
    first: Message = {"role": "system", "content": system_prompt}
    return merge_turns([first, *turns] if system_prompt and turns[0] != first else turns)


def is_react(messages: Sequence[ChatMessage]) -> bool:
    """Whether the chat asks for LlamaIndex's ReAct format."""
    asked = (str(message.content) for message in messages if message.role == MessageRole.SYSTEM)
    return any(all(word in text for word in ("Thought:", "Action Input:", REACT_STOP)) for text in asked)


@dataclass
class Answer:
    """An answer as it grows. ``complete`` and ``chat`` show its end, streams every state.

    Args:
        model: name to show.
    """

    model: str
    _text: str = ""
    _thoughts: str = ""
    _calls: list[ToolCall] = field(default_factory=list)
    _invalid: list[InvalidToolCall] = field(default_factory=list)
    _delta: str = ""
    _thought: str = ""
    _generation: Generation | None = None

    def take(self, event: StepEvent) -> bool:
        """Take an event in. Whether it adds something to show."""
        invalid = [call for call in event.tool_calls if isinstance(call, InvalidToolCall)]
        # LlamaIndex has no place for invalid calls: they are shown as what they are, text.
        self._delta = event.delta + "".join(call.text for call in invalid)
        self._thought = event.reasoning_delta
        self._text += self._delta
        self._thoughts += self._thought
        self._invalid += invalid
        self._calls += [call for call in event.tool_calls if isinstance(call, ToolCall)]
        self._generation = event.generation
        return bool(self._delta or self._thought or event.tool_calls or event.generation)

    def as_chat(self) -> ChatResponse:
        """The chat response so far."""
        # LlamaIndex's streaming programs look for calls here: they do not know blocks.
        found = {
            "tool_calls": [_openai_call(call) for call in self._calls],
            "invalid_tool_calls": [call.model_dump() for call in self._invalid],
        }
        message = ChatMessage(
            role=MessageRole.ASSISTANT,
            blocks=[*self._blocks(), *map(_call_block, self._calls)],
            additional_kwargs={name: calls for name, calls in found.items() if calls},
        )
        thought = {"thinking_delta": self._thought} if self._thought else {}
        return ChatResponse(message=message, delta=self._delta, raw=self._raw(), additional_kwargs=thought)

    def as_completion(self) -> CompletionResponse:
        """The completion so far."""
        return CompletionResponse(text=self._text, delta=self._delta, raw=self._raw())

    def _blocks(self) -> Iterator[ContentBlock]:
        if self._thoughts:
            yield ThinkingBlock(content=self._thoughts)
        if self._text or not self._calls:
            yield TextBlock(text=self._text)

    def _raw(self) -> dict[str, Any] | None:
        """Facts of a whole answer, of JSON types only."""
        if self._generation is None:
            return None
        usage = self._generation.usage
        return {
            "model": self.model,
            "finish_reason": self._generation.finish_reason,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.total_tokens,
            },
            "rsd": summarise(self._generation),
        } | ({"reasoning": self._thoughts} if self._thoughts else {})


def _turn(message: ChatMessage) -> Message:
    role = _ROLES[message.role]
    calls, unread = _calls(message)
    turn: Message = {"role": role, "content": "\n".join([*_texts(message.blocks, message.role), *unread])}
    if thoughts := [block.content or "" for block in message.blocks if isinstance(block, ThinkingBlock)]:
        turn["reasoning_content"] = "".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    for name in ("tool_call_id", "name"):
        if role == "tool" and (value := message.additional_kwargs.get(name)):
            turn[name] = value
    return turn


def _texts(blocks: Sequence[Any], role: MessageRole) -> Iterator[str]:
    for block in blocks:
        match block:
            case TextBlock():
                yield block.text
            case CitableBlock():
                yield from _texts(block.content, role)
            case CitationBlock():
                yield from _texts([block.cited_content], role)
            # Thoughts and calls go elsewhere in the turn; cache points are for servers.
            case ThinkingBlock() | ToolCallBlock() | CachePoint():
                pass
            case _:
                raise PromptError(
                    f"a {role.value} message has a part of type {block.block_type!r}, which is not text.",
                    hint="RSD is for text models: remove images, audio, video and files.",
                )


def _calls(message: ChatMessage) -> tuple[list[dict[str, Any]], list[str]]:
    """The calls of a message, and the text of those whose arguments cannot be read."""
    found = [
        (block.tool_call_id, block.tool_name, block.tool_kwargs)
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    # LLMs of older versions keep their calls here alone, newer ones in both places.
    old = message.additional_kwargs.get("tool_calls") or () if not found else ()
    calls, unread = [], []
    for key, name, given in [*found, *map(_old_call, old)]:
        if (arguments := read_arguments(given)) is None:
            unread.append(f'{{"name": "{name}", "arguments": {given}}}')
        else:
            calls.append(call_turn(name, arguments, key))
    return calls, unread


def _old_call(call: Any) -> tuple[str | None, str, Any]:
    """Id, name and arguments in OpenAI's words or Anthropic's."""
    plain = call.model_dump() if hasattr(call, "model_dump") else call
    function = plain.get("function") or plain if isinstance(plain, dict) else None
    if not isinstance(function, dict):
        raise PromptError(
            f"a message has a call of unknown form: {call!r:.200}.", hint="Write it as OpenAI's API has it."
        )
    return plain.get("id"), str(function.get("name")), function.get("arguments", function.get("input"))


def _openai_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call.id, "type": "function", "function": function}


def _call_block(call: ToolCall) -> ToolCallBlock:
    return ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
