"""A scripted answer of three steps, the second one rejected."""

from __future__ import annotations

from typing import Any

from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline

DRAFT = ["one\n\n", "two\n\n", "three"]
TARGET = ["ONE\n\n", "TWO\n\n", "THREE"]
REWARDS = [0.9, 0.1, 0.8]
ANSWER = "one\n\nTWO\n\nthree"
NAMES = ["rsd_step_accepted", "rsd_step_rejected", "rsd_step_accepted"]
QUESTION = "What comes next?"


def counting_pipeline(**options: Any) -> RSDPipeline:
    """Three steps, the second one rejected."""
    return scripted_pipeline(DRAFT, TARGET, REWARDS, **options)
