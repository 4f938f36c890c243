"""Where commands save their results."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rsd_integrations.errors import ConfigError

__all__ = ["check_out"]


def check_out(out: Path | None) -> None:
    """Say so before the models run and not after.

    Raises:
        ConfigError: the results could not be saved.
    """
    if out is None:
        return
    if find_spec("matplotlib") is None:
        hint = 'pip install "rsd-integrations[report]"'
        raise ConfigError("--out needs matplotlib for the plot.", hint=hint)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {str(out)!r} is a file.", hint="Name a folder.")
    out.mkdir(parents=True, exist_ok=True)
