"""What README.md says is run, and what the house promises is checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"<!-- test -->\n```python\n(.*?)```", README, re.DOTALL)
SOURCES = sorted((ROOT / "rsd_integrations").rglob("*.py"))


@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_run(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_there_are_code_blocks_to_run() -> None:
    assert BLOCKS


def test_the_tree_names_every_folder() -> None:
    folders = {path.parent.relative_to(ROOT / "rsd_integrations") for path in SOURCES} - {Path()}
    missing = [str(folder) for folder in folders if f"{folder}/" not in README and folder != Path("backends")]
    assert missing == []


def test_files_the_readme_shows_are_there() -> None:
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_file_outgrows_a_reader(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_nothing_executes_what_a_model_wrote() -> None:
    for path in SOURCES:
        assert not re.search(r"(?<![\w.])(exec|eval)\(", path.read_text()), path
