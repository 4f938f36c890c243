"""Files that commands write: tried before a model runs, written after it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import typer
from rich.console import Console

from rsd_integrations.errors import ConfigError

if TYPE_CHECKING:
    from rsd_integrations.bench.results import Report

__all__ = ["check_file", "check_out", "conclude"]


def check_out(out: Path | None) -> None:
    """Make the folder of ``--out`` and try to write there, before the models run and not after.

    Raises:
        ConfigError: the results could not be saved.
    """
    if out is None:
        return
    if find_spec("matplotlib") is None:
        hint = 'pip install "rsd-integrations[report]"'
        raise ConfigError("--out needs matplotlib for the plot.", hint=hint)
    try:
        if out.is_file():
            raise ConfigError(f"--out {str(out)!r} is a file.", hint="Name a folder.")
        out.mkdir(parents=True, exist_ok=True)
        # Not by tempfile: on Windows it takes a denied access for a name in use, and goes on trying others.
        trial = out / f".rsd-{uuid4().hex}"
        trial.open("xb").close()
        trial.unlink()
    except OSError as error:
        raise ConfigError(
            f"--out {str(out)!r} cannot be written to: {error.strerror}.",
            hint="Name a folder of your own, or one to be made.",
        ) from error


def check_file(option: str, path: Path | None) -> None:
    """Try to write to a file, before the models run and not after. Leaves it as it was.

    Raises:
        ConfigError: it cannot be written.
    """
    if path is None:
        return
    try:
        there = path.exists()
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{option} {str(path)!r} cannot be written: {error.strerror}.",
            hint="Name a file in an existing folder.",
        ) from error


def conclude(
    report: Report, console: Console, *, out: Path | None, name: str, draw: Callable[[Any], Any], check: bool
) -> None:
    """How every measurement ends: its required numbers, its files, its exit code.

    Args:
        report: what was measured.
        console: where it is told.
        out: folder for JSON and plot.
        name: of the files.
        draw: makes a figure of the report.
        check: whether a missed number is a failure.

    Raises:
        typer.Exit: a required number is missed, and ``check``.
    """
    from rsd_integrations.bench.table import print_checks
    from rsd_integrations.report.whole import print_text

    if report.checks:
        print_checks(report.checks, console)
    if out is not None:
        from rsd_integrations.report.plot import save_figure

        result = out / f"{name}.json"
        result.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for file in [result, *save_figure(draw(report), out, name)]:
            print_text(f"wrote {file}", console, "dim")
    if check and not all(one.passed for one in report.checks):
        raise typer.Exit(1)
