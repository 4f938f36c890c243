"""Which markup a reasoning model puts around its thinking."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rsd_integrations.encoding import chat_template_text
from rsd_integrations.encoding.plain import added_tokens, alternatives
from rsd_integrations.text.thoughts import ReasoningTags

_FIELDS = ("reasoning_content", "reasoning", "thinking")

_KNOWN = (
    ReasoningTags("<think>", "</think>", answer="<response>", end="</response>"),  # Granite 3.3, ERNIE 4.5
    ReasoningTags("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ReasoningTags(  # Command A and R7B
        "<|START_THINKING|>", "<|END_THINKING|>", answer="<|START_RESPONSE|>", end="<|END_RESPONSE|>"
    ),
    ReasoningTags("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningTags("<mm:think>", "</mm:think>"),  # MiniMax M3
    ReasoningTags("<|channel>thought", "<channel|>"),  # Gemma 4
    ReasoningTags(  # gpt-oss
        "<|channel|>analysis<|message|>",
        "<|end|>",
        answer="<|channel|>final<|message|>",
        lead="<|start|>assistant",
    ),
    ReasoningTags("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL
    ReasoningTags("<thought>", "</thought>"),  # EXAONE Deep
    ReasoningTags("<thinking>", "</thinking>"),  # Apriel 1.5
)

_REACH = 48
"""Tokens at a prompt's end that may spell a tag."""

_BLANK = r"(?:\^|(?:\\[snrt]|[\n ])[*+?]{0,2})*"
_PATTERN = re.compile(
    rf"(?s){_BLANK}(?P<either>\(\?:\^\|)?{_BLANK}(?P<text>.*?){_BLANK}(?(either)\)){_BLANK}"
)
"""Matches patterns that are a fixed text, but for white space around it and, at a field's opening, "^"."""


def reasoning_tags(tokenizer: Any, prompt: tuple[int, ...] = ()) -> ReasoningTags | None:
    """The tags of a tokenizer's response template, else known ones that its chat template writes, else
    <think> and </think> if it has those tokens.

    Args:
        prompt: the rendered prompt: a template may open the thinking itself, or the answer.
    """
    found = _from_response_template(tokenizer) or _from_chat_template(tokenizer)
    if found is None:
        return None
    end: str = tokenizer.decode(list(prompt[-_REACH:]), skip_special_tokens=False).rstrip()
    if found.answer and end.endswith(found.answer):
        return replace(found, answer="")
    return replace(found, open_in_prompt=end.endswith(found.opening.rstrip()))


def marking_tokens(tokenizer: Any, tags: ReasoningTags | None) -> frozenset[str]:
    """The added tokens of which tags are made, special or not."""
    if tags is None:
        return frozenset()
    pattern = alternatives(frozenset(token.content for token in added_tokens(tokenizer)))
    return frozenset(found for tag in (tags.opening, tags.closing) for found in pattern.findall(tag))


def _from_response_template(tokenizer: Any) -> ReasoningTags | None:
    template = getattr(tokenizer, "response_template", None)
    fields = template.get("fields", {}) if isinstance(template, Mapping) else {}
    for name in _FIELDS:
        field = fields.get(name) or {}
        opening, closing = _anchor(field, "open"), _anchor(field, "close")
        if closing is None:
            continue
        known = next(
            (one for one in _KNOWN if one.closing == closing and opening in (None, one.opening)), None
        )
        if known is not None and known.lead and closing in marking_tokens(tokenizer, known):
            return known
        opening = opening or (known.opening if known else None)
        if opening is not None:
            said = fields.get("content") or {}
            answer, end = _anchor(said, "open"), _anchor(said, "close")
            return ReasoningTags(opening, closing, answer=answer or "", end=(answer and end) or "")
    return None


def literal(field: Mapping[str, Any], name: str) -> str | None:
    """What opens or closes a field: response templates give a text, a list of them, or a pattern."""
    found = field.get(name)
    found = found[0] if isinstance(found, list) and found else found
    return found.strip() if isinstance(found, str) and found.strip() else None


def _anchor(field: Mapping[str, Any], name: str) -> str | None:
    """The same, or the text that the field's pattern matches if it matches just one."""
    pattern = field.get(f"{name}_pattern")
    found = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    text = re.sub(r"\\(\W)", "\0\\1", found["text"]) if found else ""
    if re.search(r"(?<!\0)[\\.^$*+?{}\[\]|()]", text):
        text = ""
    return literal(field, name) or text.replace("\0", "").strip() or None


def _from_chat_template(tokenizer: Any) -> ReasoningTags | None:
    """Known tags that the template writes. That a vocabulary has their tokens is no sign of thinking, except
    for <think>: all of Mistral's vocabularies have [THINK].
    """
    source = chat_template_text(tokenizer)
    added = {token.content for token in added_tokens(tokenizer)}
    named = [
        _named(tags, source, added) for tags in _KNOWN if tags.opening in source and tags.closing in source
    ]
    for tags in named:
        if tags.opening.startswith(tuple(added)):
            return tags
    if {"<think>", "</think>"} <= added:
        return ReasoningTags()
    # Tags that are text. Not those of messages: only tokens tell their headers from text.
    return next((tags for tags in named if not tags.lead), None)


def _named(tags: ReasoningTags, source: str, added: set[str]) -> ReasoningTags:
    """Tags with the answer's marks only if a template writes these or, if they are text, asks for them."""
    told = tags.answer in source and tags.end in source
    if tags.answer.startswith(tuple(added)):
        return tags if told else replace(tags, answer="", end="")
    return tags if tags.answer + tags.end in source else replace(tags, answer="", end="")
