"""The speed benchmark in the terminal (rich) and as a figure (matplotlib)."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsd_integrations.bench.speed_results import SpeedReport
from rsd_integrations.report.plot import Line, line_figure

__all__ = ["draw", "print_speed"]

_BOX = box.SIMPLE_HEAD


def print_speed(report: SpeedReport, console: Console) -> None:
    """Contenders, growth with the number of steps, and how near the memory's limit it is."""
    console.print(_contenders(report))
    if report.growth:
        console.print(_growth(report))
    console.print(_limits(report))
    where = report.breakdown
    console.print(
        Text(
            f"A step at acceptance 0.8: draft {where.draft:.1f} ms, score {where.score:.1f} ms, target "
            f"{where.target:.1f} ms, {where.wall:.1f} ms in all; {100 * where.host_share:.0f} % outside of "
            "the models."
        )
    )
    for name, why in report.left_out.items():
        console.print(Text(f"left out: {name} ({why})", style="dim"))


def draw(report: SpeedReport) -> Any:
    """Speed against our own target-only path, by acceptance (a matplotlib figure)."""
    lines = []
    for batch in sorted({timing.batch for timing in report.timings}):
        for suffix, name in (("", "guesses"), (", no guesses", "no guesses")):
            points = [
                (float(timing.name.split()[1].rstrip(",")), timing.against_target)
                for timing in report.timings
                if timing.batch == batch and timing.name.startswith("RSD") and timing.against_target
                if timing.name.endswith("guesses") == bool(suffix)
            ]
            group = f"batch {batch}"
            lines.append(Line(f"{group}, {name}", group, points, dashed=bool(suffix)))
    generate = report.timing("generate")
    level = generate.against_target if generate else None
    return line_figure(
        lines,
        title=f"RSD against the target alone, {report.shape}, {report.hardware.get('gpu', 'CPU')}",
        x="share of steps kept",
        y="tokens a second / target only",
        levels={"target only": 1.0} | ({"generate, batch 1": level} if level else {}),
    )


def _contenders(report: SpeedReport) -> Table:
    table = Table(box=_BOX, title=f"{report.shape}: medians", title_justify="left", title_style="")
    table.add_column("", no_wrap=True)
    for heading in ("batch", "seconds", "tokens/s", "/ gene-\nrate", "/ target\nonly"):
        table.add_column(heading, justify="right", no_wrap=True)
    for timing in report.timings:
        table.add_row(
            timing.name,
            str(timing.batch),
            f"{timing.seconds.value:.3f}",
            f"{timing.tokens_per_second:.1f}",
            _times(timing.against_generate),
            _times(timing.against_target),
        )
    return table


def _growth(report: SpeedReport) -> Table:
    table = Table(box=_BOX, title="ms a step, as an answer grows", title_justify="left", title_style="")
    for heading in ("prompt", "steps", "ours", "reference's way", "/ ours"):
        table.add_column(heading, justify="right")
    for growth in report.growth:
        reference = "-" if growth.reference is None else f"{growth.reference:.1f}"
        table.add_row(
            str(growth.prompt_tokens),
            str(growth.steps),
            f"{growth.ours:.1f}",
            reference,
            _times(growth.ratio),
        )
    return table


def _limits(report: SpeedReport) -> Table:
    title = f"against the memory, which copies {report.bandwidth / 1e9:.1f} GB/s"
    table = Table("", box=_BOX, title=title, title_justify="left", title_style="")
    for heading in ("MB a token", "ms", "share"):
        table.add_column(heading, justify="right")
    for limit in report.limits:
        size = f"{limit.bytes_per_token / 1e6:.1f}"
        table.add_row(limit.role, size, f"{limit.milliseconds:.2f}", f"{100 * limit.share:.0f} %")
    return table


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
