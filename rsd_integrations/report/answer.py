"""Pure text helpers that every view shares."""

from __future__ import annotations

import re

from rsd_integrations.text.printable import printable
from rsd_integrations.types import Generation

_LONE = re.compile(r"[\ud800-\udfff]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")

_SHORT = 80
"""Most characters of an unboxed answer that is shown below its only step."""


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


def answer_of(generation: Generation) -> str | None:
    """The answer as it stands below the steps: the boxed one, or else the text, "" if nothing was written.

    None where the steps are the answer: it would only be shown once more. They are not where they hold
    reasoning, and a single short step may as well be named the answer.
    """
    if found := boxed(generation.text):
        return found
    text = generation.text.strip()
    steps = [step for step in generation.steps if step.text.strip()]
    short = len(steps) <= 1 and len(text) <= _SHORT and "\n" not in text
    return text if short or generation.reasoning is not None else None


def writable(text: str) -> str:
    """Text that UTF-8 can hold: half characters, and bytes of a name that are not UTF-8, become U+FFFD."""
    return _LONE.sub("\ufffd", text)


def step_text(text: str) -> str:
    """A step without the blank line that ends it; with an empty step a model says that it is done."""
    return printable(text.strip("\r\n")) or "(end of the answer)"


def reward_text(reward: float) -> str:
    """Three decimals, cut and not rounded: 0.9996 must not look as if it reached 1."""
    return f"{int(reward * 1000 + 1e-9) / 1000:.3f}"


def chance_text(chance: float) -> str:
    """Of a probability between 0 and 1: cut likewise, so that none looks certain, and none impossible."""
    return "<0.01" if chance < 0.01 else f"{min(99, int(chance * 100 + 1e-9)) / 100:.2f}"
