"""Bars are for who watches: logs of services have none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from transformers.utils import logging

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.shared.bars import no_progress_bars
from rsd_integrations.pocket import pocket_paths


@pytest.fixture(autouse=True)
def bars() -> Iterator[None]:
    """Tests have none else."""
    logging.enable_progress_bar()
    yield
    logging.disable_progress_bar()


def on(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "a terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    elif place == "a notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    elif place == "no console":
        monkeypatch.setattr(sys, "stderr", None)


@pytest.mark.parametrize(
    ("place", "expected"),
    [("a log", False), ("no console", False), ("a terminal", True), ("a notebook", True)],
)
def test_they_are_shown_where_somebody_looks(
    place: str, expected: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    on(place, monkeypatch)
    with no_progress_bars():
        assert logging.is_progress_bar_enabled() is expected
    with no_progress_bars(anywhere=True):
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()


def test_whoever_turned_them_off_finds_them_so() -> None:
    logging.disable_progress_bar()
    with no_progress_bars():
        pass
    assert not logging.is_progress_bar_enabled()


@pytest.mark.parametrize(("place", "expected"), [("a log", False), ("a terminal", True)])
def test_models_are_loaded_by_that_rule(
    place: str, expected: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(place, monkeypatch)
    RSDPipeline.from_pretrained(**vars(pocket_paths()), device="cpu").close()
    assert ("Loading weights" in capsys.readouterr().err) is expected
