"""Several tokens of a small model in one launch: each is fed as it is drawn, without Python in between.

On a CPU Python takes nearly as long for a token of a small model as the model itself (dev/speed.md). Greedy
rows need Python only where a step may end, and the token alone tells where that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from rsd_integrations.backends.shared.detokenize import HALF, decoder
from rsd_integrations.backends.torch import interpreter
from rsd_integrations.backends.torch.forwards import Pair, alike
from rsd_integrations.backends.torch.interpreter import Script

MOST_AT_ONCE = 16
"""Most tokens of each row in one launch; all other requests wait for them."""

MOST_WORK = 20_000_000
"""Parameters x rows below which a launch may write several tokens: beyond, each takes milliseconds."""

_PROOFS = 3
"""Bursts that must agree with calls before later ones are relied on."""

_REMEMBERED = 16
"""Most sets of characters whose tokens are remembered: users may bring ever new stop strings."""


@dataclass(frozen=True, slots=True)
class Burst:
    """What a launch may write.

    Args:
        most: tokens of each row, at most.
        ending: gives for each token whether the host has to look behind it, ``[V + 1]``; the last place
            stands for "no token" (-1).
    """

    most: int
    ending: Callable[[], torch.Tensor]


class Endings:
    """Which tokens may end a step: those that end an answer, and those with a character that completes a
    delimiter or a stop string. Missing one costs the tokens written behind it, and nothing else.

    Args:
        tokenizer: the model's.
        eos_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._known: dict[frozenset[str], torch.Tensor] = {}

    def of(self, characters: frozenset[str]) -> torch.Tensor:
        """The ``ending`` of a ``Burst`` for steps that these characters end."""
        if characters not in self._known:
            if len(self._known) == _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[characters] = self._made(characters)
        return self._known[characters]

    @cached_property
    def _tokens(self) -> list[int]:
        """All token ids. Only small models ask for them: with a large vocabulary that takes a while."""
        return list(self._tokenizer.get_vocab().values())

    @cached_property
    def _texts(self) -> dict[int, str]:
        decode = decoder(self._tokenizer)
        # Each token twice, for the first one may lose a leading space.
        return {token: decode([token] * 2) for token in self._tokens}

    def _made(self, characters: frozenset[str]) -> torch.Tensor:
        size = max(self._tokens) + 1
        ending_V1 = torch.zeros(size + 1, dtype=torch.bool, device="cpu")
        # A model's config may name end tokens that its tokenizer does not know: they cannot be drawn.
        ending_V1[[*(token for token in self._eos_ids if 0 <= token < size), size]] = True
        if characters:
            # The last token of a character that ends a step may have but some of its bytes.
            wanted = characters | {HALF}
            found = [token for token, text in self._texts.items() if not wanted.isdisjoint(text)]
            ending_V1[found] = True
        return ending_V1


class Looped:
    """Bursts by one trace. The first are compared with calls; where one differs or fails there are no more.

    Args:
        trace: of a forward of one token.
        compute: the same by calling the model (a ``Call``).
        positions: 0 to the cache's capacity - 1.
    """

    def __init__(self, trace: Script, compute: Callable[..., Pair], positions: torch.Tensor) -> None:
        self._trace = trace
        self._compute = compute
        self._positions = positions
        self._loop: Script | None = None
        self._proofs = 0
        self.refused = False

    def __call__(
        self, head_N3: torch.Tensor, ids_N1: torch.Tensor, burst: Burst, **where: Any
    ) -> Pair | None:
        """The last forward's outputs ``[N, 1, ...]`` and all tokens ``[N, K]``; None where it is refused, and
        what was written is not to be relied on.
        """
        try:
            if self._loop is None:
                self._loop = interpreter.looped(self._trace)
            made = self._loop(head_N3, ids_N1, self._positions, burst.most, burst.ending())
            if self._proofs < _PROOFS:
                self.refused = not self._agrees(made, head_N3, ids_N1, **where)
                self._proofs += 1
        except Exception:
            self._called(head_N3, ids_N1, **where)  # Raises if it is the feeds that are at fault.
            self.refused = True
        return None if self.refused else made

    def _agrees(self, made: Pair, head_N3: torch.Tensor, ids_N1: torch.Tensor, **where: Any) -> bool:
        """Whether calls, one behind the other, give the same tokens and the same last outputs."""
        (kept, tokens_NK), called = made, made
        real_N = head_N3[:, 2] > 0
        for place in range(tokens_NK.shape[1]):
            called = self._called(head_N3, ids_N1, **where)
            ids_N1 = tokens_NK[:, place : place + 1].clamp(min=0)
            if not torch.equal(called[1][real_N, 0], tokens_NK[real_N, place]):
                return False
            head_N3 = head_N3 + torch.tensor([0, 1, 0], device=head_N3.device)
            if where.get("line") is not None:
                where["line"] += 1
        return alike((kept[real_N], tokens_NK), (called[0][real_N], called[1]))

    def _called(self, head_N3: torch.Tensor, ids_N1: torch.Tensor, **where: Any) -> Pair:
        span = int(head_N3[:, 1:].sum(1).max())
        return self._compute(head_N3, ids_N1, self._positions[:span], **where)
