"""Pure text helpers that every view shares."""

from __future__ import annotations

import re

from rsd_integrations.text.printable import printable
from rsd_integrations.types import Generation

__all__ = ["answer_of", "boxed", "printable", "reward_text", "step_text", "writable"]

_LONE = re.compile(r"[\ud800-\udfff]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` holds, nested braces included; None without one."""
    ends = {box.end() for box in _BOX.finditer(text)}
    opened: list[int] = []
    last = (0, 0)
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "{":
            opened.append(brace.end())
        elif opened and (start := opened.pop()) in ends:
            last = max(last, (start, brace.start()))
    return text[slice(*last)].strip() if last[0] else None


def answer_of(generation: Generation) -> str:
    """The boxed answer if there is one, else the whole text."""
    found = boxed(generation.text)
    return found if found else generation.text.strip()


def writable(text: str) -> str:
    """Text that UTF-8 can hold: half characters, and bytes of a name that are not UTF-8, become U+FFFD."""
    return _LONE.sub("\ufffd", text)


def step_text(text: str) -> str:
    """A step without the blank line that ends it; with an empty step a model says that it is done."""
    return printable(text.strip("\r\n")) or "(end of the answer)"


def reward_text(reward: float) -> str:
    """Three decimals, cut and not rounded: 0.9996 must not look as if it reached 1."""
    return f"{int(reward * 1000 + 1e-9) / 1000:.3f}"
