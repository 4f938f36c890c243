"""Texts to which a chat template was applied already: they are read as texts all the same, and said to be."""

from __future__ import annotations

import logging
from typing import Any

from rsd_integrations.encoding.chat import chat_template_text, tokenizer_name
from rsd_integrations.encoding.plain import alternatives, remembered, special_tokens

_log = logging.getLogger(__name__)


def doubt(tokenizer: Any, text: str) -> None:
    """Warn, once for each tokenizer, of a lone text that begins with a control token."""
    found = alternatives(special_tokens(tokenizer)).match(text.lstrip())
    if found:
        remembered(tokenizer, "doubted", lambda: _warn(tokenizer, found[0]))


def _warn(tokenizer: Any, token: str) -> bool:
    advice = "If a chat template was applied to it, give the chat's messages instead."
    if not chat_template_text(tokenizer):
        advice = "Leave it out: what a text begins with is added where the tokenizer adds it."
    _log.warning(
        "A prompt begins with %r, a control token of %r. It is read as the user's own text, in which control "
        "tokens stay text. %s",
        token,
        tokenizer_name(tokenizer),
        advice,
    )
    return True
