"""``rsd tune``: which threshold for these models, on these questions?"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from rsd_integrations.cli import options
from rsd_integrations.cli.console import open_console
from rsd_integrations.cli.models import ModelChoice, State
from rsd_integrations.cli.progress import watching
from rsd_integrations.cli.saving import check_out, conclude
from rsd_integrations.cli.settings import quoted, read_config, read_sweep
from rsd_integrations.errors import ConfigError
from rsd_integrations.pocket import MAX_TOKENS as POCKET_MAX_TOKENS
from rsd_integrations.report.words import many
from rsd_integrations.types import ROLES

if TYPE_CHECKING:
    from rsd_integrations.bench.questions import Question
    from rsd_integrations.bench.results import TuneReport
    from rsd_integrations.bench.saved import SavedAnswers
    from rsd_integrations.bench.tune import Tuning, Wording
    from rsd_integrations.config import RSDConfig

_of_questions = partial(typer.Option, rich_help_panel="Questions")
_ANSWERS = "tune-answers.jsonl"
_MAX_TOKENS = 2048
_QUESTION_TOKENS = 2048
"""Room for the question if --max-length is not given and the models are loaded in this process."""

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
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    problems: Annotated[
        int | None, _of_questions(min=1, help="How many of them to draw at random; all if not given.")
    ] = None,
    question_field: Annotated[
        str | None, _of_questions(help="Field of the question; question, problem, ... if not given.")
    ] = None,
    answer_field: Annotated[
        str | None, _of_questions(help="Field of the known answer; answer, ... if not given.")
    ] = None,
    skip: Annotated[
        int,
        _of_questions(
            min=0,
            help="Leave out the first N that the same seed draws: to confirm a threshold on questions that "
            "it was not chosen by.",
            metavar="N",
        ),
    ] = 0,
    problems_seed: Annotated[
        int | None, _of_questions(min=0, help="Seed of the chosen questions; --seed if not given.")
    ] = None,
    match: Annotated[
        str,
        _of_questions(
            help="How answers are compared: number, math (formulas, by math-verify), text, auto (what suits "
            "the known answers), or module:function, called with an answer's text and the known answer."
        ),
    ] = "auto",
    system: Annotated[
        str | None, _of_questions(help="System message, such as how to write the answer.")
    ] = None,
    thresholds: Annotated[
        str,
        options.decoding(
            help="The sweep; draft only, target only and the PRM's default come on top (not the latter where "
            "a single threshold is confirmed)."
        ),
    ] = "0.3,0.5,0.7,0.8,0.9,0.95",
    max_tokens: Annotated[
        int | None,
        options.decoding(
            min=1,
            help=f"Most tokens of an answer; {_MAX_TOKENS} if not given (pocket trio: {POCKET_MAX_TOKENS}, "
            "or what --max-length leaves).",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        options.decoding(
            min=2,
            help=f"Most tokens of question and answer; if not given {_QUESTION_TOKENS} for the question "
            "(pocket trio, servers: what they take).",
        ),
    ] = None,
    temperature: Annotated[float, options.decoding(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[
        int, options.decoding(min=0, help="Seed of sampling, of the bootstrap and of the chosen questions.")
    ] = 0,
    config: options.Config = None,
    within: Annotated[
        float, typer.Option(min=0.0, max=99.0, help="Points of accuracy that may be lost to the target.")
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for JSON, plot, and every answer as it comes. The same command goes on from these "
            "answers; it cannot see whether a hub id or URL still stands for the same weights."
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
        max_batch_size=max_batch_size,
        max_length=max_length,
        draft_kwargs=draft_kwargs,
        target_kwargs=target_kwargs,
        prm_kwargs=prm_kwargs,
    )
    if choice.is_pocket:
        max_tokens = max_tokens or (POCKET_MAX_TOKENS if max_length is None else None)
    else:
        max_tokens = max_tokens or _MAX_TOKENS
        if not choice.is_served and max_length is None:
            choice = replace(choice, max_length=max_tokens + _QUESTION_TOKENS)
    decoding = read_config(config, swept=_SWEPT, max_tokens=max_tokens, temperature=temperature, seed=seed)
    from rsd_integrations.bench.questions import drawn

    asked, name, total = _questions(
        questions,
        lambda total: drawn(total, problems, seed if problems_seed is None else problems_seed, skip=skip),
        fields=(question_field, answer_field),
        match=match,
        system=system,
    )
    if decoding.rows > max_batch_size:
        raise ConfigError(
            f"--config: draft_candidates={decoding.rows} do not fit --max-batch-size {max_batch_size}.",
            hint=f"Raise it: --max-batch-size {decoding.rows}.",
        )
    check_out(out)
    settings: _Settings = {
        "questions_sha256": hashlib.sha256(questions.read_bytes()).hexdigest(),
        "problems": len(asked),
        "entries_sha256": hashlib.sha256(str([one.entry for one in asked]).encode()).hexdigest(),
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

    # Times from another machine or device are not to be compared with those of this run.
    conditions = {"batch_size": max_batch_size, "device": device, "host": platform.node(), **hardware()}
    answers = None if out is None else _saved(out, choice, settings, conditions, state.command_line)
    run = partial(tuned, tasks=asked, thresholds=sweep, config=decoding, within=within / 100, answers=answers)
    told: _Settings = {
        **settings,
        "match": name,
        "questions_from": str(questions),
        "batch_size": max_batch_size,
        "thresholds": thresholds,
        "skip": skip,
        "device": device or "auto",
        "dtype": dtype or "auto",
        "prm_format": prm_format or "auto",
        **{name: json.dumps(value) for name, value in choice.kwargs.items()},
    }
    report = _measured(state, choice, run, told, answers)
    console = open_console()
    print_tuning(report, console, _wording(total - skip - len(asked), len(asked), skip, out))
    conclude(report, console, out=out, name="tune", draw=draw_tuning, check=False)


def _wording(left: int, asked: int, skip: int, out: Path | None) -> Wording:
    """Advice in options.

    Args:
        left: questions of the file that the same seed has not drawn yet.
        asked: those that were asked.
        skip: those that were skipped.
        out: as of ``--out``.
    """
    from rsd_integrations.bench.tune import Wording

    def confirm(threshold: float) -> str:
        if left <= 0:
            return "the file has none left to confirm it on."
        more = f"--skip {skip + asked} --thresholds {threshold!r}"
        more += f" --problems {left}" if left < asked else ""
        more += "" if out is None else f" --out {quoted(f'{out}-confirm')}"
        # Without a full stop, which would be copied along.
        return f"confirm it there, by the same command with {more}"

    return Wording("--max-tokens (or max_steps in --config)", confirm)


def _questions(
    path: Path,
    draw: Callable[[int], list[int]],
    *,
    fields: tuple[str | None, str | None],
    match: str,
    system: str | None,
) -> tuple[list[Question], str, int]:
    """The questions, the name of the match in force ("auto" resolved), and how many the file has.

    Args:
        path: of the file.
        draw: takes the number of questions, gives the places of those that are asked.
        fields: of the question and of the known answer.
        match: as of ``--match``.
        system: the system message.
    """
    from rsd_integrations.bench.matching import is_formula, matcher
    from rsd_integrations.bench.questions import Question, read_questions

    found = read_questions(path, question=fields[0], answer=fields[1])
    if again := sum(count > 1 for count in Counter(text for text, _ in found).values()):
        _tell(
            f"{many(again, 'question')} {'occurs' if again == 1 else 'occur'} more than once in {path}: each "
            "copy counts as a question of its own, and with --skip one may confirm a threshold that another "
            "chose; leave one of each"
        )
    chosen = {place: found[place] for place in draw(len(found))}
    name, right = matcher(match, [known for _, known in chosen.values()])
    if (match, name) == ("auto", "text") and any(is_formula(known) for _, known in chosen.values()):
        _tell(
            "some known answers are formulas, which are compared sign by sign without math-verify: "
            'pip install "rsd-integrations[math]"'
        )

    def prompt(text: str) -> Any:
        if system is None:
            return text
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    asked = [Question(prompt(text), known, right, entry=place + 1) for place, (text, known) in chosen.items()]
    return asked, name, len(found)


def _tell(text: str) -> None:
    open_console(stderr=True).print(Text(text), soft_wrap=True)


def _told(config: RSDConfig, but: Collection[str]) -> str:
    """Further settings that answers depend on, the same text however numbers were spelled. The order of what
    goes into templates counts.
    """
    names = config.model_fields_set.difference(but)
    more = config.model_dump(mode="json", include=names, exclude_defaults=True)
    return json.dumps(more) if more else ""


def _saved(
    out: Path, choice: ModelChoice, settings: _Settings, conditions: dict[str, Any], command: str
) -> SavedAnswers:
    """The answers saved in a folder. Tells how many there are, if any.

    Raises:
        ConfigError: they are of other models, questions or settings.
    """
    from rsd_integrations import __version__
    from rsd_integrations.bench.environment import made, weights_sha256
    from rsd_integrations.bench.results import Made
    from rsd_integrations.bench.saved import SavedAnswers, fingerprint
    from rsd_integrations.pocket import pocket_paths

    made_by: dict[str, Any] = {
        "rsd_integrations": __version__,
        **{str(role): [model, fingerprint(model)] for role, model in choice.models.items()},
        "tokenizers": {of: fingerprint(given.get("tokenizer")) for of, given in choice.kwargs.items()},
        "dtype": choice.dtype,
        "max_length": choice.max_length,
        "prm_format": _told_form(choice.form),
        "pocket": weights_sha256(vars(pocket_paths())) if choice.is_pocket else None,
        **choice.kwargs,
    }
    now = Made(**made(command, "math-verify"))
    answers = SavedAnswers(out / _ANSWERS, {**settings, **made_by}, conditions, now)
    if answers.count:
        _tell(f"going on from {many(answers.count, 'answer')} in {out}")
    return answers


def _told_form(form: str | type | None) -> str | list[str] | None:
    """A format's name; with a hash of its file if it is the user's own, which is likely to change."""
    if not isinstance(form, type):
        return form
    file = getattr(sys.modules[form.__module__], "__file__", None)
    source = b"" if file is None else Path(file).read_bytes()
    return [f"{form.__module__}:{form.__qualname__}", hashlib.sha256(source).hexdigest()]


def _measured(
    state: State,
    choice: ModelChoice,
    run: Callable[..., Tuning],
    settings: _Settings,
    answers: SavedAnswers | None,
) -> TuneReport:
    """The report of a run over the chosen models, which are loaded for it.

    Args:
        run: called with the pipeline and a ``Watch``.
        settings: of the report.
        answers: where the run keeps its answers.
    """
    from rsd_integrations.bench.environment import made
    from rsd_integrations.bench.results import TuneReport

    with ExitStack() as stack:
        if answers is not None:
            stack.callback(answers.end)
        with open_console(stderr=True).status("loading the models"):
            pipe = stack.enter_context(state.open_pipeline(choice))
        try:
            with watching() as watch:
                found = run(pipe, watch=watch)
        except KeyboardInterrupt:
            if answers is not None:
                _tell(f"{many(answers.count, 'answer')} kept: the same command goes on from there")
            raise
        return TuneReport(
            **made(state.command_line, "math-verify"),
            settings=settings,
            models={role: getattr(pipe.backend, role).info.name for role in ROLES},
            answers_made=() if answers is None else tuple(answers.made),
            **vars(found),
        )
