"""``rsd ask``: one question, answered in the open."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from rsd_integrations.cli import options
from rsd_integrations.cli.console import open_console
from rsd_integrations.cli.models import ModelChoice, State
from rsd_integrations.cli.saving import check_file, write_whole
from rsd_integrations.cli.settings import read_config
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import PromptError
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket import DESCRIPTION
from rsd_integrations.pocket import MAX_TOKENS as POCKET_MAX_TOKENS
from rsd_integrations.report.words import Remedy, role_name
from rsd_integrations.types import ROLES, Generation
from rsd_integrations.weighting import NAMES


def ask(
    ctx: typer.Context,
    question: Annotated[str, typer.Argument(help='The question; "-" or nothing reads a pipe.')] = "-",
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
    threshold: Annotated[
        float | None,
        options.decoding(
            help="Reward from which a draft step is kept, the PRM's default if not given; 0 is draft only, "
            "above 1 target only."
        ),
    ] = None,
    weighting: Annotated[
        str | None, options.decoding(help=f"One of {', '.join(NAMES)}. If not given, step.")
    ] = None,
    temperature: Annotated[float | None, options.decoding(help="0, greedy, if not given.")] = None,
    max_tokens: Annotated[
        int | None,
        options.decoding(
            help=f"Most tokens in the answer (pocket trio: {POCKET_MAX_TOKENS}, or what --max-length leaves)."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        options.decoding(
            min=2, help="Most tokens of question and answer; 4096 if not given (servers: what they take)."
        ),
    ] = None,
    seed: Annotated[int | None, options.decoding(help="Repeats a sampled answer.")] = None,
    candidates: Annotated[
        int | None, options.decoding("--draft-candidates", help="Drafts for each step; the best is tested.")
    ] = None,
    config: options.Config = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, nothing else.", **options.FLAG)
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the steps as an HTML page.")] = None,
) -> None:
    """Answer a question and show every step: kept, or rejected and rewritten by the target."""
    state: State = ctx.obj
    is_limited_pocket = draft is None and max_tokens is None and max_length is None
    settings = read_config(
        config,
        threshold=threshold,
        weighting=weighting,
        temperature=temperature,
        max_tokens=POCKET_MAX_TOKENS if is_limited_pocket else max_tokens,
        seed=seed,
        draft_candidates=candidates,
    )
    choice = ModelChoice(
        draft,
        target,
        prm,
        prm_format,
        device,
        dtype,
        max_batch_size=settings.rows,
        max_length=max_length,
        draft_kwargs=draft_kwargs,
        target_kwargs=target_kwargs,
        prm_kwargs=prm_kwargs,
    )
    text = _question(question)
    check_file("--html", html)
    remedy = _remedy(settings, is_limited_pocket=is_limited_pocket)
    generation, models = _answer(state, choice, text, settings, remedy, as_json=as_json)
    if html is not None:
        from rsd_integrations.report.html import to_page

        about = f"{models}; {date.today().isoformat()}"
        page = to_page(generation, question=text, remedy=remedy, about=about)
        write_whole(html, lambda file: file.write_text(page, encoding="utf-8"))


def _question(question: str) -> str:
    """The argument, or what is piped in.

    Raises:
        PromptError: there is none, or it is not UTF-8.
    """
    if question == "-":
        if sys.stdin.isatty():
            from rsd_integrations.pocket import EXAMPLE_QUESTIONS

            example = f'for example: rsd ask "{EXAMPLE_QUESTIONS[0]}"'
            raise PromptError("no question.", hint=f"Give one, or pipe it in; {example}")
        question = _readable(_piped)
    if not question.strip():
        raise PromptError("the question is empty.", hint='Give one (rsd ask "..."), or pipe it in.')
    return _readable(lambda: question).strip()


def _piped() -> str:
    """Standard input as UTF-8 in any locale, without the byte order mark that Windows programs add."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        with suppress(io.UnsupportedOperation):  # Some of it has been read already.
            sys.stdin.reconfigure(encoding="utf-8-sig")
    return sys.stdin.read()


def _readable(read: Callable[[], str]) -> str:
    """Text without stray bytes, which Python refuses to decode or hides in lone surrogates.

    In the C locale it hides good bytes there, too: they are decoded.

    Raises:
        PromptError: it has stray bytes.
    """
    try:
        return read().encode(errors=sys.getfilesystemencodeerrors()).decode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        around = error.object[max(0, error.start - 20) : error.start + 20]
        raise PromptError(
            f"the question is not UTF-8 at position {error.start}: {around!r}.",
            hint="Convert it first, as iconv -f latin1 -t utf-8 does.",
        ) from error


def _answer(
    state: State, choice: ModelChoice, text: str, config: RSDConfig, remedy: Remedy, *, as_json: bool
) -> tuple[Generation, str]:
    """The answer, printed as well, and which models gave it."""
    with open_console(stderr=True).status("loading the models"):
        pipe = state.open_pipeline(choice)
    with pipe:
        models = _named(choice, pipe)
        if as_json:
            generation = pipe.generate(text, config=config)
            print(_json(generation))
            return generation, models
        from rsd_integrations.report.steps import show_events
        from rsd_integrations.report.whole import print_text

        console = open_console()
        if choice.is_pocket:
            print_text(DESCRIPTION, console, "dim")
        with pipe.stream(text, config=config) as events:
            return show_events(events, console, remedy), models


def _named(choice: ModelChoice, pipe: RSDPipeline) -> str:
    """The models by name. Of folders the last part: pages are sent to others, whom the rest does not help."""
    if choice.is_pocket:
        return "the pocket trio"
    names = {role: Path(getattr(pipe.backend, role).info.name).name for role in ROLES}
    return ", ".join(f"{role_name(role)} {name}" for role, name in names.items())


def _json(generation: Generation) -> str:
    """The answer as JSON; what the stream's encoding lacks is written as JSON escapes."""
    text = generation.model_dump_json(indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), indent=2)
    return text


def _remedy(config: RSDConfig, *, is_limited_pocket: bool) -> Remedy:
    """What to do about an answer that a length limit ended. Here it is known which limit that was."""

    def remedy(generation: Generation) -> str:
        if config.max_tokens is not None and generation.usage.completion_tokens >= config.max_tokens:
            # No answer of its own family comes near the trio's.
            family = "the pocket trio solves only word problems like those in README.md"
            return family if is_limited_pocket else "see --max-tokens"
        if len(generation.steps) >= config.max_steps:
            return "raise max_steps in --config"
        return "raise --max-length if the models take more"

    return remedy
