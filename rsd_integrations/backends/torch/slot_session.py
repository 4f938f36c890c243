"""The tokens of one request in one model, and how many of them the model has seen."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_integrations.backends.torch.runner import PREFILL_CHUNK, SlotRunner
from rsd_integrations.backends.torch.slots import SlotFeed
from rsd_integrations.protocols import Tally

__all__ = ["SlotSession"]


class SlotSession:
    """Tokens of a request: a committed part, then the step in progress, cached up to a length.

    What is committed stays cached; what is not can be dropped. The slot is claimed by the first
    feed, so a model that is never asked costs no memory.
    """

    def __init__(self, runner: SlotRunner, prompt: tuple[int, ...], sliding_window: int | None) -> None:
        self._runner = runner
        self._window = sliding_window
        self._slot: int | None = None
        self.prompt_tokens = len(prompt)
        self.tokens = list(prompt)
        self.base = len(prompt)
        """Length of the committed part."""
        self.cached = 0
        """Length of the part the model has seen."""
        self.tally = Tally()

    def feed(self, *, upto: int | None = None, guesses: Sequence[int] = ()) -> SlotFeed:
        """The next chunk of tokens the model has not seen, reading at the last one.

        Args:
            upto: length to stop at; all tokens by default.
            guesses: of the tokens behind, to be read at as well if the chunk gets that far.
        """
        end = len(self.tokens) if upto is None else upto
        # With nothing new to feed, the last token is fed again: its output is wanted once more.
        self.cached = min(self.cached, end - 1)
        if self._slot is None:
            self._slot = self._runner.claim()
        end = min(end, self.cached + PREFILL_CHUNK)
        new = self.tokens[self.cached : end]
        if end < len(self.tokens) or not guesses:
            return SlotFeed(self._slot, self.cached, new)
        return SlotFeed(self._slot, self.cached, [*new, *guesses], len(new) - 1, len(guesses))

    def fed(self, feed: SlotFeed) -> None:
        """Count a feed that went well. Its guesses are not part of the text: they may prove wrong."""
        self.tally.add(feed.start, len(feed.tokens), self._window)
        self.cached = feed.start + len(feed.tokens) - feed.more

    def replace(self, tokens: tuple[int, ...]) -> None:
        """Commit these tokens in place of the step in progress."""
        self.tokens[self.base :] = tokens
        self.cached = min(self.cached, self.base)
        self.base = len(self.tokens)

    def keep(self, length: int | None = None) -> None:
        """Commit the step in progress, up to a total length."""
        if length is not None:
            del self.tokens[length:]
            self.cached = min(self.cached, length)
        self.base = len(self.tokens)

    def close(self) -> None:
        """Give the slot back."""
        if self._slot is not None:
            self._runner.release(self._slot)
        self._slot = None
