"""What is written reaches files and pipes whole, whatever their encoding lacks."""

from __future__ import annotations

import io
import sys

import pytest

from rsd_integrations.cli import main, streams
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import Generation
from tests.systems import on_system

TEXT = "x ≤ √5, café"


class Written(io.TextIOWrapper):
    """A file, or what takes itself for a terminal."""

    def __init__(self, encoding: str, errors: str = "strict", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors=errors, write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def written(self) -> bytes:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


@pytest.fixture(params=["stdout", "stderr"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def write(monkeypatch: pytest.MonkeyPatch, name: str, stream: Written) -> bytes:
    before = stream.encoding, stream.errors
    monkeypatch.setattr(sys, name, stream)
    with streams.open_streams():
        getattr(sys, name).write(TEXT)
    assert (stream.encoding, stream.errors) == before
    return stream.written


@pytest.mark.parametrize(
    ("encoding", "said"), [("utf-8", TEXT.encode()), ("cp1252", b"x \\u2264 \\u221a5, caf\xe9")]
)
def test_what_an_encoding_lacks_is_escaped(
    monkeypatch: pytest.MonkeyPatch, name: str, encoding: str, said: bytes
) -> None:
    on_system(monkeypatch, streams, "posix")
    assert write(monkeypatch, name, Written(encoding)) == said


def test_whoever_chose_how_to_write_it_is_heard(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert write(monkeypatch, name, Written("ascii", "replace", terminal=True)) == b"x ? ?5, caf?"


@pytest.mark.parametrize("errors", ["strict", "backslashreplace"])
def test_files_and_pipes_are_utf8_on_windows(monkeypatch: pytest.MonkeyPatch, name: str, errors: str) -> None:
    on_system(monkeypatch, streams, "nt")
    assert write(monkeypatch, name, Written("cp1252", errors)) == TEXT.encode()


def test_terminals_and_chosen_encodings_are_left_on_windows(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said = b"x \\u2264 \\u221a5, caf\xe9"
    on_system(monkeypatch, streams, "nt")
    assert write(monkeypatch, name, Written("cp1252", terminal=True)) == said
    on_system(monkeypatch, streams, "nt", PYTHONIOENCODING="cp1252")
    assert write(monkeypatch, name, Written("cp1252")) == said


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_answer_in_signs_is_told_on_windows(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    on_system(monkeypatch, streams, "nt")
    out = Written("cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["ask", "?", *options], open_pipeline=lambda choice: scripted_pipeline([TEXT])) == 0
    said = out.written.decode()
    assert TEXT in said
    assert not options or Generation.model_validate_json(said).text == TEXT


def test_a_stream_that_was_closed_meanwhile_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Written("utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    with streams.open_streams():
        out.close()
    assert out.closed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    text = f"{TEXT} \N{GRINNING FACE}"
    out = Written(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["ask", "?", "--json"], open_pipeline=lambda choice: scripted_pipeline([text])) == 0
    assert Generation.model_validate_json(out.written.decode(encoding)).text == text
