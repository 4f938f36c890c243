from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import rsd_integrations
from rsd_integrations.cli.app import build
from rsd_integrations.cli.wording import options_of

if TYPE_CHECKING:
    from tests.cli.conftest import Rsd


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


def test_version(rsd: Rsd) -> None:
    result = rsd("--version")
    assert (result.code, result.out) == (0, f"rsd-integrations {rsd_integrations.__version__}\n")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rsd_integrations", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"rsd-integrations {rsd_integrations.__version__}\n")


@pytest.mark.skipif(os.name == "nt", reason="written for sh")
@pytest.mark.parametrize(
    ("closed", "arguments", "code", "out", "said"),
    [
        (">&-", "--version", 0, "", ""),
        ("<&-", "ask", 2, "", "error: the question is empty."),
        (">&- 2>&-", "ask ''", 2, "", ""),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("2>&-", "--version", 0, "rsd-integrations", ""),
                ("2>&-", "ask ''", 2, "", ""),
                ("2>&-", "ask '' --debug", 2, "", ""),
            )
        ),
    ],
)
def test_a_stream_that_the_shell_closed_is_read_and_written_as_an_empty_one(
    closed: str, arguments: str, code: int, out: str, said: str
) -> None:
    command = ["sh", "-c", f'"$0" -m rsd_integrations {arguments} {closed}', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert (done.stdout[: len(out) or None], done.stderr[: len(said) or None]) == (out, said)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ask", "-h"], ["bench", "--help"], ["bench", "accuracy", "--help"]]
)
def test_help(rsd: Rsd, arguments: list[str]) -> None:
    result = rsd(*arguments)
    assert result.code == 0
    assert "Usage: rsd" in result.out
    assert "--debug" not in result.out


@pytest.mark.parametrize("width", [60, 80])
def test_exit_codes_are_told(rsd: Rsd, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    told = " ".join(rsd("--help").out.split())
    assert "Exit codes: 0 done, 1 a run or check failed, 2 wrong usage, 130 interrupted." in told


@pytest.mark.parametrize("width", [60, 79, 80])
@pytest.mark.parametrize("arguments", [["ask"], ["doctor"], ["bench", "accuracy"], ["bench", "speed"]])
def test_no_name_of_an_option_is_cut_in_a_narrow_help(
    rsd: Rsd, monkeypatch: pytest.MonkeyPatch, arguments: list[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = rsd(*arguments, "--help").out
    assert set(options_of(build(), arguments).values()) <= set(shown.split())
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("width", [79, 80, 200])
@pytest.mark.parametrize("arguments", [[], ["ask"], ["bench", "accuracy"], ["bench", "speed"]])
def test_flags_do_not_look_as_if_they_took_a_value(
    rsd: Rsd, monkeypatch: pytest.MonkeyPatch, arguments: list[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = rsd(*arguments, "--help").out
    (line,) = [
        line
        for line in shown.splitlines()
        if any(f" {flag} " in line for flag in ("--version", "--json", "--check"))
    ]
    assert "bool" not in line.lower()


@pytest.mark.parametrize("arguments", [[], ["bench"]])
def test_a_bare_command_shows_its_help(rsd: Rsd, arguments: list[str]) -> None:
    result = rsd(*arguments)
    assert result.code == 0
    assert "Usage: rsd" in result.out + result.err
    assert "error:" not in result.err


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_a_hint(missing: str) -> None:
    done = python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from rsd_integrations.cli import main; sys.exit(main(['ask', '?']))"
    )
    assert done.returncode == 1
    assert done.stderr == f'error: rsd needs {missing}: pip install "rsd-integrations[cli]"\n'


def test_importing_the_command_line_is_light() -> None:
    done = python(
        "import sys, rsd_integrations.cli\n"
        "assert not {'torch', 'transformers', 'typer', 'rich', 'matplotlib'} & set(sys.modules), 'import'\n"
        "assert rsd_integrations.cli.main(['--help']) == 0\n"
        "assert rsd_integrations.cli.main(['bench', 'accuracy', '--help']) == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules), 'help'\n"
    )
    assert done.returncode == 0, done.stderr
