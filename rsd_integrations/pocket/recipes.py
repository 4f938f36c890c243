"""Every knob of the installed trio in one place: shapes, seeds, rates and budgets."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from rsd_integrations.pocket.data import Mixture
from rsd_integrations.pocket.loop import Budget, Recipe
from rsd_integrations.pocket.task import generate
from rsd_integrations.pocket.tokenizer import CHAT_TEMPLATE, SPLIT


@dataclass(frozen=True)
class Shape:
    """A Qwen2 shape: residual width, layers, heads of ``head_dim``, MLP units."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    head_dim: int


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own rates, mixture and budget; optimizers start afresh."""

    recipe: Recipe
    budget: Budget


@dataclass(frozen=True)
class Stage:
    """One language model: its shape, the seed of its first weights, and its phases."""

    shape: Shape
    seed: int
    phases: tuple[Phase, ...]


def _phase(*, tokens: int, sums: float, **rates: Any) -> Phase:
    return Phase(Recipe(mixture=Mixture(sums=sums), **rates), Budget(tokens=tokens))


BASE = Stage(
    Shape(hidden=128, layers=4, heads=8, mlp=384, head_dim=16),
    seed=101,
    phases=(
        # Long at full rate, then a short decay: all sums are off by one until the rate falls.
        _phase(seed=101, size=16, muon_lr=0.008, adam_lr=0.015, constant=0.86, sums=0.25, tokens=6_640_000),
    ),
)
TARGET = Stage(
    Shape(hidden=128, layers=6, heads=8, mlp=1536, head_dim=16),
    seed=102,
    phases=(
        _phase(seed=102, size=24, muon_lr=0.005, adam_lr=0.004, constant=0.3, sums=0.12, tokens=3_600_000),
    ),
)
TRUNK = Stage(
    Shape(hidden=80, layers=3, heads=4, mlp=160, head_dim=16),
    seed=201,
    phases=(
        _phase(seed=201, size=12, muon_lr=0.007, adam_lr=0.012, constant=0.3, sums=0.15, tokens=6_240_000),
        _phase(seed=202, size=12, muon_lr=0.005, adam_lr=0.005, constant=0.1, sums=0.4, tokens=1_520_000),
        _phase(seed=203, size=12, muon_lr=0.007, adam_lr=0.008, constant=0.3, sums=0.5, tokens=1_160_000),
        _phase(seed=204, size=12, muon_lr=0.007, adam_lr=0.008, constant=0.3, sums=0.5, tokens=4_500_000),
    ),
)
DRAFT = Stage(
    Shape(hidden=48, layers=2, heads=3, mlp=144, head_dim=16),
    seed=301,
    phases=(
        _phase(seed=301, size=8, muon_lr=0.007, adam_lr=0.012, constant=0.3, sums=0.15, tokens=4_500_000),
        _phase(seed=302, size=12, muon_lr=0.007, adam_lr=0.008, constant=0.3, sums=0.5, tokens=4_500_000),
    ),
)
# The draft shipped lies on the line from its first to its second phase (1 is the second): a draft
# that is nearly always right would leave nothing to reward or reject.
DRAFT_BLEND = 0.88
STAGES = {"base": BASE, "target": TARGET, "trunk": TRUNK, "draft": DRAFT}

PRM_SEED = 401
PRM_BUDGET = Budget(tokens=8_330_000)
# (model, temperature, problems): what the reward model learns from besides spoilt gold steps.
ROLLOUTS = (
    ("base", 0.0, 300),
    ("base", 1.0, 300),
    ("draft/first", 0.0, 2000),
    ("draft/first", 1.0, 1000),
    ("draft", 0.0, 2000),
    ("draft", 0.7, 700),
)
EVALUATION_PROBLEMS = 500
VALIDATION_PROBLEMS = 500
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98)


@dataclass(frozen=True)
class Extent:
    """How much of the recipe to do.

    ``scale`` multiplies all its numbers: tokens, rollouts, problems that are measured. Where given,
    ``minutes`` or ``tokens`` replace the budget of each phase.
    """

    minutes: float | None = None
    tokens: int | None = None
    scale: float = 1.0

    def __str__(self) -> str:
        """As the command line asks for it; empty for the whole recipe."""
        asked = {name: value for name, value in asdict(self).items() if value != getattr(Extent(), name)}
        return " ".join(f"--{name} {value}" for name, value in asked.items())

    def count(self, whole: int) -> int:
        """One of the recipe's numbers at this scale, at least one."""
        return max(1, round(whole * self.scale))

    def budget(self, own: Budget) -> Budget:
        """The budget of a phase."""
        if self.minutes is not None or self.tokens is not None:
            return Budget(self.minutes, self.tokens)
        return own if own.tokens is None else replace(own, tokens=self.count(own.tokens))

    def stage(self, name: str) -> Stage:
        """A stage with its budgets."""
        stage = STAGES[name]
        phases = (replace(phase, budget=self.budget(phase.budget)) for phase in stage.phases)
        return replace(stage, phases=tuple(phases))

    def rollouts(self) -> tuple[tuple[str, float, int], ...]:
        """``ROLLOUTS`` with their numbers of problems at this scale."""
        return tuple((name, temperature, self.count(count)) for name, temperature, count in ROLLOUTS)


def digest() -> str:
    """Tells recipes apart by what they train, on what: numbers above, some problems, and how text is cut."""
    problems = [(problem.question, problem.solution) for problem in islice(generate(0), 100)]
    facts = (STAGES, DRAFT_BLEND, PRM_SEED, PRM_BUDGET, ROLLOUTS, problems, SPLIT, CHAT_TEMPLATE)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
