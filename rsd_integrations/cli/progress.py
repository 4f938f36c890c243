"""Progress of measurements: a bar that says how much is left; in logs, a line for each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rsd_integrations.cli.console import open_console
from rsd_integrations.report.words import many

if TYPE_CHECKING:
    from rsd_integrations.bench.sweep import Watch


@contextmanager
def watching() -> Iterator[Watch]:
    """A bar for each run of a sweep, with the time since the first; a line where that is no terminal."""
    from rsd_integrations.bench.sweep import Watch

    console = open_console(stderr=True)
    with _bar(console) as progress:
        bar = progress.add_task("warming up", total=None)
        begun = runs = 0

        def on_start(count: int) -> None:
            nonlocal runs
            runs = count

        def on_run(name: str, count: int) -> None:
            nonlocal begun
            begun += 1
            told = f"{name} ({begun} of {runs})"
            progress.update(bar, description=told, total=count, completed=0)
            if not console.is_terminal:  # For logs.
                console.print(f"{told}: {many(count, 'answer')} to make", soft_wrap=True)

        yield Watch(on_run, lambda: progress.advance(bar), on_start)


@contextmanager
def counting(console: Console, runs: int) -> Iterator[Callable[[str], None]]:
    """One bar for so many runs; to be told the name of each before it starts."""
    with _bar(console) as progress:
        bar = progress.add_task("warming up", total=runs)
        done = -1

        def on_run(name: str) -> None:
            nonlocal done
            done += 1
            progress.update(bar, description=name, completed=done)

        yield on_run


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
