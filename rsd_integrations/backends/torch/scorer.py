"""A process reward model that scores steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rsd_integrations.backends.shared.scoring import StepFeeds, prompt_tokens, scored
from rsd_integrations.backends.torch.failures import attempt
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.slot_session import SlotSession, check_open, next_feeds
from rsd_integrations.prm.base import PRMFormat
from rsd_integrations.protocols import Kept, ModelInfo, Scored, ScorerSession, ScoreStep, WindowFull
from rsd_integrations.types import Prompt


class TorchScorerSession(SlotSession):
    """One request in a PRM (a ``ScorerSession``): the tokens of its steps, one behind the other."""

    def __init__(self, scorer: TorchScorer, prompt: tuple[int, ...]) -> None:
        super().__init__(scorer.runner, prompt, scorer.info.sliding_window)
        self._scorer = scorer
        self._feeds = StepFeeds(scorer.format)
        self.scoring = False
        """Whether a step is laid out whose reward has not been read yet."""
        self.read = 0
        """The position whose output is the reward's."""
        self.scored_tokens = 0
        """Tokens of the step that is scored."""

    def fork(self) -> TorchScorerSession:
        """Another session of the same request; each copies what the other has read."""
        other = TorchScorerSession(self._scorer, tuple(self.tokens[: self.prompt_tokens]))
        other.join(self)
        return other

    def begin(self, body: str) -> None:
        """Lay out the tokens to score a step, unless it is being scored already.

        Raises:
            WindowFull: they do not fit.
        """
        if self.scoring:
            return
        start, feed = self._feeds.lay_out(self.base, body)
        self.tokens[start:] = feed.ids
        self.cached = min(self.cached, start)
        if len(self.tokens) > self._scorer.info.window:
            raise WindowFull
        self.scoring = True
        self.read = start + feed.read
        self.scored_tokens = len(feed.ids) if body else 0

    def next_feed(self) -> SlotFeed:
        """The next chunk up to where the reward is read."""
        return self.feed(upto=self.read + 1)

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Go on behind the committed step."""
        self.scoring = False
        self.replace(self._feeds.commit(self.base, kept.body) if kept.body else ())


class TorchScorer:
    """A PRM over slots (a ``Scorer``).

    Args:
        runner: over the model, reading the outputs that the format wants.
        format: which tokens to feed, how to read a reward.
    """

    def __init__(self, runner: SlotRunner, format: PRMFormat, info: ModelInfo) -> None:
        self.runner = runner
        self.format = format
        self.info = info
        self.closed = False

    def open(self, prompt: Prompt) -> TorchScorerSession:
        """Encode a prompt as the format wants it."""
        check_open(self.info, closed=self.closed)
        return TorchScorerSession(self, prompt_tokens(self.format, prompt))

    def score(
        self, sessions: Sequence[ScorerSession], work: Sequence[ScoreStep]
    ) -> list[Scored | Exception | None]:
        """One chunk of each session as one batch; those that reach their reading position are done."""
        results: list[Scored | Exception | None] = [None] * len(work)
        waiting: list[tuple[int, TorchScorerSession]] = []
        for index, (session, step) in enumerate(zip(sessions, work, strict=True)):
            assert isinstance(session, TorchScorerSession)
            if isinstance(begun := attempt(partial(session.begin, step.body)), Exception):
                results[index] = begun
            else:
                waiting.append((index, session))
        feeds, failed = next_feeds([session for _, session in waiting])
        outputs = self.runner.run(list(feeds.values()))
        for place, output in (failed | dict(zip(feeds, outputs, strict=True))).items():
            index, session = waiting[place]
            if isinstance(output, Exception):
                results[index] = output
            else:
                results[index] = self._read(session, feeds[place], output)
        return results

    def _read(self, session: TorchScorerSession, feed: SlotFeed, output: Read) -> Scored | Exception | None:
        """The reward, if this chunk reached the position where it is read."""
        session.fed(feed, output)
        if feed.start + len(feed.tokens) <= session.read:
            return None
        session.scoring = False
        return attempt(partial(scored, self.format, output.fetched[0], session.scored_tokens))

    def close(self) -> None:
        """Give the memory back."""
        if not self.closed:
            self.closed = True
            self.runner.close()
            del self.runner, self.format
