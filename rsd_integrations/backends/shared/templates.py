"""How a prompt becomes tokens, by a model's own chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rsd_integrations.backends.shared.sources import Source
from rsd_integrations.encoding import chat_template_text, encode_opening, render_chat
from rsd_integrations.errors import ModelError
from rsd_integrations.output import Output
from rsd_integrations.prompts import as_messages
from rsd_integrations.protocols import NONE
from rsd_integrations.types import Prompt

__all__ = ["check_templates", "looks_at", "render"]


def check_templates(writers: Sequence[Source]) -> None:
    """Chat templates must be there for all writers or for none."""
    have = [bool(chat_template_text(source.tokenizer)) for source in writers]
    if len(set(have)) > 1:
        lacking = writers[have.index(False)]
        raise ModelError(
            f"the tokenizer of {lacking.role}={lacking.name!r} has no chat template, the other model's has.",
            hint="Use two chat models, or set tokenizer.chat_template and pass (model, tokenizer).",
        )


def looks_at(tokenizer: Any, variable: str) -> bool:
    """Whether a chat template names a variable."""
    return re.search(rf"\b{re.escape(variable)}\b", chat_template_text(tokenizer)) is not None


def render(
    tokenizer: Any, prompt: Prompt, output: Output, variables: Mapping[str, Any] = NONE
) -> tuple[int, ...]:
    """A chat by the template and its variables; a lone text to a model without one is text to continue."""
    if isinstance(prompt, str) and not chat_template_text(tokenizer):
        return encode_opening(tokenizer, prompt)
    return render_chat(tokenizer, as_messages(prompt), tools=output.tools, **variables)
