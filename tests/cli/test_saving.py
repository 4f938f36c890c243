"""A file that cannot be written whole costs nothing that was there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rsd_integrations.cli.saving import write_whole

if TYPE_CHECKING:
    from tests.cli.conftest import Rsd


def new(file: Path) -> None:
    file.write_text("new", encoding="utf-8")


def half(file: Path, *_: Any, **__: Any) -> None:
    """As on a disk that is full."""
    file.write_bytes(b"ne")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("earlier", [["steps.html"], []])
def test_an_earlier_file_stays_until_the_new_one_is_whole(tmp_path: Path, earlier: list[str]) -> None:
    page = tmp_path / "steps.html"
    for name in earlier:
        (tmp_path / name).write_text("earlier")
    with pytest.raises(OSError, match=r"steps\.html' cannot be written: No space left on device\.$"):
        write_whole(page, half)
    assert [file.name for file in tmp_path.iterdir()] == earlier
    assert not earlier or page.read_text() == "earlier"
    write_whole(page, new)
    assert page.read_text() == "new"
    assert list(tmp_path.iterdir()) == [page]


def test_an_encoder_that_gives_no_number_of_its_error_is_quoted(tmp_path: Path) -> None:
    def broken(file: Path) -> None:
        raise OSError("encoder error -2 when writing image file")

    with pytest.raises(OSError, match=r"a\.png' cannot be written: encoder error -2 when writing"):
        write_whole(tmp_path / "a.png", broken)


def test_a_page_that_the_disk_has_no_room_for(
    rsd: Rsd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "steps.html"
    assert rsd("ask", "?", "--html", str(page)).code == 0
    before = page.read_bytes()
    monkeypatch.setattr(Path, "write_text", half)
    result = rsd("ask", "?", "--html", str(page))
    assert (result.code, page.read_bytes()) == (1, before)
    assert result.err == f"error: {str(page)!r} cannot be written: No space left on device.\n"
    assert "answer  33" in result.out


@pytest.mark.skipif(os.name == "nt", reason="modes as POSIX has them")
def test_a_private_file_stays_private(tmp_path: Path) -> None:
    page = tmp_path / "steps.html"
    page.touch(mode=0o600)
    write_whole(page, new)
    assert (page.read_text(), page.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_file_that_is_not_to_be_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "steps.html"
    page.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path != page)  # Root may write to any.
    seen: list[Path] = []
    write_whole(page, seen.append)
    assert seen == [page]


@pytest.mark.skipif(os.name == "nt", reason="links and pipes as POSIX has them")
def test_links_pipes_and_files_in_the_folders_of_others_are_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, link = tmp_path / "a.html", tmp_path / "b.html"
    file.touch()
    link.symlink_to(file)
    write_whole(link, new)
    assert link.is_symlink()
    assert file.read_text() == "new"

    read, write = os.pipe()
    write_whole(Path(f"/dev/fd/{write}"), new)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        assert pipe.read() == "new"

    there = file.stat().st_ino
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    write_whole(file, new)
    assert file.stat().st_ino == there


@pytest.mark.skipif(os.name == "nt", reason="pipes as POSIX has them")
def test_a_page_piped_to_a_reader_that_went_away_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        write_whole(Path(f"/dev/fd/{write}"), new)
    os.close(write)
