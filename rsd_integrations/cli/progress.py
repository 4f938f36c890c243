"""A bar for measurements that answer many questions, where somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rsd_integrations.bench.sweep import Watch

__all__ = ["watching"]


@contextmanager
def watching() -> Iterator[Watch]:
    """A bar for each run, on stderr."""
    from rsd_integrations.bench.sweep import Watch

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("warming up", total=None)
        yield Watch(
            on_run=lambda name, count: progress.reset(bar, description=name, total=count),
            on_done=lambda: progress.advance(bar),
        )
