"""Several tokens of a small model in one launch: each is fed as it is drawn, and Python is not asked between.

On a CPU the host takes nearly as long for a token of a small model as the model itself (dev/speed.md). Greedy
rows need it only where a step may end, which shows by the token alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rsd_integrations.backends.torch.forwards import Pair, alike

__all__ = ["MAKING", "MOST_AT_ONCE", "Burst", "Endings", "Looped"]

MOST_AT_ONCE = 16
"""Tokens of each row in one launch, for which all others wait."""

MAKING = threading.Lock()
"""One trace or loop is made at a time: torch keeps some of its state for the whole process."""

_HALF = "\N{REPLACEMENT CHARACTER}"

_REMEMBERED = 16
"""Sets of characters whose tokens are remembered; stop strings come from users."""


@dataclass(frozen=True, slots=True)
class Burst:
    """What a launch may write.

    Args:
        most: tokens of each row.
        ending_V1: those behind which the host has to look, ``[V + 1]``; the last one stands for "no token".
    """

    most: int
    ending_V1: torch.Tensor


class Endings:
    """Which tokens may end a step: those of the end of an answer, and those with a character that completes a
    delimiter or a stop string. One that is missed costs the tokens written behind it, and nothing else.

    Args:
        tokenizer: the model's.
        eos_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = list(eos_ids)
        self._size = max(tokenizer.get_vocab().values()) + 1
        self._texts: dict[int, str] = {}
        self._known: dict[frozenset[str], torch.Tensor] = {}

    def of(self, characters: frozenset[str]) -> torch.Tensor:
        """``Burst.ending_V1`` for steps that are ended by these characters."""
        if characters not in self._known:
            if len(self._known) == _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[characters] = self._made(characters)
        return self._known[characters]

    def _made(self, characters: frozenset[str]) -> torch.Tensor:
        ending_V1 = torch.zeros(self._size + 1, dtype=torch.bool)
        ending_V1[[*self._eos_ids, self._size]] = True
        if characters:
            # Twice, for the first one may lose a leading space.
            self._texts = self._texts or {
                token: self._tokenizer.decode([token] * 2) for token in self._tokenizer.get_vocab().values()
            }
            # The bytes of a character may be split between tokens.
            wanted = characters if all(map(str.isascii, characters)) else characters | {_HALF}
            found = [token for token, text in self._texts.items() if not wanted.isdisjoint(text)]
            ending_V1[found] = True
        return ending_V1


class _Loop(torch.nn.Module):
    """A traced forward of one token, again and again.

    Args:
        step: head ``[N, 3]``, ids ``[N, 1]``, positions ``[L]`` -> the pair of a forward.
    """

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.step = step

    def forward(
        self,
        head_N3: torch.Tensor,
        ids_N1: torch.Tensor,
        positions: torch.Tensor,
        most: int,
        ending_V1: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last forward's outputs ``[N, 1, ...]`` and all K tokens ``[N, K]``: ``most``, or fewer if one
        may end its row's step. Rows that only fill up are not asked.
        """
        onward_3 = torch.tensor([0, 1, 0])
        span = int(head_N3[:, 1:].sum(1).max())
        real_N1 = head_N3[:, 2:] > 0
        kept, token_N1 = self.step(head_N3, ids_N1, positions[:span])
        tokens = [token_N1]
        while len(tokens) < most and not bool((ending_V1[token_N1] & real_N1).any()):
            head_N3 = head_N3 + onward_3
            # Idle rows may be without a likeliest token (-1), which cannot be fed.
            kept, token_N1 = self.step(head_N3, token_N1.clamp(min=0), positions[: span + len(tokens)])
            tokens.append(token_N1)
        return kept, torch.cat(tokens, 1)


class Looped:
    """Bursts by one trace. The first is compared with a call; where it differs or fails there are none.

    Args:
        trace: of a forward of one token, as for a ``_Loop``.
        compute: the same by calling the model (a ``Call``).
        positions: 0 to the cache's capacity - 1.
    """

    def __init__(self, trace: Any, compute: Callable[..., Pair], positions: torch.Tensor) -> None:
        self._trace = trace
        self._compute = compute
        self._positions = positions
        self._loop: Any = None
        self.refused = False

    def __call__(
        self, head_N3: torch.Tensor, ids_N1: torch.Tensor, burst: Burst, **where: Any
    ) -> Pair | None:
        """The last forward's outputs ``[N, 1, ...]`` and all tokens ``[N, K]``; None where it is refused."""
        if self.refused:
            return None
        try:
            loop = self._made() if self._loop is None else self._loop
            made: Pair = loop(head_N3, ids_N1, self._positions, burst.most, burst.ending_V1)
            self.refused = self._loop is None and not self._agrees(made, head_N3, ids_N1, **where)
            self._loop = loop
        except Exception:
            self._called(head_N3, ids_N1, **where)  # Raises if it is the feeds that are at fault.
            self.refused = True
        return None if self.refused else made

    def _made(self) -> Any:
        with MAKING:
            return torch.jit.script(_Loop(self._trace).eval())

    def _agrees(self, made: Pair, head_N3: torch.Tensor, ids_N1: torch.Tensor, **where: Any) -> bool:
        """Whether a call gives what the last forward of a burst gave."""
        kept, tokens_NK = made
        behind = tokens_NK.shape[1] - 1
        head_N3 = head_N3 + torch.tensor([[0, behind, 0]])
        last_N1 = torch.cat([ids_N1, tokens_NK], 1)[:, behind : behind + 1].clamp(min=0)
        if where.get("line") is not None:
            where["line"] += behind
        return alike((kept, tokens_NK), self._called(head_N3, last_N1, **where))

    def _called(self, head_N3: torch.Tensor, ids_N1: torch.Tensor, **where: Any) -> Pair:
        span = int(head_N3[:, 1:].sum(1).max())
        return self._compute(head_N3, ids_N1, self._positions[:span], **where)
