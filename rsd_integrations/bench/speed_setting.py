"""What ``rsd bench speed`` measures, and on which models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rsd_integrations.bench.share import ExactShare, exact_shares
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError
from rsd_integrations.pipeline import RSDPipeline

if TYPE_CHECKING:
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio, Workload

USUAL_SHARE = 0.8
"""Share of steps kept, where one share stands for all."""


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        shape: "pocket" or a shape of random weights.
        prompts: all answered in every measurement, as many at a time as the batch.
        acceptances: shares of steps to keep, without luck (``ExactShare``).
        batches: requests at once.
        steps: steps of an answer, where lengths are forced.
        step_tokens: tokens of a step, likewise.
        usual_steps: steps of the answer to each prompt, where lengths are not forced.
        repeats: of each measurement; the median counts.
        compile: whether our engine's forwards are compiled.
        growth: by their lengths in tokens, prompts after which the time of a step is followed over 80 steps,
            where lengths are forced.

    Raises:
        ConfigError: there are fewer prompts than requests at once.
    """

    shape: str
    prompts: Sequence[str]
    acceptances: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95)
    batches: Sequence[int] = (1, 4, 16)
    steps: int = 10
    step_tokens: int = 16
    usual_steps: Sequence[int] = ()
    repeats: int = 5
    compile: bool = False
    growth: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.prompts) < (most := max(self.batches)):
            raise ConfigError(
                f"{len(self.prompts)} prompts never make a batch of {most}.",
                hint=f"Give at least {most} --prompts, or smaller --batches.",
            )

    @property
    def forced(self) -> bool:
        """Whether the lengths are forced: random weights never end an answer."""
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

    def shares(self, acceptance: float) -> list[ExactShare]:
        """Weightings of the answers to all prompts, which keep this share of their steps."""
        return exact_shares(acceptance, self.usual_steps or [self.steps] * len(self.prompts))

    def work(self, prompts: Sequence[str], *, steps: int | None = None) -> Workload:
        """What plain transformers do to answer these prompts, as one batch and at the same lengths."""
        from rsd_integrations.backends.torch.yardsticks.plain import Workload

        tokens = (steps or self.steps) * self.step_tokens if self.forced else 512
        return Workload(prompts, tokens, self.step_tokens)

    def works(self, batch: int) -> list[Workload]:
        """The same for all prompts, one batch after the other."""
        return [self.work(self.prompts[at : at + batch]) for at in range(0, len(self.prompts), batch)]


def open_shape(setting: Setting, *, device: str, dtype: str, window: int) -> tuple[RSDPipeline, PlainTrio]:
    """A trio of random weights, in our engine and plain: the same models.

    Raises:
        ConfigError: the shape, the device or the dtype is not known here.
    """
    from rsd_integrations.backends.shared.sources import check_placement
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio
    from rsd_integrations.backends.torch.yardsticks.shapes import random_trio

    check_placement(device, dtype, "")
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
    from rsd_integrations.backends.shared.bars import no_progress_bars
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio
    from rsd_integrations.pocket import pocket_paths

    with no_progress_bars(anywhere=True):
        return PlainTrio.load(vars(pocket_paths()))
