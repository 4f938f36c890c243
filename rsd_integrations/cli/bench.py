"""``rsd bench``: the measurements that the README quotes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsd_integrations.cli import options
from rsd_integrations.cli.console import open_console
from rsd_integrations.cli.models import ModelChoice, State
from rsd_integrations.cli.progress import watching
from rsd_integrations.cli.saving import check_out, conclude
from rsd_integrations.cli.settings import read_sweep
from rsd_integrations.cli.speed import speed

bench = typer.Typer(
    name="bench", help="Measure RSD against its draft and its target alone.", no_args_is_help=True
)

_SWEEP = "0.3,0.5,0.7,0.8,0.9,0.95,0.99"


@bench.callback()
def _root() -> None:
    """Measure RSD against its draft and its target alone."""


@bench.command()
def accuracy(
    ctx: typer.Context,
    *,
    problems: Annotated[int, typer.Option(min=1, help="How many held-out questions.")] = 500,
    thresholds: Annotated[
        str, typer.Option(help="The sweep; draft only, target only and the recommended one come on top.")
    ] = _SWEEP,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the questions and of the bootstrap.")] = 0,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu (default), cuda, ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON and plot.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 where a required number is missed.", **options.FLAG)
    ] = False,
) -> None:
    """Accuracy and FLOPs of the pocket trio on held-out questions, over a sweep of thresholds."""
    state: State = ctx.obj
    sweep = read_sweep(thresholds)
    check_out(out)
    from rsd_integrations.bench.accuracy import measure
    from rsd_integrations.bench.figure import draw
    from rsd_integrations.bench.table import print_report
    from rsd_integrations.pocket import held_out, pocket_paths

    console = open_console()
    choice = ModelChoice(device=device, max_batch_size=max_batch_size)
    with state.open_pipeline(choice) as pipe, watching() as watch:
        report = measure(
            pipe,
            held_out(problems, seed=seed),
            sweep,
            command=state.command_line,
            folders=vars(pocket_paths()),
            settings={
                "problems": problems,
                "seed": seed,
                "batch_size": max_batch_size,
                "thresholds": thresholds,
            },
            seed=seed,
            watch=watch,
        )
    print_report(report, console)
    conclude(report, console, out=out, name="accuracy", draw=draw, check=check)


bench.command()(speed)
