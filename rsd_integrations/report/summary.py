"""What stands below the steps: the answer and what it cost (rich)."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rsd_integrations.report.answer import answer_of
from rsd_integrations.report.words import Remedy, cost_lines, ending, in_python, token_rows
from rsd_integrations.text.printable import printable
from rsd_integrations.types import Generation, RoleUsage

_TIGHT = 54
"""Below this many columns the token table takes short headings."""

_HEADINGS = ("generated / scored", "discarded", "forwarded")
_SHORT_HEADINGS = ("gen. /\nscored", "disc.", "fwd.")


def summary(
    generation: Generation, console: Console, seconds: float | None = None, remedy: Remedy = in_python
) -> list[RenderableType]:
    """The answer, a warning if it is unfinished, and the cost."""
    parts: list[RenderableType] = [Text("")]
    if warning := ending(generation, remedy):
        parts.append(Text(warning, style="yellow"))
    answer = answer_of(generation)
    if answer is not None:
        shown = printable(answer) or "(nothing was written)"
        parts.append(Text.assemble(("answer  ", "dim"), (shown, "bold")))
    costs = _costs(generation, console, seconds)
    if console.is_terminal:
        costs = Panel(costs, title="cost", title_align="left", expand=False, border_style="dim")
    return [*parts, costs]


def _costs(generation: Generation, console: Console, seconds: float | None) -> RenderableType:
    lines = cost_lines(generation, seconds)
    rows = token_rows(generation.usage)
    if not console.is_terminal:
        tokens = [_in_words(name, use) for name, use in rows]
        return Group(*[Text(f"{name:<10}{words}") for name, words in [lines[0], *tokens, *lines[1:]]])
    return Group(_pairs(lines[:1]), _token_table(rows, tight=console.width < _TIGHT), _pairs(lines[1:]))


def _in_words(name: str, use: RoleUsage) -> tuple[str, str]:
    done = "scored" if name == "PRM" else "generated"
    return name, f"{use.generated} tokens {done}, {use.discarded} discarded, {use.forwarded} forwarded"


def _pairs(lines: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=8)
    grid.add_column(overflow="fold")
    for name, words in lines:
        grid.add_row(name, words)
    return grid


def _token_table(rows: list[tuple[str, RoleUsage]], *, tight: bool) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=8)
    for _ in _HEADINGS:
        grid.add_column(justify="right", no_wrap=True)
    headings = _SHORT_HEADINGS if tight else _HEADINGS
    grid.add_row("tokens", *[Text(heading, style="dim") for heading in headings])
    for name, use in rows:
        grid.add_row(name, f"{use.generated:,}", f"{use.discarded:,}", f"{use.forwarded:,}")
    return grid
