"""Files that commands write: tried before a model runs, written after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import typer
from rich.console import Console

from rsd_integrations.errors import ConfigError
from rsd_integrations.files import unwritten, whole

if TYPE_CHECKING:
    from rsd_integrations.bench.results import Report


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


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that an earlier one stays until the new one is whole.

    Pipes, devices and links (``/dev/stdout``) are written to as they are; so is one's own file in a folder of
    somebody else.

    Args:
        path: of the file.
        write: writes to the path that it is called with, whose suffix is the same.

    Raises:
        OSError: it could not be written; says which.
    """
    in_place = path.is_symlink() or (path.exists() and not path.is_file())
    # A file that its owner made read-only is not to be replaced: writing to it fails.
    in_place = in_place or not all(os.access(one, os.W_OK) for one in (path.parent, path) if one.exists())
    try:
        with nullcontext(path) if in_place else whole(path) as file:
            write(file)
            if path.exists() and not in_place:
                shutil.copymode(path, file)  # A page that nobody else may read stays so.
    except BrokenPipeError:  # Nobody reads it any more, which is no failure to tell of.
        raise
    except OSError as error:
        raise unwritten(path, error) from error


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

    if report.checks:
        print_checks(report.checks, console)
    if out is not None:
        _save(report, console, out=out, name=name, draw=draw)
    if check and not all(one.passed for one in report.checks):
        raise typer.Exit(1)


def _save(report: Report, console: Console, *, out: Path, name: str, draw: Callable[[Any], Any]) -> None:
    from rsd_integrations.report.plot import save_figure
    from rsd_integrations.report.whole import print_text

    def save(kind: str, write: Callable[[Path], object]) -> None:
        file = out / f"{name}.{kind}"
        write_whole(file, write)
        print_text(f"wrote {file}", console, "dim")

    text = report.model_dump_json(indent=2) + "\n"
    save("json", lambda file: file.write_text(text, encoding="utf-8"))  # First: a plot may fail.
    figure = draw(report)
    for kind in ("png", "svg"):
        save(kind, partial(save_figure, figure))
