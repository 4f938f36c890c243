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
        self._scoring = False
        """Whether a step is laid out whose reward has not been read yet."""
        self._read = 0
        """The position whose output is the reward's."""
        self._scored_tokens = 0
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
        if self._scoring:
            return
        start, feed = self._feeds.lay_out(self.base, body)
        self.tokens[start:] = feed.ids
        self.cached = min(self.cached, start)
        if len(self.tokens) > self._scorer.info.window:
            raise WindowFull
        self._scoring = True
        self._read = start + feed.read
        self._scored_tokens = len(feed.ids) if body else 0

    def next_feed(self) -> SlotFeed:
        """The next chunk up to where the reward is read."""
        return self.feed(upto=self._read + 1)

    def take(self, feed: SlotFeed, output: Read) -> Scored | None:
        """Take what a chunk gave: the reward, if it reached the position where that is read."""
        self.fed(feed, output)
        if feed.start + len(feed.tokens) <= self._read:
            return None
        self._scoring = False
        return scored(self._scorer.format, output.fetched[0], self._scored_tokens)

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Go on behind the committed step."""
        self._scoring = False
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
        own = [session for session in sessions if isinstance(session, TorchScorerSession)]
        results: list[Scored | Exception | None] = [
            attempt(partial(session.begin, step.body)) for session, step in zip(own, work, strict=True)
        ]
        going = {index: session for index, session in enumerate(own) if results[index] is None}
        feeds, failed = next_feeds(going)
        outputs = self.runner.run(list(feeds.values()))
        for index, output in (failed | dict(zip(feeds, outputs, strict=True))).items():
            if isinstance(output, Exception):
                results[index] = output
            else:
                results[index] = attempt(partial(own[index].take, feeds[index], output))
        return results

    def close(self) -> None:
        """Give the memory back."""
        if not self.closed:
            self.closed = True
            self.runner.close()
            del self.runner, self.format
