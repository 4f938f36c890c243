"""The kit in the hands of somebody who has the package alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

from rsd_integrations import conformance
from rsd_integrations.conformance.writers import LIKELIEST
from rsd_integrations.protocols import Sampling

ROOT = Path(conformance.__file__).parents[2]
SHOWN = textwrap.dedent(
    (conformance.__doc__ or "").split("::\n", 1)[1].split("\nA writer must", maxsplit=1)[0]
)
"""What its docstring shows."""
MINE = """
from rsd_integrations.protocols import Scored
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter

class MyWriter(ScriptedWriter):
    def __init__(self, source):
        super().__init__(lambda prompt, index, text: ("so it goes on and on\\n\\n" * 20)[len(text):])

class MyScorer(ScriptedScorer):
    def __init__(self, source):
        super().__init__(lambda prompt, index, step: len(step) % 7 / 7)
"""
WRONG = """
    def score(self, sessions, work):
        return [Scored(1.75, one.tokens) for one in super().score(sessions, work)]
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python elsewhere, as in another project."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd)])}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=env, check=False
    )


def own_tests(folder: Path, package: str) -> subprocess.CompletedProcess[str]:
    (folder / "my_package.py").write_text(package, encoding="utf-8")
    (folder / "test_mine.py").write_text(SHOWN, encoding="utf-8")
    return run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", cwd=folder)


def test_what_the_docstring_shows_tests_a_backend_of_one_s_own(tmp_path: Path) -> None:
    ran = own_tests(tmp_path, MINE)
    assert ran.returncode == 0, ran.stdout
    tests = [
        name
        for kit in (conformance.WriterKit, conformance.ScorerKit)
        for name in dir(kit)
        if name[:5] == "test_"
    ]
    assert int(ran.stdout.splitlines()[-1].split()[0]) >= len(tests) > 15


def test_a_failure_says_with_which_values(tmp_path: Path) -> None:
    ran = own_tests(tmp_path, MINE + WRONG)
    assert ran.returncode == 1
    assert "assert 1.75 <= 1.0" in ran.stdout
    assert "Warning" not in ran.stdout


DEAF = """
import pytest
from rsd_integrations.conformance import WriterKit
from rsd_integrations.testing import ScriptedWriter

class Deaf(ScriptedWriter):
    # Hears of no filter and no penalty, and takes a rejected step for its own.
    def open(self, *given):
        session = super().open(*given)
        begin = session.begin

        def began(work):
            begin(work)
            draws = work.sampling.temperature > 0 and work.sampling.draw() < 0.5
            rejected = getattr(work, "rejected", None)
            drawn = ("or other things " if draws else "so it goes ") * 9
            session._script = rejected.text if rejected else drawn

        session.begin = began
        return session

class TestMine(WriterKit):
    @pytest.fixture
    def writer(self):
        return Deaf("")

    def continues(self, writer):
        return False
"""


def test_each_way_to_sample_is_tried() -> None:
    tried = {name for sampled in LIKELIEST for name in sampled} | {"repetition_penalty"}
    assert tried == {field.name for field in fields(Sampling)} - {"draw"}


def test_a_writer_that_does_not_listen_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(DEAF, encoding="utf-8")
    ran = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", cwd=tmp_path)
    failed = [line.partition("::test_")[2].partition("[")[0] for line in ran.stdout.splitlines()]
    for name in ("how_it_is_to_sample_is_heeded", "a_penalty_is_heeded", "guesses_change_nothing"):
        assert any(line.startswith(name) for line in failed), ran.stdout


def test_only_the_kit_wants_pytest(tmp_path: Path) -> None:
    code = """if True:
        import sys
        sys.modules["pytest"] = None
        import rsd_integrations, rsd_integrations.testing, rsd_integrations.protocols
        try:
            import rsd_integrations.conformance
        except ModuleNotFoundError as error:
            print(error.name, "|", error)
    """
    ran = run("-c", code, cwd=tmp_path)
    assert ran.stdout == (
        "pytest | 'pytest', which runs these tests, is not installed. Run: pip install pytest.\n"
    ), ran.stderr
