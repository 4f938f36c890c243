"""The real trio behind the commands: few problems, no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_integrations.bench.results import AccuracyReport
from rsd_integrations.cli import main
from rsd_integrations.pocket.task import check_answer, held_out
from rsd_integrations.types import Generation


def test_ask_answers_a_held_out_problem_as_the_target_does(capsys: pytest.CaptureFixture[str]) -> None:
    problem = held_out(1, events=(3,))[0]
    assert main(["ask", problem.question, "--threshold", "1.1", "--json"]) == 0
    captured = capsys.readouterr()
    generation = Generation.model_validate_json(captured.out)
    assert check_answer(problem, generation.text)
    assert generation.usage.draft.generated == 0
    assert captured.err == ""


def test_ask_shows_steps_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    problem = held_out(2, events=(4,))[1]
    assert main(["ask", problem.question]) == 0
    captured = capsys.readouterr()
    assert sum(line.startswith(("✓ kept", "→ target")) for line in captured.out.splitlines()) >= 4
    assert "of the target alone (paper accounting)" in captured.out
    assert captured.err == ""


def test_bench_runs_on_the_real_trio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "accuracy", "--problems", "6", "--thresholds", "0.9", "--out", str(tmp_path)]
    assert main(arguments) == 0
    report = AccuracyReport.model_validate_json((tmp_path / "accuracy.json").read_text(encoding="utf-8"))
    assert len(report.weights_sha256) == 3
    assert report.points[-1].flops_share.paper == 1.0
    assert report.points[0].flops_share.paper < 1.0
    assert {length.events for length in report.points[0].by_length} == {3, 4, 5, 6, 7, 8}
    assert "target only" in capsys.readouterr().out
