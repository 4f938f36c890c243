"""How a PRM's servers are asked for the outputs at the end of a sequence, and where an answer has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rsd_integrations.errors import BackendError

_LEAST = 1e-12
"""The probability to take for a server's zero, which has no logarithm."""


@dataclass(frozen=True)
class Read:
    """What an answer holds.

    ``outputs``: at the last token, up to a constant added to all of them. ``rows``: for how many tokens the
    server gave outputs, the last one included. ``cached``: whether it can go on from its prefix cache.
    """

    outputs: list[float]
    rows: int
    cached: bool


class Asking(Protocol):
    """A kind of question."""

    path: str

    def question(self, tokens: Sequence[int]) -> dict[str, Any]:
        """What is posted for a sequence, except the model's name."""
        ...

    def read(self, answer: Any) -> Read:
        """What is in the answer.

        Raises:
            BackendError: it does not hold what was asked for.
        """
        ...


@dataclass(frozen=True)
class Pooling:
    """``/pooling``: logits at the last token, at each token, or at each step's separator.

    For the first ("task": "classify" in --pooler-config) servers go on from their prefix cache; for the
    others they read all of it anew.

    Args:
        probabilities: the servers give probabilities, though asked for logits: these are made of them.
    """

    probabilities: bool = False
    path = "/pooling"

    def question(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Logits, not probabilities, by either name that versions of vLLM know."""
        return {"input": list(tokens), "use_activation": False, "activation": False}

    def read(self, answer: Any) -> Read:
        """The last row's."""
        rows = _found(self.path, answer, lambda: list(answer["data"][0]["data"]))
        if not rows:
            return Read([], 0, cached=False)
        lone = not isinstance(rows[0], list)
        values = rows if lone else rows[-1]
        outputs = _found(self.path, answer, lambda: [float(value) for value in values])
        if self.probabilities:
            outputs = [math.log(max(value, _LEAST)) for value in outputs]
        return Read(outputs, 1 if lone else len(rows), cached=lone)


@dataclass(frozen=True)
class Labelling:
    """``/v1/completions``: how likely a language model finds some tokens behind the sequence."""

    labels: tuple[int, ...]
    path = "/v1/completions"

    def question(self, tokens: Sequence[int]) -> dict[str, Any]:
        """One token, of which nothing but the labels' probabilities is looked at."""
        return {
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": 1,
            "logprob_token_ids": list(self.labels),
            "return_tokens_as_token_ids": True,
        }

    def read(self, answer: Any) -> Read:
        """The logarithms of their probabilities."""
        told: Mapping[str, float] = _found(
            self.path, answer, lambda: answer["choices"][0]["logprobs"]["top_logprobs"][0]
        )
        outputs = _found(self.path, answer, lambda: [float(told[f"token_id:{one}"]) for one in self.labels])
        return Read(outputs, 1, cached=True)


def are_probabilities(outputs: Sequence[float]) -> bool:
    """Whether they look like a softmax's: logits hardly ever do."""
    return all(0.0 <= value <= 1.0 for value in outputs) and abs(sum(outputs) - 1.0) < 1e-3


def _found(path: str, answer: Any, read: Any) -> Any:
    try:
        return read()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BackendError(
            f"the PRM's server answered {str(answer)[:200]!r} to {path}, which holds no reward.",
            hint="Check that they are vLLM servers of a tested version (see the README).",
        ) from error
