"""What a scorer says of steps: a reward each, in [0, 1]."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from rsd_integrations.errors import RewardError
from rsd_integrations.limits import as_reward
from rsd_integrations.protocols import Kept, Scored, ScoreStep, WindowFull, Work, Written
from rsd_integrations.text.segment import step_body


def reward_of(scored: Any, index: int, step: str) -> tuple[float | None, int]:
    """A step's reward (None where the PRM has no room for it) and how many tokens the PRM read for it.

    Args:
        scored: as a scorer gave it.
        index: of the step, from 0.
        step: its text.

    Raises:
        RewardError: the scorer gave no ``Scored`` with a reward in [0, 1].
    """
    if isinstance(scored, WindowFull):
        return None, 0
    try:
        given, tokens = float(scored.reward), scored.tokens
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise RewardError(
            f"the PRM gave {scored!r:.200} for step {index}: {step!r}.",
            hint="A Scorer gives Scored(reward, tokens), its reward a number in [0, 1].",
        ) from error
    reward = as_reward(given)
    if reward is None:
        raise RewardError(
            f"the PRM gave reward {scored.reward!r}, which is not in [0, 1], for step {index}: {step!r}.",
            hint="Check that prm_format fits the PRM, and its dtype if the reward is nan.",
        )
    return reward, tokens


def score_steps(
    steps: Sequence[str], delimiters: tuple[str, ...]
) -> Generator[Work | Kept, Any, list[float | None]]:
    """The story of existing steps: each is scored and kept. Driven as ``algorithm.rsd`` is.

    A blank step has the reward of the step before it, 0 at the start. After a step that the PRM has no
    room for nothing more is scored.

    Returns:
        A reward (float) for each step, None where there was no room.

    Raises:
        RewardError: a reward is NaN or outside [0, 1].
    """
    rewards: list[float | None] = []
    last: float | None = 0.0
    for index, text in enumerate(steps):
        body = step_body(text, delimiters)
        if body:
            try:
                scored: Scored = yield ScoreStep(body)
            except WindowFull:
                return rewards + [None] * (len(steps) - index)
            last, _ = reward_of(scored, index, body)
            yield Kept("draft", Written(text, (), "delimiter"), body)
        rewards.append(last)
    return rewards
