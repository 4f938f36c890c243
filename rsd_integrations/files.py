"""Files and folders that are there whole or not at all, whatever ends the program meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what is to lie at a path: beside it, with its suffix, to be renamed when all is written.
    The folder is made if it is missing.

    Raises:
        OSError: it cannot be put there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        yield beside
        if path.is_dir():  # A folder cannot be renamed onto one that holds something.
            remove(path)
        beside.replace(path)
    finally:
        remove(beside)


def write(path: Path, text: str) -> None:
    """Write a file of text."""
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")


def unwritten(path: Path, error: OSError) -> OSError:
    """The same error with the file's name, which those of writing do not tell."""
    return OSError(f"{str(path)!r} cannot be written: {error.strerror or error}.")


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
