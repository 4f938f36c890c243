"""A progress bar for measurements that answer many questions; in logs, a line for each run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rsd_integrations.report.words import many

if TYPE_CHECKING:
    from rsd_integrations.bench.sweep import Watch

__all__ = ["watching"]


@contextmanager
def watching() -> Iterator[Watch]:
    """A bar for each run, on stderr; a line where that is no terminal."""
    from rsd_integrations.bench.sweep import Watch

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("warming up", total=None)

        def on_run(name: str, count: int) -> None:
            progress.reset(bar, description=name, total=count)
            if not console.is_terminal:  # For logs.
                console.print(f"{name}: {many(count, 'answer')} to make", highlight=False, soft_wrap=True)

        yield Watch(on_run, lambda: progress.advance(bar))
