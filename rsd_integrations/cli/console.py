"""Where commands print: one place decides whether a person is watching (rich)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from rich.console import Console


def open_console(*, stderr: bool = False) -> Console:
    """A console whose ``is_terminal`` says whether a person is watching: only then may lines move and fold.

    Rich takes any file for a terminal where FORCE_COLOR is set, as CI services do for their logs, and a dumb
    terminal for one. Colours stay as rich chose them.
    """
    console = Console(stderr=stderr, highlight=False)
    if _is_watched(console):
        return console
    system = console.color_system
    plain: dict[str, Any] = {"force_terminal": False, "force_interactive": False, "color_system": system}
    return Console(stderr=stderr, highlight=False, **plain)


def _is_watched(console: Console) -> bool:
    with suppress(AttributeError, ValueError):  # Streams of other programs may lack it, or be closed.
        return console.is_interactive and console.file.isatty()
    return False
