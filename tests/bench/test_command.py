"""``rsd bench accuracy`` from the command line, with scripted models."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rsd_integrations.bench.environment import hardware, made, weights_sha256
from rsd_integrations.bench.results import AccuracyReport
from rsd_integrations.cli import main
from rsd_integrations.cli.models import ModelChoice
from rsd_integrations.pocket.task import held_out
from tests.bench.scripts import trio

WRONG = range(0, 30, 3)


def run(*arguments: str, problems: int = 30, seed: int = 0, **script: Any) -> tuple[int, list[ModelChoice]]:
    choices: list[ModelChoice] = []

    def opener(choice: ModelChoice) -> object:
        choices.append(choice)
        return trio(held_out(problems, seed=seed), **{"wrong": WRONG, **script})

    command = ["bench", "accuracy", "--problems", str(problems), "--seed", str(seed), *arguments]
    return main(command, open_pipeline=opener), choices  # type: ignore[arg-type]


@pytest.mark.usefixtures("painted")
def test_results_are_saved_with_all_that_repeats_them(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    options = ["--thresholds", "0.5,0.9", "--out", str(out), "--max-batch-size", "4", "--device", "cpu"]
    code, choices = run(*options, seed=5)
    assert code == 0
    assert choices == [ModelChoice(max_batch_size=4, device="cpu")]
    assert sorted(file.name for file in out.iterdir()) == ["accuracy.json", "accuracy.png", "accuracy.svg"]
    report = AccuracyReport.model_validate_json((out / "accuracy.json").read_bytes())
    assert [point.threshold for point in report.points] == [0.0, 0.5, 0.7, 0.9, 1.1]
    assert report.recommended_threshold == 0.7
    assert [point.threshold for point in report.points if point.recommended] == [0.7]
    assert report.command.startswith("rsd bench accuracy --problems 30 --seed 5 --thresholds 0.5,0.9")
    assert report.settings["problems"] == 30
    assert report.settings["seed"] == 5
    assert {"rsd_integrations", "python"} <= set(report.versions)
    assert {"processor", "cores"} <= set(report.hardware)
    assert len(report.checks) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_in_another_encoding_does_not_lose_the_work(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"\xca\xfd")
    assert run("--thresholds", "0.5", "--out", str(out))[0] == 0
    assert b"\xef\xbf\xbd" in (out / "accuracy.json").read_bytes()
    assert (out / "accuracy.svg").is_file()


def test_the_table_shows_every_point(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run("--thresholds", "0.5")[0] == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert any(line.split()[:4] == ["draft", "only", "66.7", "[48.8,80.8]"] for line in lines)
    assert any(line.split()[:4] == ["RSD", "0.7", "*", "100.0"] for line in lines)
    assert any(line.split()[:3] == ["target", "only", "100.0"] for line in lines)
    assert "PRM AUC 1.00 [" in captured.out
    assert "what the target alone spent on its own answers" in captured.out
    assert "\x1b" not in captured.out


@pytest.mark.parametrize(
    ("script", "flags", "code"),
    [({}, ["--check"], 0), ({"blind": [0, 3]}, ["--check"], 1), ({"blind": [0, 3]}, [], 0)],
)
def test_check_fails_a_run_that_misses_a_number(
    capsys: pytest.CaptureFixture[str], script: dict[str, Any], flags: list[str], code: int
) -> None:
    assert run("--thresholds", "0.7", *flags, **script)[0] == code
    captured = capsys.readouterr()
    assert ("MISSED" in captured.out) == bool(script)
    assert captured.err.count("error") == 0


def test_a_number_that_there_is_not_is_missed_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A draft that is never wrong leaves the PRM nothing to tell apart: its AUC is none, not 0."""
    options = ["--thresholds", "0.5", "--out", str(tmp_path), "--check"]
    assert run(*options, problems=6, wrong=[])[0] == 1
    report = AccuracyReport.model_validate_json((tmp_path / "accuracy.json").read_bytes())
    (auc,) = [check for check in report.checks if check.name == "PRM AUC"]
    assert (report.prm.auc, auc.measured, auc.passed) == (None, None, False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "PRM AUC  " in line]
    assert line.split() == ["PRM", "AUC", ">=", "0.97", "none", "MISSED"]


def test_a_title_is_not_folded_to_its_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run("--thresholds", "0.7", problems=1, wrong=[])[0] == 0
    assert "accuracy % by number of events" in capsys.readouterr().out.splitlines()


def test_a_place_that_cannot_hold_results_is_told_before_any_model_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    code, choices = run("--out", str(file))
    assert (code, choices) == (2, [])
    assert "is a file. Name a folder." in capsys.readouterr().err


def test_without_matplotlib_out_is_told_before_any_model_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, choices = run("--out", str(tmp_path))
    assert (code, choices) == (2, [])
    assert 'pip install "rsd-integrations[report]"' in capsys.readouterr().err


def test_weights_are_named_by_their_hash(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    assert weights_sha256({"draft": tmp_path, "prm": tmp_path / "none"}) == {
        "draft/model.safetensors": hashlib.sha256(b"weights").hexdigest()
    }


def test_the_environment_is_told_without_what_is_not_there() -> None:
    versions = made("rsd", "pydantic", "no-such-package")["versions"]
    assert {"rsd_integrations", "python", "torch", "transformers", "pydantic"} == set(versions)
    assert int(hardware()["cores"]) >= 1


def test_it_is_told_whether_torch_may_take_cudnns_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the speed of ``generate`` on a GPU depends."""
    name = "TORCH_CUDNN_SDPA_DEPRIORITIZED"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setenv(name, "1")
    assert hardware()[name] == "1"
    monkeypatch.delenv(name)
    assert name not in hardware()
