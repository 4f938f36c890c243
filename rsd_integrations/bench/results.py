"""What accuracy and tuning runs give back: plain, frozen, serialisable to JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from rsd_integrations.report.answer import writable
from rsd_integrations.types import FLOPs, Role

_Given = Annotated[str, AfterValidator(writable)]
"""Text from outside, which JSON could not hold where it is a name in another encoding than UTF-8."""


class Frozen(BaseModel):
    """Results do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Frozen):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


class LengthClass(Frozen):
    """The problems with one number of events."""

    events: int
    problems: int
    accuracy: Interval


class Point(Frozen):
    """One way of answering all problems."""

    kind: Literal["draft", "rsd", "target"]
    threshold: float
    recommended: bool = False
    accuracy: Interval
    by_length: tuple[LengthClass, ...]
    against_target: Interval
    """Accuracy minus the target's on the same problems, with its paired 95 % interval."""
    acceptance_rate: float | None
    """Accepted draft steps / draft steps; None where nothing was drafted."""
    rewritten: float
    """Steps that replaced a rejected one / all steps."""
    target_idle: float
    """Share of problems for which the target wrote nothing."""
    flops: FLOPs
    """Sum over the problems."""
    flops_share: FLOPs
    """``flops`` / what the target spent on its own answers in the target-only run."""
    mean_tokens: float
    """Committed tokens a problem."""
    unfinished: int
    """Answers that a length limit ended."""
    seconds: float | None
    """Wall time of the run; None where an earlier run had made some of its answers."""


class PRMQuality(Frozen):
    """How well the PRM tells right from wrong in the draft's own greedy steps (strict labels).

    The main number takes the steps of each answer up to and including its first wrong one: there the
    steps before are right, which is the question RSD puts to a PRM, since it replaces what it rejects.
    ``all_steps`` also takes what follows a wrong step, where a label speaks of that step alone.
    """

    auc: Interval | None
    steps: int
    wrong_steps: int
    all_steps: Interval | None
    all_steps_count: int
    all_wrong_steps: int


class Check(Frozen):
    """One required number."""

    name: str
    required: str
    measured: str | None
    """None where there was nothing to measure it by: not passed."""
    passed: bool

    @classmethod
    def of(cls, name: str, required: str, measured: str | None, passed: bool) -> Check:
        """The same by position, so that a check fits in a line."""
        return cls(name=name, required=required, measured=measured, passed=passed)


class Item(Frozen):
    """A question, and who was right."""

    entry: int | None
    """Its place in its file, from 1 on."""
    known: _Given
    right: dict[str, bool]
    """By the name of the run: "draft only", "target only", "threshold 0.7", ..."""


class Made(Frozen):
    """How something was made."""

    command: _Given
    date: str
    versions: dict[str, str]
    hardware: dict[str, str]


class Report(Made):
    """What every measurement says of itself: enough to repeat it."""

    benchmark: str
    settings: dict[str, bool | int | float | _Given]
    checks: tuple[Check, ...] = ()


class AccuracyReport(Report):
    """The whole measurement."""

    benchmark: Literal["pocket-accuracy"] = "pocket-accuracy"
    weights_sha256: dict[str, str]
    recommended_threshold: float
    points: tuple[Point, ...]
    """From draft only to target only."""
    prm: PRMQuality


class TuneReport(Report):
    """Draft, target and RSD at several thresholds on questions of one's own."""

    benchmark: Literal["tune"] = "tune"
    models: dict[Role, _Given]
    points: tuple[Point, ...]
    """From draft only to target only. The recommended one is the cheapest that is good enough, if any is."""
    auc: Interval | None
    """The chance that a right answer of the draft's has a higher lowest reward than a wrong one; None where
    all are right, or all wrong."""
    drafts: int
    """The draft's answers that ``auc`` was measured by: those with a reward."""
    drafts_wrong: int
    within: float
    """How much accuracy may be lost to the target, as a share of all questions."""
    items: tuple[Item, ...]
    """All questions, in the order of the saved answers' "problem"."""
    answers_made: tuple[Made, ...] = ()
    """The commands that made the answers, where answers are saved; this report's own may have made none."""
