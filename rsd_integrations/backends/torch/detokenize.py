"""Text of tokens, step by step: the steps' texts join to the text of all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Detokenizer"]

_TAIL = 16
_HALF = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes each step behind the tokens before it: a token alone may lose its leading space.

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
        """Characters at the end of the tail's text that were not whole yet."""

    def text(self, step: Sequence[int], *, final: bool = False) -> str:
        """Text of a step that follows what was committed.

        Args:
            final: nothing follows, so a half character at the end is shown as one.
        """
        shown = len(self._decode(self._tail)) - self._unshown
        text = self._decode([*self._tail, *step])[shown:]
        return text if final else text.rstrip(_HALF)

    def commit(self, step: Sequence[int]) -> None:
        """Go on behind these tokens."""
        tokens = [*self._tail, *step]
        text = self._decode(tokens)
        self._unshown = len(text) - len(text.rstrip(_HALF))
        self._tail = tokens[-_TAIL:]

    def _decode(self, tokens: Sequence[int]) -> str:
        seen = [token for token in tokens if token not in self._hidden]
        if not seen:
            return ""
        text: str = self._tokenizer.decode(
            seen, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
