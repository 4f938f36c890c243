"""What one request costs: each model against the memory's bandwidth, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import TYPE_CHECKING

from rsd_integrations.bench.share import exact_shares
from rsd_integrations.bench.speed_results import Breakdown, Limit
from rsd_integrations.bench.speed_setting import USUAL_SHARE, Setting
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import Role, Step

if TYPE_CHECKING:
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio

_ROLES: tuple[Role, ...] = ("draft", "prm", "target")

Clock = Callable[[], float]


def measure_limits(
    pipe: RSDPipeline, plain: PlainTrio, setting: Setting, bandwidth: float, clock: Clock
) -> list[Limit]:
    """Each model at its own work alone: seconds for a token that it decodes, or a step that it scores.

    Args:
        pipe: our engine over the models.
        plain: the same models without it.
        setting: what is measured.
        bandwidth: of the device's memory, bytes a second.
        clock: seconds.
    """
    seconds: dict[Role, float] = {
        "draft": _seconds_a_token(pipe, setting, threshold=0.0),
        "target": _seconds_a_token(pipe, setting, threshold=2.0),
        "prm": _seconds_a_score(pipe, setting, clock),
    }
    sizes = {role: plain.bytes_per_token(role) for role in seconds}
    return [
        Limit(
            role=role,
            bytes_per_token=sizes[role],
            milliseconds=1000 * each,
            share=sizes[role] / each / bandwidth,
        )
        for role, each in seconds.items()
    ]


def _seconds_a_token(pipe: RSDPipeline, setting: Setting, *, threshold: float) -> float:
    """Of one model alone, on the clock: what the host does counts where the model waits for it."""
    config = setting.config(threshold=threshold)
    found = []
    for _ in range(1 + setting.repeats):
        events = pipe.stream(setting.prompts[0], config=config)
        steps = [(event.elapsed_ms, event.step) for event in events if event.type == "committed"]
        # The time of the first includes the prompt's.
        tokens = sum(step.draft_tokens + step.target_tokens for _, step in steps[1:] if step)
        found.append((steps[-1][0] - steps[0][0]) / 1000 / max(1, tokens))
    return median(found[1:])


def _seconds_a_score(pipe: RSDPipeline, setting: Setting, clock: Clock) -> float:
    with _forwards(pipe, ("prm",), clock) as seconds:
        config = setting.config(weighting="constant", acceptance_rate=1.0)
        pipe.generate(setting.prompts[0], config=config)
    # The first reads the prompt.
    return median(seconds["prm"][1:] or seconds["prm"])


def measure_breakdown(pipe: RSDPipeline, setting: Setting, clock: Clock) -> Breakdown:
    """Where the time of a step goes: the models' forwards are timed one by one, the rest is the host's.

    All of it is of the same answers: those of the repeat that took the median time.

    Args:
        pipe: our engine over the models.
        setting: what is measured.
        clock: seconds.
    """
    passes = sorted((_pass(pipe, setting, clock) for _ in range(setting.repeats)), key=lambda one: one.wall)
    return passes[len(passes) // 2]


def _pass(pipe: RSDPipeline, setting: Setting, clock: Clock) -> Breakdown:
    # Forced answers are alike. Others differ in length, and one alone may be too short for the share.
    prompts = setting.prompts[:1] if setting.forced else setting.prompts
    lengths = [setting.steps] if setting.forced else setting.usual_steps
    shares = exact_shares(USUAL_SHARE, lengths)
    wall = 0.0
    steps: list[Step] = []
    with _forwards(pipe, _ROLES, clock) as seconds:
        for prompt, share in zip(prompts, shares, strict=True):
            config = setting.config(weighting=share)
            start = clock()
            answer = pipe.generate(prompt, config=config)
            wall += clock() - start
            steps += answer.steps
    each = 1000 / len(steps)
    parts = {role: each * sum(found) for role, found in seconds.items()}
    return Breakdown(
        kept=sum(step.accepted for step in steps) / len(steps),
        draft=parts["draft"],
        score=parts["prm"],
        # A target that never ran has no time.
        target=parts["target"] if seconds["target"] else None,
        host=each * wall - sum(parts.values()),
        wall=each * wall,
    )


@contextmanager
def _forwards(
    pipe: RSDPipeline, roles: tuple[Role, ...], clock: Clock
) -> Iterator[Mapping[Role, list[float]]]:
    """Seconds of each forward of these models, the GPU's work included."""
    from rsd_integrations.backends.torch.yardsticks.forwards import timed

    with ExitStack() as stack:
        yield {role: stack.enter_context(timed(getattr(pipe.backend, role), clock)) for role in roles}
