"""Scripted pipelines in the place of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from rsd_integrations.cli import main
from rsd_integrations.cli.models import ModelChoice
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline

DRAFT = ["12 + 9 = 21.\n\n", "21 + 12 = 35.\n\n", "The answer is \\boxed{33}."]
TARGET = ["unused\n\n", "21 + 12 = 33.\n\n", "The answer is \\boxed{99}."]
REWARDS = [0.9, 0.2, 0.95]


@dataclass
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


@dataclass
class Rsd:
    """Calls ``main`` with scripted models and remembers which were asked for."""

    capsys: pytest.CaptureFixture[str]
    open: Callable[[], RSDPipeline] = lambda: scripted_pipeline(DRAFT, TARGET, REWARDS)
    choices: list[ModelChoice] = field(default_factory=list)

    def __call__(self, *arguments: str) -> Result:
        def opener(choice: ModelChoice) -> RSDPipeline:
            self.choices.append(choice)
            return self.open()

        code = main(list(arguments), open_pipeline=opener)
        captured = self.capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def scripted(self, *scripts: Any, **options: Any) -> None:
        """Bring other scripts."""
        self.open = lambda: scripted_pipeline(*scripts, **options)


@pytest.fixture
def rsd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Rsd:
    for name in ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Rsd(capsys)
