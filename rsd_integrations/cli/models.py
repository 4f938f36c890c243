"""Which models a command runs, and how it gets them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_integrations.adapters.secrets import has_secrets
from rsd_integrations.bench.own import find_own
from rsd_integrations.cli.settings import json_object
from rsd_integrations.errors import ConfigError
from rsd_integrations.opening import are_servers, open_models
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.prm import PRMFormat
from rsd_integrations.types import ROLES, Role


@dataclass(frozen=True)
class ModelChoice:
    """The options that say what to load. No draft, target and PRM means the pocket trio.

    Raises:
        ConfigError: some of the three models are given and some are not, a folder is missing, or a PRM format
            of one's own cannot be loaded.
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
    max_length: int | None = None
    draft_kwargs: str | None = None
    target_kwargs: str | None = None
    prm_kwargs: str | None = None

    def __post_init__(self) -> None:
        named = {"--draft": self.draft, "--target": self.target, "--prm": self.prm}
        given = self.kwargs
        missing = [option for option, value in named.items() if value is None]
        if 0 < len(missing) < len(named):
            raise ConfigError(
                f"{' and '.join(missing)} missing.",
                hint="Give --draft, --target and --prm, or none of them for the pocket trio.",
            )
        if given and self.is_pocket:
            raise ConfigError(
                f"--{next(iter(given)).replace('_', '-')} plays no part in the pocket trio.",
                hint="Leave it out, or give --draft, --target and --prm.",
            )
        if not self.is_served:
            for option, value in named.items():
                if value is not None:
                    _check_folder(option, value)
        _ = self.form  # So that it fails now, and not after everything else has been read.

    @property
    def is_served(self) -> bool:
        """Whether the models are servers.

        Raises:
            ConfigError: some are and some are not.
        """
        return are_servers(*self.models.values())

    @property
    def models(self) -> dict[Role, Any]:
        """The models' names as the library takes them: several replicas as a list."""
        return {"draft": _named(self.draft), "target": _named(self.target), "prm": _named(self.prm)}

    @property
    def form(self) -> str | type[PRMFormat] | None:
        """How the PRM reads steps: a name, or the class that "module:Class" stands for.

        The user's own code is imported here alone: a name in a model's config runs no code.

        Raises:
            ConfigError: there is no such class.
        """
        name = self.prm_format
        if name is None or ":" not in name:
            return name
        found = find_own("prm_format", name, "Class")
        if not (isinstance(found, type) and issubclass(found, PRMFormat)):
            raise ConfigError(
                f"prm_format={name!r} is no PRM format but {found!r:.80}.",
                hint="Name a subclass of rsd_integrations.PRMFormat.",
            )
        return found

    @property
    def kwargs(self) -> dict[str, dict[str, Any]]:
        """Those options of single models that were given, by the library's names.

        Raises:
            ConfigError: they are no JSON object, or hold a secret.
        """
        names = (f"{role}_kwargs" for role in ROLES)
        return {name: _read(name, text) for name in names if (text := getattr(self, name)) is not None}

    @property
    def is_pocket(self) -> bool:
        """Whether this is the embedded trio."""
        return self.draft is None


def _named(model: str | None) -> Any:
    """The name with "~" expanded; of several URLs, a list."""
    if model is None:
        return None
    if model.lower().startswith(("http://", "https://")) and "," in model:
        return [url.strip() for url in model.split(",") if url.strip()]
    return str(Path(model).expanduser()) if model.startswith("~") else model


def _read(name: str, text: str) -> dict[str, Any]:
    option = "--" + name.replace("_", "-")
    options = json_object(option, text, example='{"source": "hub/id"}')
    if has_secrets(options):
        raise ConfigError(
            f"{option} holds a secret, which histories and lists of processes show.",
            hint="Set it in the environment: VLLM_API_KEY for servers, HF_TOKEN for the hub.",
        )
    return options


def _check_folder(option: str, value: str) -> None:
    """Refuse a path that does not exist. Only the spelling tells a path from a hub id."""
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
    # The options are the loader's arguments by name: one that is not given is left to the loader's default.
    given = dict(vars(choice), prm_format=choice.form, **choice.models, **choice.kwargs)
    options = {name: value for name, value in given.items() if value is not None}
    if choice.is_pocket:
        return RSDPipeline.pocket(**options)
    with _quiet(list(choice.models.values())):
        return open_models(**options)


@contextmanager
def _quiet(models: Sequence[Any]) -> Iterator[None]:
    """Keep transformers from telling how it loads: if a checkpoint is wrong, our own error says so in a line.

    It reads these variables when it is first imported, which a command does here. Progress bars stay where
    something may have to be downloaded, and a variable that the user has set stays as it is.
    """
    wanted = {"TRANSFORMERS_VERBOSITY": "error"}
    if all(Path(str(model)).is_dir() for model in models):
        wanted["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
