"""Tables and sentences that stay whole where rich would cut or fold them (rich)."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

_ANY = 10_000
"""More columns than any table needs."""


def print_whole(table: Table, console: Console, title: str = "") -> None:
    """Print a table as wide as it is: rich would cut or fold cells to the terminal's width.

    Args:
        table: what to print.
        console: where.
        title: printed above the table; rich would fold a title of the table itself to the table's width.
    """
    if title:
        console.print(Text(title))
    needed = Measurement.get(console, console.options.update(max_width=_ANY), table).maximum
    options = console.options.update(max_width=_ANY, width=needed)
    console.print(Segments(console.render(table, options)), crop=False, soft_wrap=True, end="")


def print_text(text: str, console: Console, style: str = "") -> None:
    """Print a sentence. A pipe has no width: what reads it wants one line of it, not rich's 80 columns."""
    console.print(Text(text, style=style), soft_wrap=not console.is_terminal)
