"""The embedded trio: small draft, target and PRM, their task, and the recipe that trains them.

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DESCRIPTION", "EXAMPLE_QUESTIONS", "PocketPaths", "pocket_paths"]

DESCRIPTION = (
    "The pocket trio solves one family of word problems (names, objects, money, time, distances; 3 to 8 "
    "events, numbers to 99) and nothing else: to anything else it gives an answer, but no sensible one."
)


@dataclass(frozen=True)
class PocketPaths:
    """The folders of the three models."""

    draft: Path
    target: Path
    prm: Path


def pocket_paths() -> PocketPaths:
    """Where the trio's weights lie in the installed package."""
    root = Path(__file__).parent / "weights"
    return PocketPaths(root / "draft", root / "target", root / "prm")


def __getattr__(name: str) -> Any:
    """Read on demand: RECOMMENDED_THRESHOLD from the PRM's config, EXAMPLE_QUESTIONS from the task."""
    if name == "RECOMMENDED_THRESHOLD":
        return json.loads((pocket_paths().prm / "config.json").read_text())["rsd_prm"]["threshold"]
    if name == "EXAMPLE_QUESTIONS":
        from rsd_integrations.pocket.task import held_out

        return tuple(problem.question for problem in held_out(5, seed=5))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
