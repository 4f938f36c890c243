"""The pocket trio: an embedded draft, target and reward model for one family of word problems.

Importing this module loads neither torch nor transformers; it only knows where
the weights are and what they are for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsd_integrations.pocket.task import Problem, check_answer, generate, held_out, label_steps

__all__ = [
    "DESCRIPTION",
    "EXAMPLE_QUESTIONS",
    "MAX_TOKENS",
    "PocketPaths",
    "Problem",
    "check_answer",
    "generate",
    "held_out",
    "label_steps",
    "pocket_paths",
    "recommended_threshold",
]

DESCRIPTION = (
    "The pocket trio: three tiny models for trying RSD. They solve word problems like those in README.md, "
    "nothing else."
)


MAX_TOKENS = 256
"""Most tokens of an answer where the caller sets no limit: those of the trio's own family have up to 170, and
behind any other question it may repeat a word to the end of its window."""


@dataclass(frozen=True)
class PocketPaths:
    """The three model folders, each loadable with ``from_pretrained``."""

    draft: Path
    target: Path
    prm: Path


def pocket_paths() -> PocketPaths:
    """Where the trio's weights lie; raises FileNotFoundError if they were not shipped."""
    weights = Path(__file__).parent / "weights"
    paths = PocketPaths(weights / "draft", weights / "target", weights / "prm")
    for path in (paths.draft, paths.target, paths.prm):
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"the pocket weights are missing at {path}; train them with "
                "`python -m rsd_integrations.pocket.train --install`"
            )
    return paths


def recommended_threshold() -> float:
    """The reward threshold chosen on validation problems, from the reward model's config."""
    config = json.loads((pocket_paths().prm / "config.json").read_text(encoding="utf-8"))
    return float(config["rsd_prm"]["threshold"])


if TYPE_CHECKING:  # With __getattr__ a type checker would take any name for one of this module.
    EXAMPLE_QUESTIONS: tuple[str, ...]
    """Questions that the trio was not trained on."""
else:

    def __getattr__(name: str) -> Any:
        if name == "EXAMPLE_QUESTIONS":
            return tuple(problem.question for problem in held_out(5, seed=1, events=(4, 5, 6, 7, 8)))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
