"""Conversations as PRMs see them: as turns of a chat template, or as one text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rsd_integrations.encoding import (
    chat_template_text,
    control_tokens,
    encode_markup,
    encode_plain,
    message_text,
    render_chat,
)
from rsd_integrations.encoding.written import written_around_turns
from rsd_integrations.errors import ModelError, PromptError
from rsd_integrations.types import Message

_LABELS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation as one text, for PRMs that know only a question.

    System turns come first, as they are. A lone other turn follows as it is; if there are more, each
    gets its label: "User: ", "Assistant: " (tool calls as JSON behind the text) or "Tool: ". All are
    joined by blank lines; empty turns are left out.

    Raises:
        PromptError: a turn is not text.
    """
    system = [_turn_text(message) for message in messages if message.get("role") in ("system", "developer")]
    others = [message for message in messages if message.get("role") not in ("system", "developer")]
    turns = [(message, _turn_text(message)) for message in others]
    if len(turns) == 1:
        spoken = [turns[0][1]]
    else:
        spoken = [f"{_label(message)}: {text}" for message, text in turns if text]
    return "\n\n".join(text for text in [*system, *spoken] if text)


def chat_prompt(
    tokenizer: Any, messages: Sequence[Message], *, never: Iterable[str] = (), **template_kwargs: Any
) -> tuple[int, ...]:
    """The whole conversation under the tokenizer's chat template, up to the answer.

    If the template refuses it (some know no system or tool turns) it becomes one user turn,
    ``conversation_text``.

    Raises:
        ModelError: the tokenizer has no chat template.
        PromptError: a turn is not text.
    """
    forbidden = tuple(never)
    try:
        return render_chat(tokenizer, messages, never=forbidden, **template_kwargs)
    except PromptError:
        folded: Message = {"role": "user", "content": conversation_text(messages)}
        return render_chat(tokenizer, [folded], never=forbidden, **template_kwargs)


def render_turns(tokenizer: Any, messages: Sequence[Message], **kwargs: Any) -> str:
    """Trusted messages under the tokenizer's chat template, as text.

    Raises:
        ModelError: there is no template, or it refuses a plain chat.
    """
    if not chat_template_text(tokenizer):
        raise ModelError(
            "the PRM's tokenizer has no chat template, which its format needs.",
            hint="Choose another prm_format, or set tokenizer.chat_template.",
        )
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **kwargs))
    except Exception as error:  # Jinja's, or whatever a template stumbles over.
        roles = [message["role"] for message in messages]
        raise ModelError(
            f"the PRM's chat template refuses a chat with roles {roles!r}: {error}",
            hint="Choose another prm_format.",
        ) from error


class AnswerTurn:
    """What a chat template puts around an answer, so that the answer can be fed step by step.

    Args:
        follow: turns after the answer.
        add_generation_prompt: whether the header of another answer follows them.
        template_kwargs: further variables of the template.

    Raises:
        ModelError: the template is missing, or hides or reorders the answer.
    """

    _ASKED, _ANSWERED = "Rsdquestion", "Rsdanswer"

    def __init__(
        self,
        tokenizer: Any,
        follow: Sequence[Message] = (),
        *,
        add_generation_prompt: bool = False,
        **template_kwargs: Any,
    ) -> None:
        self._tokenizer = tokenizer
        asked: Message = {"role": "user", "content": self._ASKED}
        answered: Message = {"role": "assistant", "content": self._ANSWERED}
        whole = render_turns(
            tokenizer,
            [asked, answered, *follow],
            add_generation_prompt=add_generation_prompt,
            **template_kwargs,
        )
        header = render_turns(tokenizer, [asked], add_generation_prompt=True, **template_kwargs)
        between, answer, tail = whole.rpartition(self._ASKED)[2].partition(self._ANSWERED)
        if not answer:
            raise ModelError(
                f"the PRM's chat template does not show the answer it is given: {whole!r:.200}.",
                hint="Choose another prm_format.",
            )
        prompt_end = header.rpartition(self._ASKED)[2]
        # Some templates write a space or an empty block of thought that is not in the prompt.
        self._lead = between[len(prompt_end) :] if between.startswith(prompt_end) else ""
        self.space = self._lead if self._lead.isspace() else ""
        """White space that the template writes before what an assistant says."""
        # Many vocabularies have turn markers as added tokens that are not special, which an answer may spell.
        control = control_tokens(tokenizer)
        around = {token for token in control if token in whole + header}
        around |= written_around_turns(tokenizer, control, **template_kwargs)
        self._never = frozenset(token for token in around if token not in self._lead)
        self.tail = encode_markup(tokenizer, tail)
        """Tokens behind the answer."""

    def encode(self, text: str, *, first: bool, never: Iterable[str] = ()) -> tuple[int, ...]:
        """Tokens of the next piece of the answer, in which the template's turn markers are plain text."""
        forbidden = self._never.union(never)
        if not first or not self._lead:
            return encode_plain(self._tokenizer, text, never=forbidden)
        if self.space:
            return encode_plain(self._tokenizer, self.space + text, never=forbidden)
        lead = encode_markup(self._tokenizer, self._lead)
        return lead + encode_plain(self._tokenizer, text, never=forbidden)


def _turn_text(message: Message) -> str:
    text = message_text(message).strip()
    calls = message.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        shown = (json.dumps(call, ensure_ascii=False, default=str) for call in calls)
        text = "\n".join([text, *shown]).strip()
    return text


def _label(message: Message) -> str:
    role = str(message.get("role"))
    return _LABELS.get(role, role.capitalize())
