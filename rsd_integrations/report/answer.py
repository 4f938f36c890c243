"""Pure text helpers that every view shares."""

from __future__ import annotations

import re

from rsd_integrations.types import Generation

__all__ = ["answer_of", "boxed", "printable", "reward_text", "step_text"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BIDI = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` holds, nested braces included; None without one."""
    for found in reversed(list(_BOX.finditer(text))):
        depth = 1
        for place in range(found.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[found.end() : place].strip()
    return None


def answer_of(generation: Generation) -> str:
    """The boxed answer if there is one, else the whole text."""
    found = boxed(generation.text)
    return found if found else generation.text.strip()


def printable(text: str) -> str:
    """Text that cannot steer a terminal or reorder a line: control characters become U+FFFD.

    A model may write escape sequences; shown raw they could recolour, clear or forge the screen.
    """
    return _BIDI.sub("\ufffd", _CONTROL.sub("\ufffd", text.replace("\r\n", "\n")))


def step_text(text: str) -> str:
    """A step without the blank line that ends it; a step of nothing is how a model says it is done."""
    return printable(text.strip("\n")) or "(end of the answer)"


def reward_text(reward: float) -> str:
    """Three decimals, cut and not rounded: 0.9996 must not look as if it reached 1."""
    return f"{int(reward * 1000 + 1e-9) / 1000:.3f}"
