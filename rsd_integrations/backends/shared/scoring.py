"""What a scorer is, wherever its model runs: how steps become tokens, and outputs a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rsd_integrations.errors import RewardError, RSDError
from rsd_integrations.prm.base import Feed, PRMFormat
from rsd_integrations.prompts import as_messages
from rsd_integrations.protocols import Scored
from rsd_integrations.raising import Converting
from rsd_integrations.types import Prompt


class StepFeeds:
    """The tokens of one request's steps in a PRM, one step after the other.

    Args:
        form: of the PRM.
    """

    def __init__(self, form: PRMFormat) -> None:
        self._form = form
        self._steps = 0
        self._last: tuple[int, Feed] | None = None
        self._laid: tuple[str, Feed] | None = None

    def lay_out(self, base: int, body: str) -> tuple[int, Feed]:
        """How many tokens stand before a step, and the tokens to score it by.

        Args:
            base: length of the committed part.
            body: as of ``ScoreStep``.
        """
        if body:
            return base, self._feed(body)
        # The last step's reward, which nobody has asked for yet: the target wrote that step.
        assert self._last is not None
        return self._last

    def commit(self, base: int, body: str) -> tuple[int, ...]:
        """Commit a step. Returns its tokens, without those that only served to read the reward."""
        feed = self._feed(body)
        self._last, self._laid = (base, feed), None
        self._steps += 1
        return feed.ids[: len(feed.ids) - feed.probe]

    def _feed(self, body: str) -> Feed:
        """The tokens of a body as the next step: encoded once, though they are scored and then committed."""
        if self._laid is None or self._laid[0] != body:
            with _naming(self._form, "lay out a step"):
                feed = self._form.step(body, self._steps)
                if not isinstance(feed, Feed):
                    raise TypeError(f"step returned {feed!r:.200}, which is no Feed")
            self._laid = body, feed
        return self._laid[1]


def prompt_tokens(form: PRMFormat, prompt: Prompt) -> tuple[int, ...]:
    """A prompt as a format wants it.

    Raises:
        RSDError: the format cannot lay it out.
    """
    with _naming(form, "lay out a prompt"):
        return tuple(form.prompt(as_messages(prompt)))


def scored(form: PRMFormat, outputs: Sequence[float], tokens: int) -> Scored:
    """The reward that a format reads from a model's outputs; NaN if one of these is.

    Args:
        tokens: of the step.

    Raises:
        RewardError: the format cannot read one.
    """
    if any(math.isnan(value) for value in outputs):
        return Scored(math.nan, tokens)
    with _naming(form, f"read a reward from {outputs!r}"):
        return Scored(float(form.reward(outputs)), tokens)


def _naming(form: PRMFormat, what: str) -> Converting[Exception]:
    """Say which format failed, and at what (a ``RewardError``); its own error may not say what to do."""

    def told(error: Exception) -> RewardError | None:
        if isinstance(error, RSDError):
            return None
        made = RewardError(
            f"the PRM format {getattr(form, 'name', type(form).__name__)!r} cannot {what}: "
            f"{type(error).__name__}: {error}.",
            hint="Choose another prm_format, or mend it.",
        )
        made.__cause__ = error
        return made

    return Converting(Exception, told)
