"""Lengths of chats and of parts of chats, which a template may refuse to render."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rsd_integrations.errors import PromptError
from rsd_integrations.output import Output
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.protocols import FREE, NONE
from rsd_integrations.types import Message

_ASKED: Message = {"role": "user", "content": "x"}
_SAID: Message = {"role": "assistant", "content": "x"}


def count_tokens(
    pipe: RSDPipeline, turns: Sequence[Message], output: Output = FREE, variables: Mapping[str, Any] = NONE
) -> int:
    """Length of a chat in the target's tokens, its chat template and tools included; 0 without turns.

    A part of a chat that the template refuses (it begins with an answer, or with a tool's result) is counted
    as its texts and, for each turn, the frame that the template puts around turns it accepts.

    Raises:
        EngineClosedError: the pipeline was closed.
        PromptError: a text cannot be encoded.
    """
    if not turns:
        return 0
    try:
        return pipe.count_tokens(list(turns), output=output, chat_template_kwargs=variables)
    except PromptError:
        one, three = (
            pipe.count_tokens(chat, output=output, chat_template_kwargs=variables)
            for chat in ([_ASKED], [_ASKED, _SAID, _ASKED])
        )
        text = len(pipe.token_ids("x"))
        frame = (three - one) // 2 - text
        return one - text - frame + sum(frame + len(pipe.token_ids(_text(turn))) for turn in turns)


def _text(turn: Message) -> str:
    calls = turn.get("tool_calls")
    written = json.dumps(calls, ensure_ascii=False, default=str) if calls else ""
    return str(turn.get("content") or "") + written
