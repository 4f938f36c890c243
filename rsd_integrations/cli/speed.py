"""``rsd bench speed``: RSD beside the other ways to get an answer, as ratios in one run."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rsd_integrations.cli.models import ModelChoice, State
from rsd_integrations.cli.saving import check_out
from rsd_integrations.errors import ConfigError

if TYPE_CHECKING:
    from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio
    from rsd_integrations.bench.speed import Setting, SpeedBench
    from rsd_integrations.bench.speed_results import SpeedReport
    from rsd_integrations.pipeline import RSDPipeline

__all__ = ["speed"]


def speed(
    ctx: typer.Context,
    *,
    shape: Annotated[
        str,
        typer.Option(help="pocket, tiny, 0.5b-1.5b-prm1.5b, 1.5b-7b-prm1.5b, 1.5b-7b-prm7b, 1.5b-32b-prm7b."),
    ] = "pocket",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of random weights: float32, bfloat16, ...")] = "float32",
    acceptances: Annotated[str, typer.Option(help="Chances to keep a step.")] = "0.5,0.7,0.8,0.9,0.95",
    batches: Annotated[str, typer.Option(help="Requests at once.")] = "1,4,16",
    steps: Annotated[int, typer.Option(min=1, help="Of an answer, where lengths are forced.")] = 10,
    step_tokens: Annotated[int, typer.Option(min=1, help="Of a step, likewise.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Of a prompt, likewise.")] = 256,
    prompts: Annotated[int, typer.Option(min=1, help="Answered in each measurement.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement; the median counts.")] = 5,
    compile: Annotated[bool, typer.Option("--compile", help="Compile our engine's forwards.")] = False,
    growth: Annotated[
        str,
        typer.Option(help="Tokens of prompts behind which steps are followed up to 80, likewise; or none."),
    ] = "256,1024,4096",
    out: Annotated[Path | None, typer.Option(help="Folder for JSON and plot.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 where a required number is missed.")] = False,
) -> None:
    """Tokens a second of generate, assisted generation, the target alone and RSD, and the memory's limit."""
    state: State = ctx.obj
    check_out(out)
    from rsd_integrations.bench.speed import GROWTH_STEPS, Setting, SpeedBench
    from rsd_integrations.bench.speed_checks import required_speeds
    from rsd_integrations.bench.speed_table import print_speed
    from rsd_integrations.bench.table import print_checks

    lengths = [] if growth == "none" else sorted(_numbers("--growth", growth, int))
    setting = Setting(
        shape=shape,
        prompts=_prompts(shape, prompts, prompt_tokens),
        growth={length: _spelled(0, length) for length in lengths},
        acceptances=_numbers("--acceptances", acceptances, float),
        batches=_numbers("--batches", batches, int),
        steps=steps,
        step_tokens=step_tokens,
        repeats=repeats,
        compile=compile,
    )
    console = Console(highlight=False)
    # Chat marks around the prompt; a separator behind each step in the PRM.
    answers = [(prompt_tokens, steps), *((length, max(GROWTH_STEPS)) for length in lengths)]
    window = 64 + max(length + count * (step_tokens + 1) for length, count in answers)
    pipe, plain = _models(setting, state, device=device, dtype=dtype, window=window)
    with pipe:
        settings: dict[str, int | float | str] = {
            "device": device,
            "dtype": dtype if setting.forced else "float32",
            "steps": steps,
            "step_tokens": step_tokens,
            "prompts": prompts,
            "prompt_tokens": prompt_tokens,
            "repeats": repeats,
            "compile": compile,
            "growth": growth,
        }
        report = _report(state.command_line, SpeedBench(pipe, plain, setting), setting.shape, settings)
    report = report.model_copy(update={"checks": required_speeds(report, on_gpu=device.startswith("cuda"))})
    print_speed(report, console)
    if report.checks:
        print_checks(report.checks, console)
    if out is not None:
        _save(report, out, console)
    if check and not all(one.passed for one in report.checks):
        raise typer.Exit(1)


def _numbers(option: str, given: str, kind: Any) -> list[Any]:
    """Numbers above 0.

    Raises:
        ConfigError: one is none.
    """
    try:
        numbers = [kind(part) for part in given.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0 or (kind is float and max(numbers) > 1):
        raise ConfigError(f"{option} {given!r} must be numbers above 0.", hint="Separate them by commas.")
    return numbers


def _prompts(shape: str, count: int, tokens: int) -> list[str]:
    if shape == "pocket":
        from rsd_integrations.pocket.task import held_out

        return [problem.question for problem in held_out(count)]
    return [_spelled(number, tokens) for number in range(count)]


def _spelled(number: int, tokens: int) -> str:
    """A prompt of the byte tokenizer's: one token a byte."""
    return (f"Question {number}. " + "What is it? " * tokens)[:tokens]


def _models(
    setting: Setting, state: State, *, device: str, dtype: str, window: int
) -> tuple[RSDPipeline, PlainTrio]:
    from rsd_integrations.bench.speed import open_plain_pocket, open_shape

    if setting.forced:
        return open_shape(setting, device=device, dtype=dtype, window=window)
    if device != "cpu":
        raise ConfigError(
            f"--device {device!r}: the pocket shape is measured on the CPU.", hint="Name another --shape."
        )
    pipe = state.open_pipeline(
        ModelChoice(
            device=device,
            max_batch_size=max(setting.batches),
            compile=setting.compile,
            prefix_caching=False,  # The same prompts again and again, and the others read them each time.
        )
    )
    return pipe, open_plain_pocket()


def _report(
    command: str, bench: SpeedBench, shape: str, settings: dict[str, int | float | str]
) -> SpeedReport:
    from rsd_integrations.bench.environment import hardware, versions
    from rsd_integrations.bench.speed import memory_bandwidth
    from rsd_integrations.bench.speed_results import SpeedReport

    with Console(stderr=True).status("") as line:
        bandwidth = memory_bandwidth(str(settings["device"]))
        speeds = bench.measure(bandwidth, on_run=line.update)
    return SpeedReport(
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(),
        hardware=hardware(),
        shape=shape,
        settings=settings,
        bandwidth=bandwidth,
        timings=tuple(speeds.timings),
        growth=tuple(speeds.growth),
        limits=tuple(speeds.limits),
        breakdown=speeds.breakdown,
        left_out=speeds.left_out,
    )


def _save(report: SpeedReport, out: Path, console: Console) -> None:
    from rsd_integrations.bench.speed_table import draw
    from rsd_integrations.report.plot import save_figure

    name = f"speed-{report.shape}"
    result = out / f"{name}.json"
    result.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for file in [result, *save_figure(draw(report), out, name)]:
        console.print(f"wrote {file}", style="dim", markup=False)
