from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rsd_integrations.cli import app, settings
from rsd_integrations.cli.app import describe
from rsd_integrations.cli.saving import check_out
from rsd_integrations.errors import BackendError, ConfigError, ModelError
from rsd_integrations.pocket import EXAMPLE_QUESTIONS
from tests.processes import interrupted
from tests.systems import on_system

if TYPE_CHECKING:
    from tests.cli.conftest import Rsd

THREE = ["--draft", "org/d", "--target", "org/t", "--prm", "org/p"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "?", "--weighting", "best"], "unknown weighting 'best'; use one of 'step'"),
        (["ask", "?", "--threshold", "-1"], "--threshold -1.0: Input should be greater than or equal to 0"),
        (["ask", "?", "--threshold", "high"], "'--threshold'"),
        (["ask", "?", "--temperature", "nan"], "--temperature nan"),
        (["ask", "?", "--max-tokens", "0"], "--max-tokens 0"),
        (["ask", "?", "--seed", "-3"], "--seed -3"),
        (["ask", "?", "--config", "top_p"], "--config is no JSON"),
        (["ask", "?", "--config", "[" * 100_000], "--config is no JSON: maximum recursion depth"),
        (["ask", "?", "--config", "[1]"], "--config is no JSON object but a list"),
        (
            ["ask", "?", "--config", '{"top_q": 1}'],
            "--config: unknown setting 'top_q'. Did you mean 'top_p'?",
        ),
        (
            ["ask", "?", "--config", '{"top_p": 3}'],
            "--config: top_p=3: Input should be less than or equal to 1",
        ),
        (
            ["ask", "?", "--config", '{"stop": ["a", ""]}'],
            "--config: stop strings must not be empty, got ('a', '')",
        ),
        (
            ["ask", "?", "--config", '{"draft_candidates": 2}'],
            "--config sets 'draft_candidates', which has an option. Use --draft-candidates.",
        ),
        (["ask", "?", "--config", '{"min_p": 0.1}', "--seed", "-3"], "--seed -3"),
        (
            ["ask", "?", "--draft-candidates", "3"],
            "error: --draft-candidates 3 are all the same at temperature 0; "
            "set a temperature above 0, or --draft-candidates 1\n",
        ),
        (
            ["ask", "?", "--draft", "org/d", "--prm", "org/p"],
            "--target missing. Give --draft, --target and --prm",
        ),
        (["ask", "?", "--draft", "org/d"], "--target and --prm missing"),
        (["ask", "?", *THREE, "--draft", "./nowhere"], "--draft './nowhere' is not a folder"),
        (["ask", "?", *THREE, "--prm", "/no/where/prm"], "--prm '/no/where/prm' is not a folder"),
        (["ask", ""], "the question is empty"),
        (["ask", "  \n"], "the question is empty"),
        (["ask", "?", "--bogus"], "--bogus"),
        (["ask", "one", "two"], "(two). Put a text of several words in quotes."),
        (["ask", "?", "--json", "true"], "(true). Flags take no value."),
        (["bench", "accuracy", "--check", "False"], "(False). Flags take no value."),
        (["bogus"], "bogus"),
        (["bench", "accuracy", "--problems", "0"], "--problems"),
        (["bench", "accuracy", "--thresholds", "0.5,high"], "--thresholds '0.5,high'"),
        (["bench", "accuracy", "--thresholds", "0.5,1.2"], "above 0 and up to 1"),
    ],
)
def test_wrong_usage_is_one_line_and_loads_no_model(rsd: Rsd, arguments: list[str], said: str) -> None:
    result = rsd(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert said in result.err
    assert result.err.count("\n") == 1
    assert rsd.choices == []


@pytest.mark.parametrize(
    ("arguments", "is_hinted"),
    [
        (["ask", "-5 + 3 is what?"], True),
        (["ask", "--5 + 3 is what?"], True),
        (["tune", "-questions.jsonl"], True),
        (["ask", "?", "--treshold", "1"], False),
        (["doctor", "-5"], False),  # It takes no text.
    ],
)
def test_a_text_that_begins_with_a_dash_is_told_where_to_stand(
    rsd: Rsd, arguments: list[str], is_hinted: bool
) -> None:
    result = rsd(*arguments)
    assert result.code == 2
    assert ("If it begins a text, put -- before that." in result.err) == is_hinted
    if arguments[0] == "ask" and is_hinted:
        assert rsd("ask", "--", *arguments[1:]).code == 0


@pytest.mark.skipif(os.name == "nt", reason="paths and reasons as POSIX has them")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "?", "--html", "/no/where/steps.html"], "--html '/no/where/steps.html' cannot be written"),
        (["ask", "?", "--html", "/"], "--html '/' cannot be written: Is a directory"),
        (["ask", "?", "--html", "/dev/null/steps.html"], "cannot be written: Not a directory"),
        (["ask", "?", "--html", 300 * "x"], "cannot be written: File name too long"),
        (
            ["bench", "accuracy", "--out", "/dev/null/out"],
            "--out '/dev/null/out' cannot be written to: Not a",
        ),
        (["bench", "speed", "--out", "/dev/null/out"], "--out '/dev/null/out' cannot be written to: Not a"),
        (["bench", "speed", "--out", 300 * "x"], "cannot be written to: File name too long"),
    ],
)
def test_what_cannot_be_written_is_wrong_usage_too(rsd: Rsd, arguments: list[str], said: str) -> None:
    test_wrong_usage_is_one_line_and_loads_no_model(rsd, arguments, said)


def test_a_folder_is_tried_with_one_file_that_goes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' tempfile would go on with names without end where each is refused."""
    check_out(tmp_path)
    assert list(tmp_path.iterdir()) == []
    tried: list[tuple[Path, str]] = []

    def refuse(path: Path, mode: str) -> None:
        tried.append((path.parent, mode))
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match="cannot be written to: Permission denied"):
        check_out(tmp_path)
    assert tried == [(tmp_path, "xb")]


def test_json_is_hinted_at_as_windows_shells_take_it(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    assert """Write it as '{"top_p": 0.8,""" in rsd("ask", "?", "--config", "[1]").err
    on_system(monkeypatch, settings, "nt")
    assert 'Write it as "{""top_p"": 0.8, ' in rsd("ask", "?", "--config", "[1]").err


def test_an_empty_pipe_is_an_empty_question(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert rsd("ask").code == 2


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # As in most locales, and as in C.
def test_a_pipe_that_is_not_utf8(rsd: Rsd, monkeypatch: pytest.MonkeyPatch, errors: str) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(b"caf\xe9 question"), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", pipe)
    _refused_as_not_utf8(rsd)


def test_an_argument_that_is_not_utf8(rsd: Rsd) -> None:
    _refused_as_not_utf8(rsd, "caf\udce9 question")  # As Python gives b"caf\xe9 question".


def _refused_as_not_utf8(rsd: Rsd, *question: str) -> None:
    result = rsd("ask", *question)
    assert (result.code, result.out, rsd.choices) == (2, "", [])
    assert result.err == (
        "error: the question is not UTF-8 at position 3: b'caf\\xe9 question'. "
        "Convert it first, as iconv -f latin1 -t utf-8 does.\n"
    )


def test_no_question_at_a_terminal_does_not_wait_for_one(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    result = rsd("ask")
    assert result.code == 2
    assert "pipe it in" in result.err
    assert EXAMPLE_QUESTIONS[0] in result.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelError("no tokenizer.", hint="Give one."), "error: no tokenizer. Give one."),
        (BackendError("the device\nis gone."), "error: the device is gone."),
        (OSError(28, "No space left"), "error: [Errno 28] No space left"),
        (ZeroDivisionError("oops"), "error: ZeroDivisionError: oops (--debug shows where)"),
    ],
)
def test_a_failed_run_is_one_line(rsd: Rsd, error: Exception, said: str) -> None:
    def fail() -> None:
        raise error

    rsd.open = fail  # type: ignore[assignment]
    result = rsd("ask", "?")
    assert (result.code, result.out, result.err) == (1, "", said + "\n")


def test_a_model_that_fails_in_mid_answer(rsd: Rsd) -> None:
    def write(prompt: object, index: int, text: str) -> str | Exception:
        return "One step.\n\n" if index == 0 else BackendError("the draft broke.", hint="Mend it.")

    rsd.scripted(write)
    result = rsd("ask", "?")
    assert result.code == 1
    assert result.err == "error: the draft broke. Mend it.\n"
    assert "One step." in result.out
    assert rsd("ask", "?", "--json").out == ""


@pytest.mark.parametrize("arguments", [["--debug", "ask", ""], ["ask", "", "--debug"]])
def test_debug_shows_the_traceback(rsd: Rsd, arguments: list[str]) -> None:
    result = rsd(*arguments)
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("error: ")


def test_debug_may_be_asked_about(rsd: Rsd) -> None:
    assert "Traceback" not in rsd("ask", "--weighting", "x", "--", "--debug").err


def test_interrupt_while_loading_is_quiet(rsd: Rsd) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    rsd.open = interrupt  # type: ignore[assignment]
    result = rsd("ask", "?")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_interrupt_while_commands_are_imported_is_quiet(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "rsd_integrations.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "rsd_integrations.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    result = rsd("ask", "?")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_interrupt_in_mid_answer_is_quiet() -> None:
    code = """
import sys
from rsd_integrations.cli import main
from rsd_integrations.testing import scripted_pipeline
asked = []
def write(*_):
    if not asked:
        print("ready", flush=True)
    asked.append("once")
    return 'x' * 9000
def slow(choice):
    return scripted_pipeline(write, delay=0.01)
sys.exit(main(['ask', '?', *'--draft a --target b --prm c'.split()], open_pipeline=slow))
"""
    assert interrupted(code, after=0.2) == (130, "", "")


def test_a_reader_that_went_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "rsd_integrations", "--version"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_reader_that_went_away_is_quiet_on_windows(
    rsd: Rsd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "pipe").open("w", encoding="utf-8") as file:

        class Gone(io.StringIO):
            fileno = file.fileno

            def flush(self) -> None:
                raise OSError(errno.EINVAL, "Invalid argument")

        on_system(monkeypatch, app, "nt")
        monkeypatch.setattr(sys, "stdout", Gone())
        result = rsd("ask", "?")
    assert (result.code, result.err) == (1, "")


def test_what_else_is_invalid_is_told_on_windows(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    on_system(monkeypatch, app, "nt")

    def fail() -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    rsd.open = fail  # type: ignore[assignment]
    result = rsd("ask", "?")
    assert (result.code, result.out, result.err) == (1, "", "error: [Errno 22] Invalid argument\n")


def test_errors_cannot_steer_the_terminal() -> None:
    said, _ = describe(ModelError("the chat template says \x1b[2J\x1b]0;mine\x07\u202e."), {})
    assert said == "the chat template says \ufffd[2J\ufffd]0;mine\ufffd\ufffd."
