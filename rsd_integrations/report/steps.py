"""The step view for terminals and pipes: what was kept, what was rejected, what it cost (rich)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rsd_integrations.report.answer import chance_text, reward_text, step_text
from rsd_integrations.report.summary import summary
from rsd_integrations.report.words import Remedy, in_python
from rsd_integrations.types import Generation, Step, StepEvent

NARROW = 60
"""Below this many columns a label stands above its text instead of beside it."""

_LABEL_WIDTH = 16
_PLAIN = {"✓": "+", "✗": "x", "→": ">", "…": "."}


class _Line:
    """A label and a text: side by side, stacked where it is narrow, unwrapped in pipes."""

    def __init__(self, mark: str, label: str, body: str, *, colour: str, body_style: str = "") -> None:
        self._mark, self._label, self._body = mark, label, step_text(body)
        self._colour, self._body_style = colour, body_style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        mark = _PLAIN[self._mark] if options.ascii_only else self._mark
        label = Text(f"{mark} {self._label}".rstrip(), style=self._colour)
        body = Text(self._body, style=self._body_style)
        if not console.is_terminal:
            yield Text.assemble(label, " " * max(2, _LABEL_WIDTH + 2 - len(label)), body)
        elif options.max_width < NARROW:
            yield label
            yield Padding(body, (0, 0, 0, 2))
        else:
            grid = Table.grid(padding=(0, 2))
            grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold")
            label.pad_right(max(0, _LABEL_WIDTH - len(label)))
            grid.add_row(label, body)
            yield grid


def render_step(step: Step) -> RenderableType:
    """One committed step: kept, or rejected with the target's rewrite under it."""
    score = _score(step.reward, step.acceptance_probability)
    if step.accepted and step.reward is None:
        return _Line("→", "draft", step.text, colour="green")
    if step.accepted:
        return _Line("✓", f"kept    {score}", step.text, colour="green")
    lines = []
    if step.rejected_text is not None:
        lines.append(_rejected(step.rejected_text, score))
    lines.append(_Line("→", "target", step.text, colour="bold magenta"))
    return Group(*lines)


def _score(reward: float | None, probability: float | None) -> str:
    """The reward, and the acceptance probability unless it was 0 or 1."""
    shown = "" if reward is None else f" {reward_text(reward)}"
    if probability is not None and 0.0 < probability < 1.0:
        shown += f" p={chance_text(probability)}"
    return shown


def _rejected(text: str, score: str) -> _Line:
    # Dim and not struck out: a line through it would hide minus and equals signs.
    return _Line("✗", f"rejected{score}", text, colour="red", body_style="dim")


def _in_the_making(event: StepEvent) -> RenderableType:
    """What stands below the committed steps while the next one is made."""
    number = event.index + 1
    if event.type == "proposed":
        others = len(event.candidates) - 1
        label = f"proposed, and {others} more" if others > 0 else "proposed"
        return _Line("…", label, event.text, colour="dim", body_style="dim")
    score = _score(event.reward, event.acceptance_probability)
    if event.type in ("scored", "accepted"):
        label = f"scored  {score}" if score else "proposed"
        return _Line("…", label, event.text, colour="dim", body_style="dim")
    if event.type == "rejected":
        waiting = Spinner("dots", Text(f"the target is writing step {number}", style="dim"))
        if not event.text:
            return waiting
        return Group(_rejected(event.text, score), waiting)
    return Spinner("dots", Text(f"writing step {number + 1}", style="dim"))


def show_events(events: Iterable[StepEvent], console: Console, remedy: Remedy = in_python) -> Generation:
    """Show a generation as it happens and give it back.

    Committed steps are printed for good; a terminal also shows the step in the making.

    Args:
        events: of one answer.
        console: where they are shown.
        remedy: tells what to do about an answer that a length limit ended.

    Raises:
        RuntimeError: the events end without "finished".
    """
    with ExitStack() as stack:
        live = None
        if console.is_terminal and not console.is_dumb_terminal:
            waiting = Spinner("dots", Text("reading the question", style="dim"))
            live = stack.enter_context(Live(waiting, console=console, transient=True, refresh_per_second=12))
        for event in events:
            if event.step is not None:
                _print(console, render_step(event.step))
            if event.generation is not None:
                if live:
                    live.stop()
                _print(console, *summary(event.generation, console, event.elapsed_ms / 1000, remedy))
                return event.generation
            if live:
                live.update(_in_the_making(event), refresh=True)
    raise RuntimeError("the stream ended without a finished event")


def show_generation(generation: Generation, console: Console, seconds: float | None = None) -> None:
    """The same view of a generation that is already there."""
    for step in generation.steps:
        _print(console, render_step(step))
    _print(console, *summary(generation, console, seconds))


def _print(console: Console, *renderables: RenderableType) -> None:
    # A pipe has no width: programs that read it want one line a step, not rich's 80 columns.
    for renderable in renderables:
        console.print(renderable, soft_wrap=not console.is_terminal)
