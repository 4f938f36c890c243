"""Animation is for people who watch; what reads a file or a pipe gets plain lines."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest
from rich.text import Text

from rsd_integrations.cli.console import open_console

if TYPE_CHECKING:
    from tests.cli.conftest import Rsd


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Bare:
    """What a program that embeds Python may have in the place of a stream."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _usual(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def closed() -> io.StringIO:
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize(
    ("stream", "setting", "watched", "coloured"),
    [
        (Screen(), {}, True, True),
        (Screen(), {"TERM": "dumb"}, False, False),
        (Screen(), {"TTY_INTERACTIVE": "0"}, False, True),
        (Screen(), {"FORCE_COLOR": "1"}, True, True),
        (io.StringIO(), {}, False, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, False, True),
        (io.StringIO(), {"TTY_COMPATIBLE": "1"}, False, True),
        (io.StringIO(), {"TTY_INTERACTIVE": "1"}, False, False),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        (Bare(), {"FORCE_COLOR": "1"}, False, True),
        (closed(), {"FORCE_COLOR": "1"}, False, True),
        (closed(), {}, False, False),
    ],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_person_watches_a_terminal_that_can_be_animated(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    stream: object,
    setting: dict[str, str],
    watched: bool,
    coloured: bool,
) -> None:
    monkeypatch.setattr(sys, name, stream)
    for variable, value in setting.items():
        monkeypatch.setenv(variable, value)
    console = open_console(stderr=name == "stderr")
    assert console.is_terminal == console.is_interactive == watched
    assert (console.color_system is not None and not console.no_color) == coloured


def test_a_log_with_forced_colours_has_the_lines_of_a_pipe(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 60 + "end."
    rsd.scripted([long])
    plain = rsd("ask", "?")
    monkeypatch.setenv("FORCE_COLOR", "1")
    forced = rsd("ask", "?")
    assert (plain.err, forced.err) == ("", "")
    assert "\x1b[" in forced.out
    lines = [Text.from_ansi(line).plain for line in forced.out.splitlines()]
    assert lines[:-1] == plain.out.splitlines()[:-1]  # The last one tells the time.
