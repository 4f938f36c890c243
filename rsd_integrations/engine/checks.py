"""What is refused when a request starts: prompts that leave no room, variables that no template knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rsd_integrations.errors import ConfigError, PromptLengthError
from rsd_integrations.prompts import all_texts
from rsd_integrations.protocols import ModelInfo, Speaker

_CHARACTERS, _PIECE = 8, 4096
"""Characters for each token of the window, above which a text is measured before it is encoded, and
characters of a piece in which it is measured."""


def check_variables(names: Iterable[str], *writers: Speaker) -> None:
    """Refuse a variable of chat templates that no template looks at.

    Raises:
        ConfigError: there is one.
    """
    for name in names:
        if not any(writer.looks_at(name) for writer in writers):
            told = " and ".join(repr(writer.info.name) for writer in writers)
            raise ConfigError(
                f"chat_template_kwargs: the chat templates of {told} look at no variable {name!r}.",
                hint="Look for variables in tokenizer.chat_template, or leave it out.",
            )


def check_size(model: Speaker, given: Any, info: ModelInfo | None = None, what: str = "prompt") -> None:
    """Refuse a prompt that is many times too long before all of it is encoded: other requests wait meanwhile.

    Args:
        model: whose tokens are counted.
        given: texts, in lists and mappings.
        info: of the model that is to read it; that model's by default.
        what: the name of what is measured, for the message.

    Raises:
        PromptLengthError: it is too long.
    """
    info = info or model.info
    texts, window = [*all_texts(given)], info.window
    if sum(map(len, texts)) <= _CHARACTERS * window:
        return
    least = 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            least += len(model.encode(text[start : start + _PIECE]))
            # Pieces can have more tokens than the whole, but not twice as many.
            if least > 2 * window:
                raise PromptLengthError(
                    f"a {what} of {sum(map(len, texts))} characters does not fit the window of {window} "
                    f"tokens of {info.name!r}.",
                    hint=_more_room(info, None),
                )


def room(info: ModelInfo, prompt_tokens: int, max_tokens: int | None) -> int:
    """Tokens that fit behind the prompt.

    Raises:
        PromptLengthError: none, or fewer than ``max_tokens``.
    """
    left = info.window - prompt_tokens
    if left < (1 if max_tokens is None else max_tokens):
        asked = "" if max_tokens is None else f" + {max_tokens} max_tokens"
        raise PromptLengthError(
            f"{prompt_tokens} prompt tokens{asked} do not fit the window of {info.window} tokens "
            f"of {info.name!r}.",
            hint=_more_room(info, max_tokens),
        )
    return left


def _more_room(info: ModelInfo, max_tokens: int | None) -> str:
    shorter = "Shorten the prompt" if max_tokens is None else "Shorten the prompt or lower max_tokens"
    if info.longest is None:
        return f"{shorter}, or raise max_length if the model allows it."
    if info.longest > info.window:
        return f"{shorter}, or raise max_length, here to {info.longest} at most."
    return f"{shorter}: the model was made for no more."
