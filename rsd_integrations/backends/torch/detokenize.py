"""Text of tokens as they come: the pieces join to the text of all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Detokenizer"]

_TAIL = 16
"""Tokens decoded again before a new one: a token alone may lose its leading space."""
_HALF = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes token by token, at constant cost, and can go back to where a step began.

    A character whose bytes are split between tokens appears once it is whole, in the next step if
    need be.

    Args:
        hidden: ids without text: the special tokens, less those of a thinking markup.
    """

    def __init__(self, tokenizer: Any, hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._tail: list[int] = []
        self._unshown = 0
        self.mark()

    def push(self, tokens: Sequence[int]) -> str:
        """Text that these tokens add."""
        shown = len(self._decode(self._tail)) - self._unshown
        tail = [*self._tail, *tokens]
        text = self._decode(tail)[shown:]
        # Bytes of a character still to be completed are at most three; more were never one.
        self._unshown = min(3, len(text) - len(text.rstrip(_HALF)))
        self._tail = tail[-_TAIL:]
        return text[: len(text) - self._unshown]

    def rest(self) -> str:
        """Half a character at the end, as it is shown when nothing follows."""
        return _HALF * self._unshown

    def mark(self) -> None:
        """A step begins here."""
        self._marked = self._tail, self._unshown

    def back(self) -> None:
        """Go back to where the step began."""
        self._tail, self._unshown = self._marked

    def _decode(self, tokens: Sequence[int]) -> str:
        seen = [token for token in tokens if token not in self._hidden]
        if not seen:
            return ""
        text: str = self._tokenizer.decode(
            seen, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
