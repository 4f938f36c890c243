"""The README's picture of ``rsd ask``, from a real run of the pocket trio.

::

    python -m rsd_integrations.report.picture assets/ask.svg
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket.task import Problem, check_answer, held_out
from rsd_integrations.report.steps import show_generation
from rsd_integrations.types import Generation

__all__ = ["draw", "main"]

_COLUMNS = 88

_THEME = TerminalTheme(
    (41, 41, 41),
    (236, 238, 240),
    [(41, 41, 41), (255, 123, 123), (126, 211, 133), (240, 200, 100), (120, 180, 255), (214, 162, 255)],
)
"""Brighter than rich's own, of which some are hard to read in a picture."""


def draw(question: str, generation: Generation, seconds: float) -> str:
    """The terminal view as an SVG."""
    console = Console(
        record=True,
        file=StringIO(),
        width=_COLUMNS,
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    console.print(Text(f'$ rsd ask "{question}"\n', style="bold"))
    show_generation(generation, console, seconds)
    svg = console.export_svg(title="rsd ask", unique_id="rsd-ask", theme=_THEME)
    # A picture loads nothing: without rich's web font the reader's monospace one is used.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def telling(pipe: RSDPipeline, problems: Iterable[Problem]) -> tuple[Problem, Generation, float]:
    """The first problem that the draft alone gets wrong and one rewritten step puts right.

    Raises:
        LookupError: there is none.
    """
    for problem in problems:
        if check_answer(problem, pipe.generate(problem.question, threshold=0.0).text):
            continue
        start = time.perf_counter()
        generation = pipe.generate(problem.question)
        seconds = time.perf_counter() - start
        rejected = sum(step.rejected_text is not None for step in generation.steps)
        if rejected == 1 and check_answer(problem, generation.text):
            return problem, generation, seconds
    raise LookupError("no problem shows a step put right by the target")


def main(arguments: list[str]) -> int:
    """Write the picture to the given file."""
    file = Path(arguments[0] if arguments else "assets/ask.svg")
    with RSDPipeline.pocket() as pipe:
        problem, generation, seconds = telling(pipe, held_out(200, events=(4, 5)))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(draw(problem.question, generation, seconds), encoding="utf-8")
    print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
