"""Help texts for narrow terminals, in plain lists: typer's panels would cut names off there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

__all__ = ["PANELS", "made_narrow"]

PANELS = 80
"""Terminal columns from which the panels show every name whole."""

_FIRST = 12
"""Columns for a name. A longer one stands on a line of its own, with its text below."""

_PlainFormatter: Any = typer.Context.formatter_class


class _Formatter(_PlainFormatter):  # type: ignore[misc]
    """Lists with a narrow first column."""

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = _FIRST, col_spacing: int = 2) -> None:
        """Write names and what they mean."""
        super().write_dl(rows, col_max=col_max, col_spacing=col_spacing)


class _Context(typer.Context):
    formatter_class = _Formatter


def made_narrow(command: Any) -> Any:
    """The command and its subcommands, with help texts laid out for narrow terminals."""
    command.context_class = _Context
    command.short_help = command.short_help or command.help  # Else the list would cut the help to one line.
    for below in getattr(command, "commands", {}).values():
        made_narrow(below)
    return command
