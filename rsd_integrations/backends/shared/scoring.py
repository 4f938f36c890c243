"""What a scorer is, wherever its model runs: how steps become tokens, and outputs a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rsd_integrations.errors import RewardError
from rsd_integrations.prm.base import Feed, PRMFormat
from rsd_integrations.protocols import Scored

__all__ = ["StepFeeds", "scored"]


class StepFeeds:
    """The tokens of one request's steps in a PRM, each behind the last.

    Args:
        form: of the PRM.
    """

    def __init__(self, form: PRMFormat) -> None:
        self._form = form
        self._steps = 0
        self._last: tuple[int, Feed] | None = None
        self._laid: tuple[str, Feed] | None = None

    def lay_out(self, base: int, body: str) -> tuple[int, Feed]:
        """The tokens to score a step by, and behind how many others they stand.

        Args:
            base: length of the committed part.
            body: as of ``ScoreStep``.
        """
        if body:
            return base, self._feed(body)
        # The last step's reward: it was written by the target, so nobody has asked for it yet.
        assert self._last is not None
        return self._last

    def commit(self, base: int, body: str) -> tuple[int, ...]:
        """Commit a step. Its tokens that stay."""
        feed = self._feed(body)
        self._last, self._laid = (base, feed), None
        self._steps += 1
        return feed.ids[: len(feed.ids) - feed.probe]

    def _feed(self, body: str) -> Feed:
        """The tokens of a body as the next step: encoded once, though they are scored and then committed."""
        if self._laid is None or self._laid[0] != body:
            self._laid = body, self._form.step(body, self._steps)
        return self._laid[1]


def scored(form: PRMFormat, outputs: Sequence[float], tokens: int) -> Scored:
    """The reward that a format reads from a model's outputs; NaN where one of them is.

    Args:
        tokens: of the step.

    Raises:
        RewardError: it cannot.
    """
    if any(math.isnan(value) for value in outputs):
        return Scored(math.nan, tokens)
    try:
        return Scored(float(form.reward(outputs)), tokens)
    except Exception as error:
        raise RewardError(
            f"the PRM format {form.name!r} cannot read a reward from {outputs!r}: {error}.",
            hint="Choose another prm_format.",
        ) from error
