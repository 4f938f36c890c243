"""Which models a command runs, and how it gets them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_integrations.errors import ConfigError
from rsd_integrations.opening import are_servers, open_models
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
        if not self.is_served:
            for option, value in named.items():
                if value is not None:
                    _check_folder(option, value)

    @property
    def is_served(self) -> bool:
        """Whether they are servers.

        Raises:
            ConfigError: some are and some are not.
        """
        return are_servers(self.draft, self.target, self.prm)

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
    with _quiet(models):
        return open_models(*models, **options)


@contextmanager
def _quiet(models: Sequence[str]) -> Iterator[None]:
    """Keep transformers from telling how it loads: what is wrong with a checkpoint our error says in a line.

    It looks at these when it is first imported, in a command only here. Where something may have to be
    downloaded its bars stay, and whoever has set one of them has chosen.
    """
    wanted = {"TRANSFORMERS_VERBOSITY": "error"}
    if all(Path(model).is_dir() for model in models):
        wanted["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _expand(model: str | None) -> str:
    return str(Path(model).expanduser()) if model and model.startswith("~") else str(model)
