"""The tokens of one request in one model, and how many of them the model has seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rsd_integrations.backends.torch.failures import attempt
from rsd_integrations.backends.torch.plan import PREFILL_CHUNK, SlotFeed
from rsd_integrations.backends.torch.pool import shared
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.errors import EngineClosedError
from rsd_integrations.protocols import ModelInfo, Tally

_LEAST_WAITED = 64
"""Tokens from which it pays to wait a round while another request reads them."""

_LONG = PREFILL_CHUNK // 2
"""Tokens from which a text is long. Shorter ones are read together, which takes less time in all."""


def check_open(info: ModelInfo, *, closed: bool) -> None:
    """Refuse to open a session of a model that was closed.

    Raises:
        EngineClosedError: it was.
    """
    if closed:
        raise EngineClosedError(
            f"{info.name!r} was closed with its pipeline.",
            hint="Load it anew. A pipeline closes its models as soon as nothing refers to it.",
        )


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
        self.held = False
        """Whether it waits for a slot while other long texts are read."""
        self.early = False
        """Whether a forward that runs ahead feeds the last token already, right behind what is cached."""
        self.tally = Tally()
        """What a slot knew from other requests counts as read, so that a request's cost does not depend on
        them. Two parts of it still do: what is written on behind a step that waits, and what runs ahead."""
        self.family: list[SlotSession] = [self]
        """The sessions of all candidates of a request, this one included: they commit the same steps."""

    def join(self, other: SlotSession) -> None:
        """Become one of another session's family."""
        other.family.append(self)
        self.family = other.family

    @property
    def _committed(self) -> int:
        """Tokens of the committed part, but for the last one of all: it is always fed, for its output."""
        return min(self.base, len(self.tokens) - 1)

    @property
    def caught_up(self) -> bool:
        """Whether it knows all of the committed part."""
        return self.cached >= self._committed

    def catch_up(self) -> None:
        """Copy what another of the family has read of the committed part."""
        most = max(self.family, key=lambda session: session.cached)
        if most is self or most._slot is None:
            return
        known = self._runner.cache.usable(most._slot, min(self._committed, most.cached, most.base))
        if known > self.cached:
            if self._slot is None:
                self._slot, _ = self._runner.claim(seen=self._seen)
            self._runner.pool.copy(most._slot, self._slot, self.cached, known)
            self.cached = known

    @property
    def next_chunk(self) -> int:
        """Tokens of its next chunk: those that neither its slot knows nor one that it would be given."""
        known = self.cached if self._slot is not None else self._runner.pool.known(self.tokens[:-1])
        return min(len(self.tokens) - known, PREFILL_CHUNK)

    def waits(self, others: Iterable[SlotSession]) -> bool:
        """Whether another session is about to read tokens that this one begins with too and does not know."""
        if self._slot is not None or not self._runner.pool.keeps:
            return False
        wanted = self.tokens[:-1]
        known = self._runner.pool.known(wanted)
        return any(
            self._runner.cache.to_be_usable(shared(wanted, other.tokens), other.base)
            >= max(known, other.cached) + _LEAST_WAITED
            for other in others
        )

    def _seen(self) -> list[int]:
        return self.tokens[: self.cached]

    def _claimed(self, end: int) -> int:
        """The slot. One that is claimed now may know some of the tokens before ``end`` already."""
        if self._slot is None:
            self._slot, self.cached = self._runner.claim(self.tokens[:end], self._seen)
            self.tally.add(0, self.cached, self._window)
        return self._slot

    def next_feed(self) -> SlotFeed:
        """What the model has to see next."""
        return self.feed()

    def feed(self, *, upto: int | None = None, guesses: Sequence[int] = ()) -> SlotFeed:
        """The next chunk of tokens the model has not seen, reading at the last one.

        Args:
            upto: length to stop at; all tokens by default.
            guesses: of the tokens behind them; outputs are wanted there too, if the chunk gets that far.
        """
        end = len(self.tokens) if upto is None else upto
        slot = self._claimed(end - 1)
        # With nothing new to feed, the last token is fed again: its output is wanted once more.
        self.cached = min(self.cached, end - 1)
        end = min(end, self.cached + PREFILL_CHUNK)
        new = self.tokens[self.cached : end]
        early, self.early = self.early and len(new) == 1, False
        if end < len(self.tokens) or not guesses:
            awaited = len(self.family) > 1
            return SlotFeed(slot, self.cached, new, early=early, base=self.base, awaited=awaited)
        tokens = [*new, *guesses]
        return SlotFeed(slot, self.cached, tokens, len(new) - 1, len(guesses), base=self.base)

    def fed(self, feed: SlotFeed, output: Read) -> None:
        """Count a feed that went well. Its guesses do not count as cached, for they may prove wrong; nor do
        the tokens that a burst fed, until they are taken.
        """
        end = feed.start + len(feed.tokens)
        if not output.ahead:
            self.tally.add(feed.start, len(feed.tokens) + output.own, self._window)
        if output.followed:
            # What runs ahead is counted when it is launched: it may be in vain.
            self.tally.add(end, 1, self._window)
        self.early = output.followed
        self.cached = end - feed.more

    def unread(self, feed: SlotFeed, output: Read) -> None:
        """Take back a feed whose outputs are not finite: a NaN left in the cache would spread, masked or not.
        Of several tokens that a burst fed, only the last can be of that kind.
        """
        start = feed.start + output.own
        # A forward ahead of it has written one more.
        end = start + len(feed.tokens) + self.early
        self._runner.cache.wipe(feed.slot, start, min(end, self._runner.capacity))
        self.cached, self.early = min(self.cached, start), False

    def follow(self, tokens: Sequence[int]) -> None:
        """Put these tokens in place of the step in progress. What both begin with stays cached."""
        same = shared(self.tokens[self.base : self.cached], list(tokens))
        self.tokens[self.base :] = tokens
        self.cached = min(self.cached, self.base + same)
        self.early = False

    def replace(self, tokens: Sequence[int]) -> None:
        """Commit these tokens in place of the step in progress."""
        self.follow(tokens)
        self.base = len(self.tokens)

    def settle(self, length: int) -> list[int]:
        """Commit all tokens up to ``length``. Those behind it are returned, and stay cached."""
        behind = self.tokens[length:]
        del self.tokens[length:]
        self.base = length
        return behind

    def keep(self) -> None:
        """Commit the step in progress."""
        self.base = len(self.tokens)

    def close(self) -> None:
        """Give the slot back."""
        if self in self.family:
            self.family.remove(self)
        if self._slot is not None:
            self._runner.release(self._slot, self._seen())
        self._slot = None


def next_feeds(sessions: Mapping[int, SlotSession]) -> tuple[dict[int, SlotFeed], dict[int, Exception]]:
    """By index, the next feed of each session that is to be fed now, and what fails those that it fails."""
    feeds: dict[int, SlotFeed] = {}
    failed: dict[int, Exception] = {}
    for index, session in sessions.items():
        if isinstance(caught := attempt(session.catch_up), Exception):
            failed[index] = caught
    sound = [index for index in sessions if index not in failed]
    for index in (sound[place] for place in to_feed([sessions[index] for index in sound])):
        if isinstance(feed := attempt(sessions[index].next_feed), Exception):
            failed[index] = feed
        else:
            feeds[index] = feed
    return feeds, failed


def to_feed(sessions: Sequence[SlotSession]) -> list[int]:
    """Indices of the sessions to feed now. What several begin with, one reads and the others copy later. Of
    long texts, the first ones go first: read all at once, each would be done when the last one is.
    """
    reading: set[int] = set()
    chosen: list[int] = []
    long = 0
    for index, session in enumerate(sessions):
        if long >= PREFILL_CHUNK and session.held:
            continue  # What the slots know of it was looked up before, which takes long.
        session.held = False
        if len(session.family) > 1 and not session.caught_up:
            if id(session.family) in reading:
                continue
            reading.add(id(session.family))
        elif session.waits(sessions[earlier] for earlier in chosen):
            continue
        unread = session.next_chunk
        if unread >= _LONG:
            if long >= PREFILL_CHUNK:
                session.held = session._slot is None
                continue
            long += unread
        chosen.append(index)
    return chosen
