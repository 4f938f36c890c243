"""LangChain messages to chat turns, and answers back to messages: pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from rsd_integrations.adapters.chat import call_turn, check_chat, merge_turns
from rsd_integrations.adapters.steps import summarise
from rsd_integrations.errors import PromptError
from rsd_integrations.langchain.params import PROVIDER
from rsd_integrations.langchain.tools import as_chunks, as_messages
from rsd_integrations.types import Generation, Message, StepEvent

_MEDIA = frozenset(
    f"{before}{kind}{behind}"
    for kind in ("image", "audio", "video", "file", "document", "media")
    for before, behind in (("", ""), ("input_", ""), ("output_", ""), ("", "_url"))
)
"""Types of parts that hold what a text model cannot read."""

_HELD = frozenset(("base64", "data", "file_data"))
_NAMED = frozenset(
    ("url", "image_url", "audio_url", "video_url", "file_url", "file_id", "file_uri", "source_type")
)
_FIELDS = _NAMED | {"type", "id", "index", "extras", "mime_type", "media_type", "detail", "filename"}
"""Where a part holds a medium or names one, and all fields of one that does no more than name it."""

_TEXTS = {**dict.fromkeys(("text", "text-plain", "input_text", "output_text"), "text"), "refusal": "refusal"}
"""Where parts of these types have their text."""


def to_chat(messages: Sequence[BaseMessage]) -> list[Message]:
    """Chat turns as chat templates take them.

    Raises:
        PromptError: there are no messages, one is of an unknown kind or has parts that are not text, or all
            are empty.
    """
    chat = to_turns(messages)
    check_chat(chat)
    return chat


def to_turns(messages: Sequence[BaseMessage]) -> list[Message]:
    """The same for any part of a chat, even an empty one.

    Raises:
        PromptError: a message is of an unknown kind, or has parts that are not text.
    """
    return merge_turns([_turn(message) for message in messages])


def to_result(generation: Generation, model: str) -> ChatResult:
    """A whole answer."""
    message = AIMessage(
        content=generation.text,
        additional_kwargs=_thought(generation.reasoning),
        **as_messages(generation.tool_calls, generation.invalid_tool_calls),
        **_end(generation, _names(model)),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


class Chunks:
    """What the events of one answer add to what was shown.

    Args:
        model: name to show in the metadata.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._first = True
        self._calls = 0

    def of(self, event: StepEvent) -> list[ChatGenerationChunk]:
        """The chunks that show an event; none if it adds nothing."""
        parts: list[dict[str, Any]] = []
        if event.delta or event.reasoning_delta:
            thought = _thought(event.reasoning_delta)
            parts.append({"content": event.delta, "additional_kwargs": thought})
        if event.tool_calls:
            # A chunk of their own: LangChain's event protocol loses calls beside text or in the last chunk.
            parts.append({"content": "", "tool_call_chunks": as_chunks(event.tool_calls, self._calls)})
            self._calls += len(event.tool_calls)
        if event.generation is not None:
            if not parts or event.tool_calls:
                parts.append({"content": ""})
            parts[-1] |= _end(event.generation) | {"chunk_position": "last"}
        # LangChain merges chunks key by key: a value that is sent twice is added up, joined or refused.
        if parts and self._first:
            parts[0]["response_metadata"] = {**_names(self._model), **parts[0].get("response_metadata", {})}
            self._first = False
        return [ChatGenerationChunk(message=AIMessageChunk(**part)) for part in parts]


def _thought(reasoning: str | None) -> dict[str, Any]:
    """Reasoning where ``content_blocks`` looks for it; nothing if there is none."""
    return {"reasoning_content": reasoning} if reasoning else {}


def _names(model: str) -> dict[str, Any]:
    return {"model_name": model, "model_provider": PROVIDER}


def _end(generation: Generation, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fields of an answer's end. ``names``: to add where no first chunk has told the model's names."""
    usage = generation.usage
    told = {"finish_reason": generation.finish_reason, "rsd": summarise(generation)}
    return {
        "usage_metadata": {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "response_metadata": {**(names or {}), **told},
    }


def _turn(message: BaseMessage) -> Message:
    turn = _unnamed(message)
    return turn | {"name": message.name} if message.name else turn


def _unnamed(message: BaseMessage) -> Message:
    match message:
        case SystemMessage():
            return {"role": "system", "content": _text(message)}
        case HumanMessage():
            return {"role": "user", "content": _text(message)}
        case AIMessage():
            return _assistant(message)
        case ToolMessage():
            return {"role": "tool", "content": _result(message), "tool_call_id": message.tool_call_id}
        case FunctionMessage():
            return {"role": "tool", "content": _text(message)}
        case ChatMessage():
            role = {"human": "user", "ai": "assistant"}.get(message.role, message.role)
            return {"role": role, "content": _text(message)}
    raise PromptError(
        f"a message of type {type(message).__name__} has no place in a chat: {message!r:.200}.",
        hint="Use system, human, AI and tool messages.",
    )


def _assistant(message: AIMessage) -> Message:
    # Invalid calls go into the text, so that the model sees what it is asked to mend.
    words = [_text(message), *map(_written, message.invalid_tool_calls)]
    turn: Message = {"role": "assistant", "content": "\n".join(filter(None, words))}
    if thought := message.additional_kwargs.get("reasoning_content") or _thoughts(message):
        turn["reasoning_content"] = thought
    if message.tool_calls:
        turn["tool_calls"] = [call_turn(one["name"], one["args"], one["id"]) for one in message.tool_calls]
    return turn


def _written(call: InvalidToolCall) -> str:
    """An invalid call as text. If its markup is gone, it is written as most models write calls."""
    name, arguments = call.get("name"), call.get("args") or ""
    return f'{{"name": "{name}", "arguments": {arguments}}}' if name and name not in arguments else arguments


def _thoughts(message: AIMessage) -> str:
    """The reasoning in messages with ``output_version="v1"``, whose content is a list of blocks."""
    parts = [part for part in message.content if isinstance(part, dict)]
    return "".join(str(part.get("reasoning") or "") for part in parts if part.get("type") == "reasoning")


def _text(message: BaseMessage) -> str:
    """Each part begins a new line, or "12" and "5" would be "125"; parts of a model's answer are one text."""
    if isinstance(message.content, str):
        return message.content
    between = "" if isinstance(message, AIMessage) else "\n"
    return between.join(_part(part, message) for part in message.content)


def _result(message: ToolMessage) -> str:
    """Dicts whose types happen to be those of parts are one JSON list, as LangChain writes other lists."""
    if isinstance(message.content, str):
        return message.content
    lines: list[str] = []
    for is_data, group in groupby(message.content, _is_data):
        parts = list(group)
        lines += [_json(parts)] if is_data else [_part(part, message) for part in parts]
    return "\n".join(lines)


def _is_data(part: Any) -> bool:
    """Whether a part of a tool's result is neither text nor a medium."""
    if isinstance(part, str):
        return False
    kind = str(part.get("type"))
    inner = (part.get("source"), part.get(kind))  # Anthropic's and OpenAI's have the medium one level deeper.
    medium = next((one for one in inner if isinstance(one, dict)), part)
    if kind not in _MEDIA or medium.get("type") == "text":
        return not isinstance(part.get(_TEXTS.get(kind)), str)
    if any(isinstance(medium.get(field), str | bytes) for field in _HELD):
        return False
    # What has more fields, as the files of a repository do, is a record of something that has a URL.
    return _NAMED.isdisjoint(medium) or not medium.keys() <= _FIELDS


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except Exception:  # As LangChain writes what is no JSON.
        return str(value)


def _part(part: Any, message: BaseMessage) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type")
    if field := _TEXTS.get(str(kind)):
        return _string(part.get(field), message)
    if isinstance(message, AIMessage) and str(kind) not in _MEDIA:
        # Thoughts, calls (they are in tool_calls) and a server's own work are no text of the answer.
        return ""
    raise PromptError(
        f"the content of a message of type {message.type!r} has a part of type {kind!r}, which is not text.",
        hint="RSD is for text models: remove images, audio and files.",
    )


def _string(text: Any, message: BaseMessage) -> str:
    if isinstance(text, str):
        return text
    raise PromptError(
        f"the content of a message of type {message.type!r} has a text part whose text is {text!r:.200}.",
        hint="Give a string there, or leave the part out.",
    )
