"""Text of tokens as they come: the pieces join to the text of all tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

HALF = "\N{REPLACEMENT CHARACTER}"
"""What a character is decoded to if not all its bytes are there."""

_MOST_BYTES = 4
"""Bytes of one character at most, and so the tokens that it may need."""


class Detokenizer:
    """Decodes token by token, at constant cost, and can go back to where a step began.

    A character whose bytes are split between tokens appears once it is whole, in the next step if
    need be.

    Args:
        hidden: ids without text: the special tokens, less those of a thinking markup.
    """

    def __init__(self, tokenizer: Any, hidden: frozenset[int]) -> None:
        self._decode = decoder(tokenizer)
        self._hidden = hidden
        self._shown: tuple[int, ...] = ()
        """The last tokens that were shown, of whole characters: a token alone may lose its leading space."""
        self._half: tuple[int, ...] = ()
        """Tokens of a character that is not whole yet. The first may end another one, which was shown."""
        self._shown_text = ""
        """The text of the shown tokens; if there are none, the part of the half's text that was shown."""
        self._ragged: tuple[int, str] = (0, "")
        """Tokens since one last ended where a character does, and what was shown of them."""
        self.mark()

    def push(self, tokens: Sequence[int]) -> str:
        """Text that these tokens add."""
        return "".join(map(self._take, tokens))

    def _take(self, token: int) -> str:
        new = "" if token in self._hidden else self._push(token)
        count, shown = self._ragged
        self._ragged = (count + 1, shown + new) if self._half else (0, "")
        return new

    def _push(self, token: int) -> str:
        tokens = (*self._half, token)
        text = self._decode((*self._shown, *tokens))
        # Byte fallback decodes a run of bytes as a whole: half a character spoils those before it.
        if not text.endswith(HALF):
            return self._show(tokens, text)
        new = text[len(self._shown_text) :]
        if whole := new[: new.index(HALF)]:
            return self._show_part(token, whole, len(new) - len(whole))
        if len(tokens) < _MOST_BYTES:
            self._half = tokens
            return ""
        return self._show_mark(tokens, text)

    def _show_part(self, token: int, new: str, held: int) -> str:
        """Show what a token ends, but not what it begins (its last ``held`` characters or marks)."""
        self._shown, self._half, self._shown_text = (), (token,), self._decode((token,))[:-held]
        return new

    def _show_mark(self, tokens: tuple[int, ...], text: str) -> str:
        """Show a mark for bytes that are no character, and take the tokens behind it again."""
        texts = [self._decode((*self._shown, *tokens[:count])) for count in range(1, len(tokens))]
        if text.startswith(texts[0]):
            # One mark stands for all bytes that may begin a character.
            count = sum(text == texts[0] for text in texts)
            shown = self._show(tokens[:count], texts[0])
        else:  # The first token's last bytes are a character's.
            count = 1
            shown = self._show_part(tokens[0], texts[0][len(self._shown_text) : -1], 1)
        return shown + "".join(Detokenizer._push(self, token) for token in tokens[count:])

    def _show(self, tokens: tuple[int, ...], text: str) -> str:
        new = text[len(self._shown_text) :]
        self._shown, self._half, self._shown_text = tokens, (), self._decode(tokens)
        return new

    @property
    def holds(self) -> bool:
        """Whether text is held back, which any further token may release."""
        return bool(self._half)

    def rest(self) -> str:
        """Half a character at the end, as it is shown when nothing follows."""
        return self._decode(self._half)[0 if self._shown else len(self._shown_text) :]

    def mark(self) -> None:
        """A step begins here."""
        self._marked = self._shown, self._half, self._shown_text, self._ragged

    def back(self, *, to_whole: bool = False) -> None:
        """Go back to where the step began. ``to_whole``: and before the tokens that are ``ragged``."""
        self._shown, self._half, self._shown_text, self._ragged = self._marked
        if to_whole:
            self._half, self._ragged = (), (0, "")
            self._shown_text = self._decode(self._shown)

    @property
    def ragged(self) -> tuple[int, str]:
        """If the step began within a character: how many tokens there are before it since one ended where
        a character does, and the text of theirs that was shown.
        """
        return self._marked[3]


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """A function from tokens to their text, special ones included, and nothing cleaned up.

    Args:
        tokenizer: of transformers.
    """
    # The tokenizer proper, where there is one: what transformers puts around it costs ten times as much.
    proper = getattr(tokenizer, "backend_tokenizer", None)

    def decode(tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        text: str
        if proper is not None:
            text = proper.decode(tokens, skip_special_tokens=False)
        else:
            text = tokenizer.decode(
                list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return text

    return decode
