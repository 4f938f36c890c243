"""README's pictures: ``rsd ask`` by a run of the pocket trio, the plots from measurements in ``dev/results``.

::

    python dev/pictures.py ask accuracy speed
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from rsd_integrations.bench.figure import draw as draw_accuracy
from rsd_integrations.bench.results import AccuracyReport
from rsd_integrations.bench.speed_results import SpeedReport
from rsd_integrations.bench.speed_table import draw as draw_speed
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket.task import Problem, check_answer, held_out
from rsd_integrations.report.plot import save_figure
from rsd_integrations.report.steps import show_generation
from rsd_integrations.types import Generation

_HERE = Path(__file__).parent
_ASSETS = _HERE.parent / "assets"
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


def ask() -> None:
    """A run of the pocket trio."""
    with RSDPipeline.pocket() as pipe:
        problem, generation, seconds = telling(pipe, held_out(200, events=(4, 5)))
    (_ASSETS / "ask.svg").write_text(draw(problem.question, generation, seconds), encoding="utf-8")


def accuracy() -> None:
    """Of the measurement that README's table shows."""
    _plot(
        "accuracy", draw_accuracy(AccuracyReport.model_validate_json(_measured("2026-11-30-pocket-accuracy")))
    )


def speed() -> None:
    """Of the measurement that README's table shows."""
    report = SpeedReport.model_validate_json(_measured("2026-11-28-speed-pocket"))
    _plot("speed", draw_speed(report))


def _measured(name: str) -> bytes:
    return (_HERE / "results" / f"{name}.json").read_bytes()


def _plot(name: str, figure: Any) -> None:
    save_figure(figure, _ASSETS / f"{name}.png")


PICTURES: dict[str, Callable[[], None]] = {"ask": ask, "accuracy": accuracy, "speed": speed}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or PICTURES:
        PICTURES[chosen]()
