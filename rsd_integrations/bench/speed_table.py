"""The speed benchmark in the terminal (rich) and as a figure (matplotlib)."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rsd_integrations.bench.speed_results import Breakdown, SpeedReport, Timing, shown_name
from rsd_integrations.report.lines import Level, Line, line_figure
from rsd_integrations.report.whole import print_text, print_whole
from rsd_integrations.report.words import many, role_name

_BOX = box.SIMPLE_HEAD


def print_speed(report: SpeedReport, console: Console) -> None:
    """Contenders, growth with the number of steps, and how near the memory's limit it is."""
    print_whole(_contenders(report), console, f"{report.shape}: medians")
    if report.growth:
        print_whole(_growth(report), console, "ms a step, as an answer grows")
    print_whole(_limits(report), console, f"against the memory, {report.bandwidth / 1e9:.1f} GB/s")
    print_text(_step(report.breakdown), console)
    for name, why in report.left_out.items():
        print_text(f"left out: {name} ({why})", console, "dim")


def _step(step: Breakdown) -> str:
    parts = {"draft": step.draft, "score": step.score, "target": step.target}
    told = ", ".join(f"{name} {_number(part)} ms" for name, part in parts.items())
    outside = f"{step.host:.1f} ms ({100 * step.host_share:.0f} %) outside of the models"
    return f"A step, {_percent(step.kept)} kept: {told}, {outside}; {step.wall:.1f} ms in all."


def draw(report: SpeedReport) -> Any:
    """Speed against our own target-only path, by the share kept in fact (a matplotlib figure)."""
    lines = []
    for batch in sorted({timing.batch for timing in report.timings}):
        for guesses, kind in ((True, "with speculation"), (False, "without speculation")):
            points = [
                (timing.kept, *_range(timing, timing.against_target))
                for timing in report.timings
                if (timing.batch, timing.guesses) == (batch, guesses)
                if timing.kept is not None and timing.against_target is not None
            ]
            lines.append(Line(_group(batch), kind, points, hollow=not guesses))
    levels = [
        Level("generate of the target", timing.against_target, _group(timing.batch))
        for timing in report.timings
        if timing.name == "generate" and timing.against_target is not None
    ]
    ranges = any(low < high for line in lines for *_, low, high in line.points)
    return line_figure(
        lines,
        title=f"RSD against the target alone, {report.shape}, {report.hardware.get('gpu', 'CPU')}",
        x="steps kept" + (" (bars: from the slowest run to the fastest)" if ranges else ""),
        y="tokens a second /\ntarget only with as many requests",
        levels=[Level("target only", 1.0), *levels],
    )


def _group(batch: int) -> str:
    return f"{many(batch, 'request')} at once"


def _range(timing: Timing, ratio: float) -> tuple[float, float, float]:
    """A ratio that the median run has, and those of the slowest and the fastest."""
    seconds = timing.seconds
    # The quotient first: it is 1 where there was one run, and no rounding makes a negative bar.
    return ratio, ratio * (seconds.median / seconds.slowest), ratio * (seconds.median / seconds.fastest)


def _contenders(report: SpeedReport) -> Table:
    table = Table(box=_BOX, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("requests\nat once", "kept", "seconds", "tokens/s", "vs\ngenerate", "vs\ntarget"):
        table.add_column(heading, justify="right", no_wrap=True)
    for timing in report.timings:
        table.add_row(
            shown_name(timing.name),
            str(timing.batch),
            "-" if timing.kept is None else _percent(timing.kept),
            _four_digits(timing.seconds.median),
            _four_digits(timing.tokens_per_second),
            _times(timing.against_generate),
            _times(timing.against_target),
        )
    return table


def _growth(report: SpeedReport) -> Table:
    table = Table(box=_BOX)
    for heading in ("prompt", "steps", "ours", "reference's way", "/ ours"):
        table.add_column(heading, justify="right")
    for growth in report.growth:
        table.add_row(
            str(growth.prompt_tokens),
            str(growth.steps),
            f"{growth.ours:.1f}",
            _number(growth.reference),
            _times(growth.ratio),
        )
    return table


def _limits(report: SpeedReport) -> Table:
    table = Table("", box=_BOX)
    for heading in ("MB a token", "ms", "share"):
        table.add_column(heading, justify="right")
    for limit in report.limits:
        size = f"{limit.bytes_per_token / 1e6:.1f}"
        table.add_row(role_name(limit.role), size, f"{limit.milliseconds:.2f}", f"{100 * limit.share:.0f} %")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _four_digits(number: float) -> str:
    """More would be of no use: runs of one setting differ by more."""
    return f"{number:.{max(0, 3 - math.floor(math.log10(max(number, 1))))}f}"


def _number(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.1f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
