"""Which tokens a chat template writes: some put them together, so that no source shows them whole."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rsd_integrations.types import Message

_CALL = {"id": "rsdprobe1", "type": "function", "function": {"name": "rsd_probe", "arguments": {"x": "x"}}}
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "rsd_probe",
        "description": "x",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}},
    },
}
"""A tool that no template and no text knows of: where it is shown, tools are."""
_TOLD: Message = {"role": "system", "content": "x"}
_ASKED: Message = {"role": "user", "content": "x"}
_SAID: Message = {"role": "assistant", "content": "x"}
_THOUGHT: Message = {"role": "assistant", "content": "x", "reasoning_content": "x", "thinking": "x"}
_RESULT: Message = {"role": "tool", "content": "x", "name": "rsd_probe", "tool_call_id": _CALL["id"]}
_CALLING: Sequence[Message] = [_ASKED, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]

_TURNS: tuple[Sequence[Message], ...] = (
    [_TOLD, _ASKED],
    [{"role": "developer", "content": "x"}, _ASKED],
    [_ASKED, _SAID],
    [_ASKED, _SAID, _ASKED],
    [_ASKED, {"role": "tool", "content": "x"}],
    [_ASKED, {"role": "tool_response", "content": "x"}],
    [_ASKED, {"role": "function", "content": "x"}],
)
_TOOLS: tuple[Sequence[Message], ...] = (
    [_TOLD, _ASKED],
    [*_CALLING, _RESULT],
    [*_CALLING, _RESULT, _SAID, _ASKED],
)
_THINKING: tuple[Sequence[Message], ...] = ([_ASKED], [_ASKED, _THOUGHT], [_ASKED, _THOUGHT, _ASKED])
_MODES: tuple[Mapping[str, bool], ...] = (
    {},
    {"enable_thinking": True, "thinking": True},
    {"enable_thinking": False, "thinking": False},
)
_ROLE = "rsdprobe"
_WORD = re.compile(r"\w(?:.*\w)?", re.DOTALL)
"""A token from its first letter to its last."""
_OURS = json.dumps([_TURNS, _TOOLS, _THINKING, PROBE_TOOL])
"""What the probes bring along themselves: a token in it (a word, say) need not be the template's."""


def written(tokenizer: Any, tokens: Collection[str]) -> frozenset[str]:
    """Those of the tokens that the chat template writes around turns, thoughts, tools and calls."""
    prompts = [
        _shown(tokenizer, chat, add_generation_prompt=True, **mode) for mode in _MODES for chat in _THINKING
    ]
    tools = [_shown(tokenizer, chat, tools=[PROBE_TOOL], **mode) for mode in _MODES for chat in _TOOLS]
    return _those_in("\0".join(prompts + tools), tokens) | written_around_turns(tokenizer, tokens)


def written_around_turns(tokenizer: Any, tokens: Collection[str], **template_kwargs: Any) -> frozenset[str]:
    """Those of the tokens that the chat template writes around turns of any role.

    Args:
        template_kwargs: further variables of the template.
    """
    turns = [_shown(tokenizer, chat, **template_kwargs) for chat in _TURNS]
    named = _shown(tokenizer, [_ASKED, {"role": _ROLE, "content": "x"}], **template_kwargs)
    return _those_in("\0".join(turns), tokens) | _around_a_role(named, tokens)


def _those_in(text: str, tokens: Collection[str]) -> frozenset[str]:
    return frozenset(
        # Words are what templates say themselves: a date, a system prompt.
        token
        for token in tokens
        if token in text and not token.isalnum() and token not in _OURS
    )


def _around_a_role(text: str, tokens: Collection[str]) -> frozenset[str]:
    """The tokens made of a word and the signs on both sides of a role, such as <|...|>."""
    before, shown, after = text.partition(_ROLE)
    words = [(token, found) for token in tokens if shown and (found := _WORD.search(token))]
    parts = [
        (token, token[: found.start()].lstrip(), token[found.end() :].rstrip()) for token, found in words
    ]
    return frozenset(
        token
        for token, left, right in parts
        if left and right and before.endswith(left) and after.startswith(right)
    )


def _shown(tokenizer: Any, chat: Sequence[Message], **variables: Any) -> str:
    """A chat as the template writes it, behind a system turn if it wants one; "" if it refuses."""
    for turns in ([*chat], [_TOLD, *chat]):
        with suppress(Exception):  # Jinja's, or whatever a template stumbles over.
            return str(tokenizer.apply_chat_template(turns, tokenize=False, **variables))
    return ""
