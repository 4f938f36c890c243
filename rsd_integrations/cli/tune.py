"""``rsd tune``: which threshold for these models, on these questions?"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from rsd_integrations.cli import options
from rsd_integrations.cli.models import ModelChoice, State
from rsd_integrations.cli.progress import watching
from rsd_integrations.cli.saving import check_out, conclude
from rsd_integrations.cli.settings import read_config
from rsd_integrations.cli.sweeping import read_sweep
from rsd_integrations.errors import ConfigError
from rsd_integrations.report.words import many
from rsd_integrations.types import ROLES

if TYPE_CHECKING:
    from rsd_integrations.bench.questions import Question
    from rsd_integrations.bench.results import TuneReport
    from rsd_integrations.bench.saved import SavedAnswers
    from rsd_integrations.bench.tune import Tuning
    from rsd_integrations.config import RSDConfig

__all__ = ["tune"]

_QUESTIONS = "Questions"
_ANSWERS = "tune-answers.jsonl"
_MAX_TOKENS = 2048
_QUESTION_TOKENS = 2048
"""That a question may have, where models are loaded in this process."""

_SWEPT = ("threshold", "weighting", "acceptance_rate", "beta")

_Settings = dict[str, bool | int | float | str]


def tune(
    ctx: typer.Context,
    questions: Annotated[
        Path, typer.Argument(help="Questions with known answers: .jsonl, .json, .csv or .tsv.")
    ],
    *,
    draft: options.Draft = None,
    target: options.Target = None,
    prm: options.PRM = None,
    prm_format: options.PRMFormat = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    draft_kwargs: options.DraftKwargs = None,
    target_kwargs: options.TargetKwargs = None,
    prm_kwargs: options.PRMKwargs = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most problems at work at once.")] = 16,
    problems: Annotated[
        int | None,
        typer.Option(
            min=1, help="Take so many of them by chance; all if not given.", rich_help_panel=_QUESTIONS
        ),
    ] = None,
    question_field: Annotated[
        str | None,
        typer.Option(
            help="Field of the question; question, problem, ... if not given.", rich_help_panel=_QUESTIONS
        ),
    ] = None,
    answer_field: Annotated[
        str | None,
        typer.Option(help="Field of the known answer; answer, ... if not given.", rich_help_panel=_QUESTIONS),
    ] = None,
    match: Annotated[
        str,
        typer.Option(
            help="When an answer is right: number, math (formulas, by math-verify), text, auto (what suits "
            "the known answers), or module:function, called with its text and the known one.",
            rich_help_panel=_QUESTIONS,
        ),
    ] = "auto",
    system: Annotated[
        str | None,
        typer.Option(help="System message, such as how to write the answer.", rich_help_panel=_QUESTIONS),
    ] = None,
    thresholds: Annotated[
        str,
        typer.Option(
            help="The sweep; draft only, target only and the PRM's default come on top.",
            rich_help_panel=options.DECODING,
        ),
    ] = "0.3,0.5,0.7,0.8,0.9,0.95",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Most tokens of an answer; {_MAX_TOKENS} if not given (pocket trio: the window's rest).",
            rich_help_panel=options.DECODING,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help=f"Most tokens of question and answer; if not given {_QUESTION_TOKENS} for the question "
            "(pocket trio, servers: what they take).",
            rich_help_panel=options.DECODING,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 is greedy.", rich_help_panel=options.DECODING)
    ] = 0.0,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seed of the chosen problems, of sampling and of the bootstrap.",
            rich_help_panel=options.DECODING,
        ),
    ] = 0,
    config: options.Config = None,
    within: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Points of accuracy that may be lost to the target.")
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for JSON, plot, and every answer as it comes: run again, it goes on from these. "
            "Whether a hub id or URL still stands for the same weights it cannot see."
        ),
    ] = None,
) -> None:
    """Find the threshold for your models on your questions: accuracy, FLOPs and time over a sweep."""
    state: State = ctx.obj
    sweep = read_sweep(thresholds)
    choice = ModelChoice(
        draft,
        target,
        prm,
        prm_format,
        device,
        dtype,
        max_batch_size=batch_size,
        max_length=max_length,
        draft_kwargs=draft_kwargs,
        target_kwargs=target_kwargs,
        prm_kwargs=prm_kwargs,
    )
    if not choice.is_pocket:  # Its window is shorter, and ends its answers.
        max_tokens = max_tokens or _MAX_TOKENS
        if not choice.is_served and max_length is None:
            choice = replace(choice, max_length=max_tokens + _QUESTION_TOKENS)
    decoding = read_config(config, swept=_SWEPT, max_tokens=max_tokens, temperature=temperature, seed=seed)
    asked, name = _questions(
        questions, problems, seed, fields=(question_field, answer_field), match=match, system=system
    )
    if decoding.rows > batch_size:
        raise ConfigError(
            f"--config: draft_candidates={decoding.rows} do not fit --batch-size {batch_size}.",
            hint=f"Raise it: --batch-size {decoding.rows}.",
        )
    check_out(out)
    settings: _Settings = {
        "questions_sha256": hashlib.sha256(questions.read_bytes()).hexdigest(),
        "problems": len(asked),
        "question_field": question_field or "",
        "answer_field": answer_field or "",
        "system": system or "",
        "seed": seed,
        "temperature": temperature,
        "max_tokens": max_tokens or "as the window allows",
        "config": _told(decoding, but=("max_tokens", "temperature", "seed")),
    }
    from rsd_integrations.bench.environment import hardware
    from rsd_integrations.bench.figure import draw_tuning
    from rsd_integrations.bench.table import print_tuning
    from rsd_integrations.bench.tune import tune as tuned

    # Times of another machine, or of another part of this one, are no measure for today's.
    conditions = {"batch_size": batch_size, "device": device, "host": platform.node(), **hardware()}
    answers = None if out is None else _saved(out, choice, settings, conditions)
    run = partial(tuned, tasks=asked, thresholds=sweep, config=decoding, within=within / 100, answers=answers)
    told: _Settings = {
        **settings,
        "match": name,
        "questions_from": str(questions),
        "batch_size": batch_size,
        "thresholds": thresholds,
    }
    report = _measured(state, choice, run, told, answers)
    console = Console(highlight=False)
    print_tuning(report, console)
    conclude(report, console, out=out, name="tune", draw=draw_tuning, check=False)


def _questions(
    path: Path,
    count: int | None,
    seed: int,
    *,
    fields: tuple[str | None, str | None],
    match: str,
    system: str | None,
) -> tuple[list[Question], str]:
    """The questions, and the name of what tells right answers."""
    from rsd_integrations.bench.matching import matcher
    from rsd_integrations.bench.questions import Question, drawn, read_questions

    chosen = drawn(read_questions(path, question=fields[0], answer=fields[1]), count, seed)
    name, right = matcher(match, [known for _, known in chosen])

    def prompt(text: str) -> Any:
        if system is None:
            return text
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    return [Question(prompt(text), known, right) for text, known in chosen], name


def _told(config: RSDConfig, but: Collection[str]) -> str:
    """Further settings that answers depend on, whichever way they were spelled."""
    names = config.model_fields_set.difference(but, ("speculation",))
    more = config.model_dump(mode="json", include=names, exclude_defaults=True)
    return json.dumps(more, sort_keys=True) if more else ""


def _saved(out: Path, choice: ModelChoice, settings: _Settings, conditions: dict[str, Any]) -> SavedAnswers:
    """Answers in a folder, and what is said of those that are there.

    Raises:
        ConfigError: they are of other models, questions or settings.
    """
    from rsd_integrations import __version__
    from rsd_integrations.bench.saved import SavedAnswers, fingerprint

    made_by: dict[str, Any] = {
        "rsd_integrations": __version__,
        **{str(role): [model, fingerprint(model)] for role, model in choice.models.items()},
        "dtype": choice.dtype,
        "max_length": choice.max_length,
        "prm_format": choice.prm_format,
        **choice.kwargs,
    }
    answers = SavedAnswers(out / _ANSWERS, {**settings, **made_by}, conditions)
    if answers.count:
        told = Text(f"going on from {many(answers.count, 'answer')} in {out}")
        Console(stderr=True).print(told, soft_wrap=True)
    return answers


def _measured(
    state: State,
    choice: ModelChoice,
    run: Callable[..., Tuning],
    settings: _Settings,
    answers: SavedAnswers | None,
) -> TuneReport:
    """What comes of a run over the chosen models.

    Args:
        run: takes the pipeline and who watches.
        settings: of the report.
        answers: that the run keeps.
    """
    from rsd_integrations.bench.environment import made
    from rsd_integrations.bench.results import TuneReport

    with ExitStack() as stack:
        if answers is not None:
            stack.callback(answers.close)
        with Console(stderr=True).status("loading the models"):
            pipe = stack.enter_context(state.open_pipeline(choice))
        try:
            with watching() as watch:
                found = run(pipe, watch=watch)
        except KeyboardInterrupt:
            if answers is not None:
                told = Text(f"{many(answers.count, 'answer')} kept: the same command goes on from there")
                Console(stderr=True).print(told, soft_wrap=True)
            raise
        return TuneReport(
            **made(state.command_line, "math-verify"),
            settings=settings,
            models={role: getattr(pipe.backend, role).info.name for role in ROLES},
            **vars(found),
        )
