"""The commands put together, and the one place where errors become exit codes (typer)."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from rsd_integrations.cli import INTERRUPTED
from rsd_integrations.cli.ask import ask
from rsd_integrations.cli.bench import bench
from rsd_integrations.cli.doctor import doctor
from rsd_integrations.cli.models import OpenPipeline, State
from rsd_integrations.cli.options import FLAG
from rsd_integrations.cli.tune import tune
from rsd_integrations.cli.wording import in_options, options_of
from rsd_integrations.config import first_wrong
from rsd_integrations.errors import ConfigError, PromptError, RSDError
from rsd_integrations.text.printable import printable

OK, FAILED, USAGE = 0, 1, 2

_PANELS = 80
"""Terminal columns from which typer's panels show every name whole; else there are plain lists."""

_VALUES_OF_FLAGS = ("(true)", "(false)", "(yes)", "(no)", "(on)", "(off)", "(1)", "(0)")

_HELP = """Reward-Guided Speculative Decoding: a draft model writes, a reward model scores, the target
model rewrites what is not good enough."""

_CODES = "Exit codes: 0 done, 1 a run or check failed, 2 wrong usage, 130 interrupted."


def build() -> Any:
    """The commands put together, with help texts as wide as the terminal."""
    width = Console().width
    app = typer.Typer(
        name="rsd",
        help=_HELP,
        epilog=_CODES,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "terminal_width": width},
        rich_markup_mode="rich" if width >= _PANELS else None,
    )
    app.callback()(_root)
    app.command()(ask)
    app.command()(doctor)
    app.command()(tune)
    app.add_typer(bench)
    return typer.main.get_command(app)


def _version(value: bool) -> None:
    if value:
        from rsd_integrations import __version__

        print(f"rsd-integrations {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.", **FLAG)
    ] = False,
) -> None:
    """Options of ``rsd`` itself."""


def run(arguments: list[str], open_pipeline: OpenPipeline) -> int:
    """Run a command line and return its exit code; see ``rsd_integrations.cli.main``."""
    debug, arguments = _take_debug(arguments)
    state = State(open_pipeline, shlex.join(["rsd", *arguments]))
    command = build()
    try:
        code = command.main(arguments, prog_name="rsd", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        if _nobody_reads(error):
            # Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        if debug:
            traceback.print_exc()
        message, code = describe(error, options_of(command, arguments))
        if message:
            print(f"error: {message}", file=sys.stderr)
        return code


def _nobody_reads(error: Exception) -> bool:
    """Whether the reader of our output has gone. To Windows that, as much else, is an invalid argument."""
    if os.name == "nt" and isinstance(error, OSError) and error.errno == errno.EINVAL:
        try:
            sys.stdout.flush()
        except OSError:
            return True
    return isinstance(error, BrokenPipeError)


def _take_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """The hidden --debug may stand anywhere before a "--"."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [argument for argument in arguments[:end] if argument != "--debug"]
    return len(rest) < end, rest + arguments[end:]


def describe(error: Exception, options: Mapping[str, str]) -> tuple[str, int]:
    """One line for the user and the exit code of an error.

    Args:
        error: what ended the command.
        options: the command's options, by their names in Python.
    """
    if isinstance(error, ValidationError):
        return in_options(_one_line(first_wrong(error)), options), USAGE
    if isinstance(error, RSDError):
        message = in_options(_one_line(str(error)), options)
        return message, USAGE if isinstance(error, (ConfigError, PromptError)) else FAILED
    if hasattr(error, "format_message"):  # typer's own, whose classes moved between its versions
        return _from_typer(error)
    if isinstance(error, OSError):
        return _one_line(str(error)), FAILED
    return _one_line(f"{type(error).__name__}: {error} (--debug shows where)"), FAILED


def _from_typer(error: Any) -> tuple[str, int]:
    """A bare "rsd" has only shown its help. Old typers exit with 0 then, new ones with 2; here it is 0."""
    said = error.format_message()
    if said.startswith("Got unexpected extra argument"):
        is_value = said.rstrip(".").lower().endswith(_VALUES_OF_FLAGS)
        hint = "Flags take no value" if is_value else "Put a text of several words in quotes"
        said = f"{said.rstrip('.')}. {hint}."
    elif _may_be_an_argument(error):
        said = f"{said.rstrip('.')}. If it begins a text, put -- before that."
    return (_one_line(f"{said} (see --help)"), int(error.exit_code)) if said else ("", OK)


def _may_be_an_argument(error: Any) -> bool:
    """Whether an option that is unknown looks like the start of a text (``-5 + 3``), where one is taken."""
    option, context = getattr(error, "option_name", ""), getattr(error, "ctx", None)
    if not option or context is None or (option.startswith("--") and " " not in option):
        return False
    return any(parameter.param_type_name == "argument" for parameter in context.command.params)


def _one_line(text: str) -> str:
    # Errors quote configs and chat templates, which may hold control characters.
    return printable(" ".join(text.split()))
