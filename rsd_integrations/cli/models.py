"""Which models a command runs, and how it gets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_integrations.errors import ConfigError
from rsd_integrations.pipeline import RSDPipeline

__all__ = ["ModelChoice", "OpenPipeline", "State", "open_pipeline"]


@dataclass(frozen=True)
class ModelChoice:
    """The options that say what to load. No draft, target and PRM means the pocket trio.

    Raises:
        ConfigError: some of the three models are given and some are not, or a folder is missing.
    """

    draft: str | None = None
    target: str | None = None
    prm: str | None = None
    prm_format: str | None = None
    device: str | None = None
    dtype: str | None = None
    max_batch_size: int | None = None
    compile: bool | None = None
    prefix_caching: bool | None = None

    def __post_init__(self) -> None:
        named = {"--draft": self.draft, "--target": self.target, "--prm": self.prm}
        missing = [option for option, value in named.items() if value is None]
        if 0 < len(missing) < len(named):
            raise ConfigError(
                f"{' and '.join(missing)} missing.",
                hint="Give --draft, --target and --prm, or none of them for the pocket trio.",
            )
        for option, value in named.items():
            if value is not None:
                _check_folder(option, value)

    @property
    def is_pocket(self) -> bool:
        """Whether this is the embedded trio."""
        return self.draft is None


def _check_folder(option: str, value: str) -> None:
    """A path that is not there; a hub id is told from a path by its looks alone."""
    is_path = value.startswith((".", "/", "~")) or value.count("/") > 1 or "\\" in value
    if not value or (is_path and not Path(value).expanduser().is_dir()):
        raise ConfigError(
            f"{option} {value!r} is not a folder.", hint="Give a folder with a model, or a hub id."
        )


OpenPipeline = Callable[[ModelChoice], RSDPipeline]


@dataclass(frozen=True)
class State:
    """What commands need from outside (``ctx.obj``)."""

    open_pipeline: OpenPipeline
    command_line: str = "rsd"


def open_pipeline(choice: ModelChoice) -> RSDPipeline:
    """Load the chosen models.

    Raises:
        RSDError: a model cannot be loaded or cannot play its role.
    """
    given = {
        "prm_format": choice.prm_format,
        "device": choice.device,
        "dtype": choice.dtype,
        "prefix_caching": choice.prefix_caching,
        "max_batch_size": choice.max_batch_size,
        "compile": choice.compile,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if choice.is_pocket:
        return RSDPipeline.pocket(**options)
    models = (_expand(choice.draft), _expand(choice.target), _expand(choice.prm))
    return RSDPipeline.from_pretrained(*models, **options)


def _expand(model: str | None) -> str:
    return str(Path(model).expanduser()) if model and model.startswith("~") else str(model)
