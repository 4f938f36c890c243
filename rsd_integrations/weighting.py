"""Weighting functions: reward -> probability that the draft's step is kept.

RSD keeps a draft step with reward ``r`` with probability ``omega(r)`` (Liao et al., ICML 2025,
arXiv 2501.19324, Algorithm 2). The paper finds the binary step best in practice and optimal under
a compute budget (Proposition 2.3). All functions here are pure and take a float in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from rsd_integrations.errors import RewardError

__all__ = [
    "NAMES",
    "Name",
    "Weighting",
    "acceptance_probability",
    "clip",
    "constant",
    "logistic",
    "sigmoid",
    "step",
]

Weighting = Callable[[float], float]

Name = Literal["step", "constant", "clip", "sigmoid", "logistic"]
NAMES: tuple[Name, ...] = get_args(Name)


def step(threshold: float) -> Weighting:
    """1 if the reward reaches the threshold, else 0. No randomness."""
    return lambda reward: 1.0 if reward >= threshold else 0.0


def constant(probability: float) -> Weighting:
    """The same probability whatever the reward: the control group."""
    return lambda reward: probability


def clip(reward: float) -> float:
    """The reward itself, cut to [0, 1]."""
    return min(1.0, max(0.0, reward))


def sigmoid(reward: float) -> float:
    """``1 / (1 + exp(-reward))``: between .5 and .73 for rewards in [0, 1]."""
    return 1.0 / (1.0 + math.exp(-reward))


def logistic(threshold: float, beta: float) -> Weighting:
    """``1 / (1 + exp(-beta (reward - threshold)))``: a soft step of slope ``beta``."""

    def weigh(reward: float) -> float:
        # exp of a large positive number overflows; the logistic is 0 there to double precision.
        exponent = -beta * (reward - threshold)
        return 0.0 if exponent > 700.0 else 1.0 / (1.0 + math.exp(exponent))

    return weigh


def acceptance_probability(weighting: Weighting, reward: float) -> float:
    """Apply a weighting and insist on a probability.

    Raises:
        RewardError: the weighting failed, or gave NaN or a number outside [0, 1].
    """
    try:
        probability = float(weighting(reward))
    # Whatever it raises, even SystemExit: it runs on the thread that serves all requests.
    except BaseException as error:
        raise RewardError(
            f"the weighting failed for reward {reward!r}: {type(error).__name__}: {error}.",
            hint="A weighting must map every reward in [0, 1] to a number in [0, 1].",
        ) from error
    if not 0.0 <= probability <= 1.0:
        raise RewardError(
            f"the weighting gave {probability!r} for reward {reward!r}, which is no probability.",
            hint="A weighting must map every reward in [0, 1] to a number in [0, 1].",
        )
    return probability
