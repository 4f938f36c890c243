"""Rewrites tool calls, their results and system turns for templates with rules of their own. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rsd_integrations.types import Message

_NINE = re.compile(r"[a-zA-Z0-9]{9}")
"""The ids that Mistral's templates insist on."""
_TELLING = ("system", "developer")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def ways_to_write(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The chat as it is, then rewritten for templates that refuse other models' ids, several calls in a
    turn, system turns, or both thoughts and words before a call.
    """
    yield messages
    named = [_with_short_ids(message) for message in messages]
    if named != messages:
        yield named
    apart = _one_by_one(named)
    if len(apart) > len(named):
        yield apart
    asked = next((place for place, one in enumerate(apart) if one.get("role") not in _TELLING), len(apart))
    if 0 < asked < len(apart) and apart[asked].get("role") == "user":
        told = [str(one.get("content") or "") for one in apart[: asked + 1]]
        yield [{**apart[asked], "content": "\n\n".join(filter(None, told))}, *apart[asked + 1 :]]
    bare = [_with_words_alone(message) for message in messages]
    if bare != messages:
        yield from ways_to_write(bare)


def _with_words_alone(message: Message) -> Message:
    """Without thoughts where there are words before a call: gpt-oss's template takes only one of the two."""
    thoughts = _THOUGHTS if message.get("content") and _calls(message) else ()
    return {key: value for key, value in message.items() if key not in thoughts}


def _with_short_ids(message: Message) -> Message:
    if calls := _calls(message):
        return {**message, "tool_calls": [{**call, "id": _short(call.get("id"))} for call in calls]}
    if message.get("role") == "tool":
        return {**message, "tool_call_id": _short(message.get("tool_call_id"))}
    return message


def _short(key: object) -> str:
    """Nine letters and digits: the id itself if it is that, else a hash of it."""
    text = str(key or "")
    return text if _NINE.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:9]


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """Each call in a turn of its own, with its results behind it."""
    made: list[Message] = []
    left = list(messages)
    while left:
        message = left.pop(0)
        calls, results = _calls(message), []
        while len(calls) > 1 and left and left[0].get("role") == "tool":
            results.append(left.pop(0))
        made += _interleaved(message, calls, results) if len(calls) > 1 else [message]
    return made


def _interleaved(message: Message, calls: Sequence[Any], results: Sequence[Message]) -> list[Message]:
    """Each call with its results. What was said and thought stands before the first call; results whose id
    does not name one call are assigned in order.
    """
    said: Message = {"role": message["role"], "content": ""}
    turns = [[{**(said if index else message), "tool_calls": [call]}] for index, call in enumerate(calls)]
    ids = [call["id"] for call in calls]
    for position, result in enumerate(results):
        key = result["tool_call_id"]
        turns[ids.index(key) if ids.count(key) == 1 else min(position, len(ids) - 1)].append(result)
    return [turn for part in turns for turn in part]


def _calls(message: Message) -> list[Any]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls) else []
