"""Speed of RSD beside the other ways to get an answer, on one device, in one run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from rsd_integrations.bench.results import Interval
from rsd_integrations.bench.speed_results import Breakdown, Growth, Limit, Timing
from rsd_integrations.config import RSDConfig
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import Role, StepEvent

if TYPE_CHECKING:
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio, Workload

__all__ = [
    "GROWTH_STEPS",
    "Setting",
    "SpeedBench",
    "Speeds",
    "memory_bandwidth",
    "open_plain_pocket",
    "open_shape",
]

GENERATE, TARGET_ONLY, ASSISTED = "generate", "target only", "assisted generate"
COMPILED, REFERENCE = "generate, compiled", "reference's way 0.8"
GROWTH_STEPS = (10, 20, 40, 80)
REFERENCE_STEPS = 20
FIRST = 5


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        shape: "pocket" or a shape of random weights.
        prompts: answered in every measurement, so many at a time as the batch; each with a seed of its own.
        acceptances: chances to keep a step, by the paper's constant weighting.
        batches: requests at once.
        steps: of an answer, where lengths are forced.
        step_tokens: of a step, likewise.
        repeats: of each measurement; the median counts.
        compile: whether our engine's forwards are compiled.
        growth: prompts behind which the time of a step is followed over 80 steps, by their lengths in tokens,
            where lengths are forced.
    """

    shape: str
    prompts: Sequence[str]
    acceptances: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95)
    batches: Sequence[int] = (1, 4, 16)
    steps: int = 10
    step_tokens: int = 16
    repeats: int = 5
    compile: bool = False
    growth: Mapping[int, str] = field(default_factory=dict)

    @property
    def forced(self) -> bool:
        """Whether the lengths are forced: random weights never end."""
        return self.shape != "pocket"

    def config(self, *, steps: int | None = None, **fields: Any) -> RSDConfig:
        """Settings of an answer."""
        if self.forced:
            count = steps or self.steps
            fields |= {
                "step_delimiter": "\0",
                "max_step_tokens": self.step_tokens,
                "max_tokens": count * self.step_tokens,
                "max_steps": count,
            }
        return RSDConfig(**{"seed": 1, "max_tokens": 512, **fields})

    def work(self, prompts: Sequence[str], *, steps: int | None = None) -> Workload:
        """The same for plain transformers, as one batch."""
        from rsd_integrations.backends.torch.yardsticks.plain import Workload

        tokens = (steps or self.steps) * self.step_tokens if self.forced else 512
        return Workload(prompts, tokens, self.step_tokens, self.forced)

    def works(self, batch: int) -> list[Workload]:
        """All prompts, a batch after the other."""
        return [self.work(self.prompts[at : at + batch]) for at in range(0, len(self.prompts), batch)]


def open_shape(setting: Setting, *, device: str, dtype: str, window: int) -> tuple[RSDPipeline, PlainTrio]:
    """A trio of random weights, in our engine and plain: the same models.

    Raises:
        ConfigError: the shape or the dtype is not known.
    """
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio
    from rsd_integrations.backends.torch.yardsticks.shapes import random_trio

    models = random_trio(setting.shape, device=device, dtype=dtype, window=window)
    pipe = RSDPipeline.from_pretrained(
        models["draft"],
        models["target"],
        models["prm"],
        prm_format="trl",
        device=device,
        max_batch_size=max(setting.batches),
        max_length=window,
        compile=setting.compile,
        # The same prompts are answered again and again, and the other ways read them each time.
        prefix_caching=False,
    )
    return pipe, PlainTrio(models)


def open_plain_pocket() -> PlainTrio:
    """The pocket trio without our engine, on the CPU."""
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio
    from rsd_integrations.pocket import no_progress_bars, pocket_paths

    with no_progress_bars():
        return PlainTrio.load(vars(pocket_paths()))


def memory_bandwidth(device: str) -> float:
    """Bytes a second of a large copy, reads and writes."""
    from rsd_integrations.backends.torch.yardsticks.bandwidth import copy_bandwidth

    return copy_bandwidth(device)


@dataclass
class Speeds:
    """What came out."""

    timings: list[Timing] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    breakdown: Breakdown = field(
        default_factory=lambda: Breakdown(draft=0, score=0, target=0, wall=0, host_share=0)
    )
    left_out: dict[str, str] = field(default_factory=dict)


class SpeedBench:
    """Measures one trio.

    Args:
        pipe: our engine over the models.
        plain: the same models without it.
        setting: what is measured.
    """

    def __init__(self, pipe: RSDPipeline, plain: PlainTrio, setting: Setting) -> None:
        self._pipe, self._plain, self._setting = pipe, plain, setting
        self._on_run: Callable[[str], object] = lambda _: None

    def measure(self, bandwidth: float, on_run: Callable[[str], object] = lambda _: None) -> Speeds:
        """Everything.

        Args:
            bandwidth: of the device's memory, bytes a second.
            on_run: told the name of each measurement before it starts.
        """
        self._on_run = on_run
        speeds = Speeds()
        for batch in self._setting.batches:
            speeds.timings += self._side_by_side(batch, speeds)
        if self._setting.forced:
            for length, prompt in self._setting.growth.items():
                speeds.growth += self._growth(length, prompt)
        speeds.limits, speeds.breakdown = self._limits(bandwidth), self._breakdown()
        return speeds

    def _side_by_side(self, batch: int, speeds: Speeds) -> list[Timing]:
        contenders: dict[str, Callable[[], int]] = {}
        for name, run in self._contenders(batch):
            self._on_run(f"{name}, batch {batch}: warming up")
            try:
                run()
            except Exception as error:
                speeds.left_out[f"{name}, batch {batch}"] = f"{type(error).__name__}: {error!s:.120}"
            else:
                contenders[name] = run
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        tokens: dict[str, int] = {}
        # In turns, so that whatever else the machine does is shared.
        for _ in range(self._setting.repeats):
            for name, run in contenders.items():
                self._on_run(f"{name}, batch {batch}")
                start = time.perf_counter()
                tokens[name] = run()
                seconds[name].append(time.perf_counter() - start)
        rates = {name: tokens[name] / median(seconds[name]) for name in contenders}
        return [
            Timing(
                name=name,
                batch=batch,
                seconds=_spread(seconds[name]),
                tokens=tokens[name],
                against_generate=rates[name] / rates[GENERATE] if GENERATE in rates else None,
                against_target=rates[name] / rates[TARGET_ONLY] if TARGET_ONLY in rates else None,
            )
            for name in contenders
        ]

    def _contenders(self, batch: int) -> Iterator[tuple[str, Callable[[], int]]]:
        setting, plain = self._setting, self._plain
        works = setting.works(batch)
        yield GENERATE, lambda: sum(map(plain.generate, works))
        if batch == 1:
            yield ASSISTED, lambda: sum(plain.generate(work, assisted=True) for work in works)
        if plain.on_gpu:
            yield COMPILED, lambda: sum(plain.generate(work, compiled=True) for work in works)
        yield TARGET_ONLY, self._ours(batch, threshold=2.0)
        for acceptance in setting.acceptances:
            for name, speculation in (
                (f"RSD {acceptance:g}", True),
                (f"RSD {acceptance:g}, no guesses", False),
            ):
                chance = {"weighting": "constant", "acceptance_rate": acceptance}
                yield name, self._ours(batch, **chance, speculation=speculation)
        if setting.forced and batch == 1:
            yield REFERENCE, lambda: sum(map(plain.reference, works))

    def _ours(self, batch: int, **fields: Any) -> Callable[[], int]:
        config = self._setting.config(**fields)
        return lambda: asyncio.run(self._answer(batch, config))

    async def _answer(self, batch: int, config: RSDConfig) -> int:
        """Tokens of all answers, so many requests at a time."""
        free = asyncio.Semaphore(batch)

        async def one(seed: int, prompt: str) -> int:
            async with free:
                generation = await self._pipe.agenerate(prompt, config=config, seed=seed)
            return generation.usage.completion_tokens

        return sum(await asyncio.gather(*(one(*given) for given in enumerate(self._setting.prompts))))

    def _growth(self, length: int, prompt: str) -> list[Growth]:
        """Behind the first five steps, of which one is rewritten: by then all three have read the prompt.

        An answer of ten steps is the beginning of one of eighty, so that one is looked at on its way.
        """
        longest = max(GROWTH_STEPS)
        self._on_run(f"{longest} steps, prompt of {length}")
        ours = [self._step_times(longest, prompt) for _ in range(1 + self._setting.repeats)][1:]
        self._on_run(f"{REFERENCE_STEPS} steps the reference's way, prompt of {length}")
        work = self._setting.work([prompt], steps=REFERENCE_STEPS)
        # Its way grows with the square, so it is not followed to the end.
        theirs = [self._plain.reference_times(work) for _ in range(1 + self._setting.repeats)][1:]
        return [
            Growth(
                prompt_tokens=length,
                steps=steps,
                ours=_each_behind_the_first(ours, steps),
                reference=_each_behind_the_first(theirs, steps) if steps <= REFERENCE_STEPS else None,
            )
            for steps in GROWTH_STEPS
        ]

    def _step_times(self, steps: int, prompt: str) -> list[float]:
        """Seconds at which each step of an answer was committed. Four of five are kept."""
        # By chance the beginning of an answer would not have the same share of rewrites as the whole.
        config = self._setting.config(steps=steps, weighting=_FourOfFive())
        return [event.elapsed_ms / 1000 for event in self._committed(config, prompt)]

    def _committed(self, config: RSDConfig, prompt: str) -> list[StepEvent]:
        events = self._pipe.stream(prompt, config=config)
        return [event for event in events if event.type == "committed"]

    def _limits(self, bandwidth: float) -> list[Limit]:
        """Each model at its own work alone: seconds for a token that it decodes, or a step that it scores."""
        seconds: dict[Role, float] = {
            "draft": self._seconds_a_token(threshold=0.0),
            "target": self._seconds_a_token(threshold=2.0),
        }
        self._on_run("prm against the memory")
        with _timed_forwards(self._pipe, "prm") as forwards:
            config = self._setting.config(weighting="constant", acceptance_rate=1.0)
            self._pipe.generate(self._setting.prompts[0], config=config)
        # The first reads the prompt.
        seconds["prm"] = median(forwards[1:] or forwards)
        sizes = {role: self._plain.bytes_per_token(role) for role in seconds}
        return [
            Limit(
                role=role,
                bytes_per_token=sizes[role],
                milliseconds=1000 * each,
                share=sizes[role] / each / bandwidth,
            )
            for role, each in seconds.items()
        ]

    def _seconds_a_token(self, *, threshold: float) -> float:
        """Of one model alone, on the clock: what the host does counts where the model waits for it."""
        self._on_run(f"threshold {threshold:g} against the memory")
        config = self._setting.config(threshold=threshold)
        found = []
        for _ in range(1 + self._setting.repeats):
            steps = self._committed(config, self._setting.prompts[0])
            # The first one's time is the prompt's too.
            tokens = sum(
                event.step.draft_tokens + event.step.target_tokens for event in steps[1:] if event.step
            )
            found.append((steps[-1].elapsed_ms - steps[0].elapsed_ms) / 1000 / max(1, tokens))
        return median(found[1:])

    def _breakdown(self) -> Breakdown:
        """Where a step's time goes: the models' by their forwards one by one, the rest is the host's."""
        self._on_run("where the time goes")
        config = self._setting.config(weighting="constant", acceptance_rate=0.8)
        prompt = self._setting.prompts[0]
        walls, sums = [], []
        for _ in range(self._setting.repeats):
            start = time.perf_counter()
            generation = self._pipe.generate(prompt, config=config)
            walls.append(time.perf_counter() - start)
            with (
                _timed_forwards(self._pipe, "draft") as draft,
                _timed_forwards(self._pipe, "prm") as prm,
                _timed_forwards(self._pipe, "target") as target,
            ):
                self._pipe.generate(prompt, config=config)
            sums.append((sum(draft), sum(prm), sum(target)))
        steps = max(1, len(generation.steps))
        wall, models = median(walls), [median(seconds) for seconds in zip(*sums, strict=True)]
        draft_ms, score_ms, target_ms = (1000 * seconds / steps for seconds in models)
        return Breakdown(
            draft=draft_ms,
            score=score_ms,
            target=target_ms,
            wall=1000 * wall / steps,
            host_share=max(0.0, 1 - sum(models) / wall),
        )


def _each_behind_the_first(answers: Sequence[Sequence[float]], steps: int) -> float:
    """Milliseconds a step from the sixth to the last of so many; the median of some answers' times."""
    return 1000 * median((times[steps - 1] - times[FIRST - 1]) / (steps - FIRST) for times in answers)


class _FourOfFive:
    """A weighting that keeps four steps of five, whatever their rewards."""

    def __init__(self) -> None:
        self._asked = 0

    def __call__(self, reward: float) -> float:
        self._asked += 1
        return float(self._asked % 5 != 0)


def _spread(seconds: Sequence[float]) -> Interval:
    return Interval(value=median(seconds), low=min(seconds), high=max(seconds))


@contextmanager
def _timed_forwards(pipe: RSDPipeline, role: str) -> Iterator[list[float]]:
    """Seconds of each forward of a model, the GPU's work included."""
    from rsd_integrations.backends.torch.yardsticks.forwards import timed

    with timed(getattr(pipe.backend, role)) as seconds:
        yield seconds
