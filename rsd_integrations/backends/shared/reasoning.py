"""Which markup a reasoning model puts around its thinking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsd_integrations.encoding.plain import added_tokens
from rsd_integrations.thoughts import ReasoningTags

__all__ = ["literal", "reasoning_tags"]

_FIELDS = ("reasoning_content", "reasoning", "thinking")


def reasoning_tags(tokenizer: Any, prompt: tuple[int, ...] = ()) -> ReasoningTags | None:
    """The tags of a tokenizer's response template, else <think> and </think> if it has those tokens.

    Args:
        prompt: the rendered prompt: a template may open the thinking itself.
    """
    found = _from_response_template(tokenizer) or _from_vocabulary(tokenizer)
    if found is None:
        return None
    opening, closing = found
    end: str = tokenizer.decode(list(prompt[-16:]), skip_special_tokens=False)
    return ReasoningTags(opening, closing, open_in_prompt=end.rstrip().endswith(opening.rstrip()))


def _from_response_template(tokenizer: Any) -> tuple[str, str] | None:
    template = getattr(tokenizer, "response_template", None)
    fields = template.get("fields", {}) if isinstance(template, Mapping) else {}
    for name in _FIELDS:
        field = fields.get(name) or {}
        opening, closing = literal(field, "open"), literal(field, "close")
        if opening and closing:
            return opening, closing
    return None


def literal(field: Mapping[str, Any], name: str) -> str | None:
    """What opens or closes a field: response templates give a text, a list of them, or a pattern."""
    found = field.get(name)
    found = found[0] if isinstance(found, list) and found else found
    return found.strip() if isinstance(found, str) and found.strip() else None


def _from_vocabulary(tokenizer: Any) -> tuple[str, str] | None:
    added = {token.content for token in added_tokens(tokenizer)}
    return ("<think>", "</think>") if {"<think>", "</think>"} <= added else None
