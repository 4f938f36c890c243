"""Token-level speculation inside a rewrite: guesses of the target's tokens, first the rejected step's.

The target takes several guesses in one forward and draws its own token at each place, with the draws it would
make anyway. A guess that equals the token drawn saves a forward; the first that differs ends the row, and the
token drawn stands. So the text is the one it would be without guesses, greedy or sampled. Once the rejected
step is used up, the draft may go on guessing from the target's own text.
"""

from __future__ import annotations

from collections.abc import Sequence

_FIRST, _LEAST, _MOST = 8, 4, 64
"""Guesses in a forward: to begin with, at least and at most."""

_REACH = 8
"""How far behind a wrong guess the token drawn is looked for."""

_MISSES = 3
"""Forwards in a row whose first guess is wrong, after which no more guesses are made in this step; one, if
none was right in the last step."""

_ASKED, _MOST_ASKED = 4, 16
"""Guesses asked of the draft at a time: to begin with, and at most. Other rewrites wait for all of them but
the first, so it begins with one unless some of the last guesses were right."""


class Guesses:
    """What may come next in one step.

    Args:
        tokens: the rejected step's, in this model's ids.
        more: whether the draft can be asked for more.
        trusted: whether guesses in the last step were right; None: none was tried yet.
    """

    def __init__(
        self, tokens: Sequence[int] = (), *, more: bool = False, trusted: bool | None = None
    ) -> None:
        self._tokens = list(tokens)
        self._width = _FIRST
        self._misses = 0
        self._more = more and trusted is not False
        self._asked = 0
        self._drafted = False
        self._before = trusted
        self._right: bool | None = None

    @property
    def trusted(self) -> bool | None:
        """Whether any guess was right in the latest step that tried some; None where none did yet."""
        return self._before if self._right is None else self._right

    @property
    def _patience(self) -> int:
        """Forwards in a row with a wrong first guess before it gives up."""
        return _MISSES if self._right or self._before is not False else 1

    @property
    def wanted(self) -> int:
        """How many the draft is to be asked for now."""
        if self._tokens or not self._more:
            return 0
        return self._asked or (_ASKED if self.trusted else 1)

    def give(self, tokens: Sequence[int]) -> None:
        """Take guesses from the draft; an empty list ends its guessing in this step."""
        if not self._drafted:
            self._drafted, self._misses = True, 0
        self._tokens = list(tokens)
        self._width = max(self._width, len(self._tokens))
        self._more = bool(tokens)

    def next(self, room: int) -> list[int]:
        """Guesses of the next tokens, as many as are worth a place in a forward, at most ``room``."""
        return self._tokens[: max(0, min(self._width, room))]

    def drawn(self, token: int) -> bool:
        """Take the next token. Whether it was the next guess."""
        if not self._tokens:
            return False
        if token == self._tokens[0]:
            del self._tokens[0]
            self._misses = 0
            return True
        if self._drafted:
            # The draft's next guesses, behind the token drawn, are better.
            self._tokens.clear()
            return False
        # Another word in its place, or some words left out: the rest may still fit.
        near = self._tokens[1 : 1 + _REACH]
        del self._tokens[: 2 + near.index(token) if token in near else 1]
        return False

    def verified(self, right: int, asked: int) -> None:
        """Note how many guesses in a forward were right, to make more or fewer next time."""
        if self._drafted:
            self._asked = min(_MOST_ASKED, 2 * asked) if right == asked else max(1, asked // 2)
        else:
            self._width = min(_MOST, 2 * self._width) if right == asked else max(_LEAST, self._width // 2)
        self._misses = 0 if right else self._misses + 1
        self._right = bool(self._right or right)
        if self._misses >= self._patience:
            self._tokens.clear()
            self._more = self._more and not self._drafted
