"""What the speed benchmark gives back: plain, frozen, serialisable to JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rsd_integrations.bench.results import Frozen, Report


def shown_name(name: str) -> str:
    """A contender's name in what people read. JSON keeps the older word, by which results are compared."""
    return name.replace("no guesses", "no speculation")


class Spread(Frozen):
    """Seconds of the repeats of a measurement."""

    median: float
    fastest: float
    slowest: float


class Timing(Frozen):
    """One contender at one batch size."""

    name: str
    batch: int
    acceptance: float | None = None
    """The share of steps to keep; None where nothing is drafted."""
    guesses: bool | None = None
    """Whether the target takes rejected steps as guesses; None for contenders where that is not chosen."""
    kept: float | None = None
    """The share of steps that was actually kept."""
    seconds: Spread
    """Of a run, which answers all prompts."""
    tokens: int
    """Written in a run, by the answers to all prompts together."""
    against_generate: float | None = None
    """Tokens a second / those of the target's ``generate`` at the same batch size."""
    against_target: float | None = None
    """The same against our own target-only path."""

    @property
    def tokens_per_second(self) -> float:
        """Of the median run."""
        return self.tokens / self.seconds.median


class Growth(Frozen):
    """Milliseconds a step takes in an answer of so many steps, without the first five (and the prompt)."""

    prompt_tokens: int
    steps: int
    ours: float
    reference: float | None = None
    """The reference's way: whole text again each step."""

    @property
    def ratio(self) -> float | None:
        """The reference's way / ours."""
        return None if self.reference is None else self.reference / self.ours


class Limit(Frozen):
    """How near a model comes to what the memory can feed it, alone and at batch 1."""

    role: Literal["draft", "target", "prm"]
    bytes_per_token: int
    milliseconds: float
    """Of a decoded token (draft, target) or a scored step (PRM)."""
    share: float
    """Bytes / milliseconds / measured copy bandwidth."""


class Breakdown(Frozen):
    """Where the milliseconds of a step go, at batch 1 and acceptance 0.8. The parts add up to ``wall``.

    All are of the same answers, each forward of which was waited for. On a GPU the host otherwise works while
    a forward runs, so its share is an upper bound there.
    """

    kept: float
    """The share of steps that was kept."""
    draft: float
    score: float
    target: float | None
    """None where it rewrote nothing."""
    host: float
    """Outside of the models' forwards."""
    wall: float

    @property
    def host_share(self) -> float:
        """Of the wall time."""
        return self.host / self.wall


class SpeedReport(Report):
    """The whole measurement."""

    benchmark: Literal["speed"] = "speed"
    shape: str
    bandwidth: float
    """Bytes a second of a large copy, reads and writes."""
    timings: tuple[Timing, ...]
    growth: tuple[Growth, ...] = ()
    limits: tuple[Limit, ...]
    breakdown: Breakdown
    left_out: dict[str, str] = Field(default_factory=dict)
    """Contenders that did not run, and why."""

    def timing(self, name: str, batch: int = 1) -> Timing | None:
        """A contender's, if it was measured."""
        found = (one for one in self.timings if (one.name, one.batch) == (name, batch))
        return next(found, None)
