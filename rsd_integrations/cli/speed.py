"""``rsd bench speed``: RSD beside the other ways to get an answer, as ratios in one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsd_integrations.cli import options
from rsd_integrations.cli.console import open_console
from rsd_integrations.cli.models import ModelChoice, State
from rsd_integrations.cli.progress import counting
from rsd_integrations.cli.saving import check_out, conclude
from rsd_integrations.cli.settings import numbers
from rsd_integrations.errors import ConfigError

if TYPE_CHECKING:
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio
    from rsd_integrations.bench.speed_results import SpeedReport
    from rsd_integrations.bench.speed_setting import Setting
    from rsd_integrations.pipeline import RSDPipeline

_Given = dict[str, Any]
"""Options that say what is measured, by their names."""

_FORCED = ("dtype", "steps", "step_tokens", "prompt_tokens", "growth")
"""Options for shapes with random weights alone, whose lengths are forced."""

_RANDOM = (
    "tiny",
    "tiny-recurrent",
    "0.5b-1.5b-prm1.5b",
    "1.5b-7b-prm1.5b",
    "1.5b-7b-prm7b",
    "1.5b-32b-prm7b",
    "0.8b-9b-recurrent-prm1.5b",
)
"""Shapes with random weights, copied from ``yardsticks.shapes``, which would load torch."""


def speed(
    ctx: typer.Context,
    *,
    shape: Annotated[str, typer.Option(help=f"pocket, {', '.join(_RANDOM)}.")] = "pocket",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of shapes with random weights: float32, bfloat16, ...")
    ] = "float32",
    acceptances: Annotated[
        str, typer.Option(help="Shares of steps to keep, one measurement each.")
    ] = "0.5,0.7,0.8,0.9,0.95",
    batches: Annotated[str, typer.Option(help="Requests at once.")] = "1,4,16",
    steps: Annotated[int, typer.Option(min=2, help="Steps of an answer (shapes with random weights).")] = 10,
    step_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step (likewise).")] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a prompt (likewise).")] = 256,
    prompts: Annotated[
        int, typer.Option(min=1, help="Prompts answered in each measurement; at least as many as --batches.")
    ] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each measurement; the median counts.")] = 5,
    compile: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile in our engine.", **options.FLAG)
    ] = False,
    growth: Annotated[
        str,
        typer.Option(
            help="Prompt lengths (tokens) at which the time of up to 80 steps is taken (likewise); or none."
        ),
    ] = "256,1024,4096",
    out: Annotated[Path | None, typer.Option(help="Folder for JSON and plot.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 where a required number is missed.", **options.FLAG)
    ] = False,
) -> None:
    """Tokens a second of generate, assisted generation, the target alone and RSD, and what memory allows."""
    given: _Given = {
        "device": device,
        "dtype": dtype,
        "acceptances": acceptances,
        "batches": batches,
        "steps": steps,
        "step_tokens": step_tokens,
        "prompt_tokens": prompt_tokens,
        "prompts": prompts,
        "repeats": repeats,
        "compile": compile,
        "growth": growth,
    }
    if shape == "pocket":
        if device != "cpu":
            raise ConfigError(
                f"--device {device!r}: the pocket shape is measured on the CPU.", hint="Name another --shape."
            )
        given = _without_forced(ctx, given)
    setting, on_gpu = _setting(shape, given), device.startswith("cuda")
    if check:
        _check_something(setting, on_gpu)
    check_out(out)
    report = _measure(ctx.obj, setting, given)
    from rsd_integrations.bench.speed_checks import required_speeds
    from rsd_integrations.bench.speed_table import draw, print_speed

    checks = required_speeds(report, setting.batches, on_gpu=on_gpu)
    report = report.model_copy(update={"checks": checks})
    console = open_console()
    print_speed(report, console)
    conclude(report, console, out=out, name=f"speed-{shape}", draw=draw, check=check)


def _without_forced(ctx: typer.Context, given: _Given) -> _Given:
    """The options without those that play no part in the pocket shape.

    Raises:
        ConfigError: one of the latter was given.
    """
    for name in _FORCED:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} {given[name]!r} plays no part in --shape pocket, which ends its answers itself.",
                hint=f"Leave it out, or name another --shape: {', '.join(_RANDOM)}.",
            )
    return {name: value for name, value in given.items() if name not in _FORCED}


def _check_something(setting: Setting, on_gpu: bool) -> None:
    """Refuse ``--check`` where no number is required.

    Raises:
        ConfigError: there is nothing to check.
    """
    from rsd_integrations.bench.speed_checks import anything_required

    if not anything_required(setting, on_gpu=on_gpu):
        raise ConfigError(
            f"--check has nothing to check in --shape {setting.shape} with one batch and no growth.",
            hint="Measure --growth or --batches 1,16 too, or leave --check out.",
        )


def _setting(shape: str, given: Mapping[str, Any]) -> Setting:
    from rsd_integrations.bench.speed_setting import Setting

    options = {
        "shape": shape,
        "acceptances": numbers("--acceptances", given["acceptances"], float),
        "batches": numbers("--batches", given["batches"], int),
        "repeats": given["repeats"],
        "compile": given["compile"],
    }
    if shape == "pocket":
        from rsd_integrations.pocket.task import held_out

        problems = held_out(given["prompts"])
        usual_steps = [len(problem.steps) for problem in problems]
        return Setting(prompts=[problem.question for problem in problems], usual_steps=usual_steps, **options)
    growth = given["growth"]
    lengths = [] if growth == "none" else sorted(numbers("--growth", growth, int))
    return Setting(
        prompts=[_spelled(number, given["prompt_tokens"]) for number in range(given["prompts"])],
        steps=given["steps"],
        step_tokens=given["step_tokens"],
        growth={length: _spelled(0, length) for length in lengths},
        **options,
    )


def _spelled(number: int, tokens: int) -> str:
    """A prompt of so many tokens: the byte tokenizer makes one of each byte."""
    return (f"Question {number}. " + "What is it? " * tokens)[:tokens]


def _measure(state: State, setting: Setting, given: _Given) -> SpeedReport:
    from rsd_integrations.backends.torch.yardsticks.bandwidth import copy_bandwidth
    from rsd_integrations.bench.environment import made
    from rsd_integrations.bench.speed import SpeedBench
    from rsd_integrations.bench.speed_results import SpeedReport

    pipe, plain = _models(setting, state, given)
    console = open_console(stderr=True)
    # In logs each number is told as it comes, so that it is not lost if a time limit ends the run.
    tell = console.print if not console.is_terminal else lambda _: None
    bench = SpeedBench(pipe, plain, setting)
    with pipe, counting(console, bench.runs) as on_run:
        bandwidth = copy_bandwidth(str(given["device"]))
        speeds = bench.measure(bandwidth, on_run=on_run, on_result=tell)
    return SpeedReport(
        **made(state.command_line),
        shape=setting.shape,
        settings=given,
        bandwidth=bandwidth,
        **vars(speeds),
    )


def _models(setting: Setting, state: State, given: _Given) -> tuple[RSDPipeline, PlainTrio]:
    from rsd_integrations.bench.speed_setting import open_plain_pocket, open_shape

    device = str(given["device"])
    if setting.forced:
        window = _window(setting, given["prompt_tokens"])
        return open_shape(setting, device=device, dtype=str(given["dtype"]), window=window)
    pipe = state.open_pipeline(
        ModelChoice(
            device=device,
            max_batch_size=max(setting.batches),
            compile=setting.compile,
            prefix_caching=False,  # The prompts are repeated, and the other ways process them each time.
        )
    )
    return pipe, open_plain_pocket()


def _window(setting: Setting, prompt_tokens: int) -> int:
    """Tokens of the longest answer with its prompt."""
    from rsd_integrations.bench.speed import GROWTH_STEPS

    # Chat marks around the prompt; a separator behind each step in the PRM.
    answers = [(prompt_tokens, setting.steps), *((length, max(GROWTH_STEPS)) for length in setting.growth)]
    return 64 + max(length + count * (setting.step_tokens + 1) for length, count in answers)
