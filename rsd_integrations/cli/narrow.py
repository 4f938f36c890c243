"""Helps for narrow terminals: typer's panels cut names there; plain lists, laid out here, do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

__all__ = ["PANELS", "made_narrow"]

PANELS = 80
"""Columns from which the panels hold every name whole."""

_FIRST = 12
"""Columns of names. A longer one stands on a line of its own, so that its text has room below."""

_PlainFormatter: Any = typer.Context.formatter_class


class _Formatter(_PlainFormatter):  # type: ignore[misc]
    """Short first columns."""

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = _FIRST, col_spacing: int = 2) -> None:
        """Write names and what they mean."""
        super().write_dl(rows, col_max=col_max, col_spacing=col_spacing)


class _Context(typer.Context):
    formatter_class = _Formatter


def made_narrow(command: Any) -> Any:
    """The command, with those below it, whose helps are laid out for narrow terminals."""
    command.context_class = _Context
    command.short_help = command.short_help or command.help  # A help alone would be cut to one line.
    for below in getattr(command, "commands", {}).values():
        made_narrow(below)
    return command
