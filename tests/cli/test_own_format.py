"""``--prm-format module:Class``: a PRM format of one's own, where the user says so and nowhere else."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations.cli import main
from rsd_integrations.cli.models import ModelChoice, open_pipeline
from rsd_integrations.errors import ConfigError
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket import pocket_paths
from rsd_integrations.pocket.task import held_out
from rsd_integrations.types import Generation
from tests.cli.conftest import Rsd

MODULE = "rsd_test_format"
NAME = f"{MODULE}:Mine"
SOURCE = """
from rsd_integrations.errors import ConfigError
from rsd_integrations.prm.trl import TRLFormat

class Mine(TRLFormat):
    name = "mine"

    def reward(self, outputs):
        return 0.625

class Picky(Mine):
    def __init__(self, tokenizer, options):
        raise ConfigError("Picky was asked", hint="No more.")

thing = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / f"{MODULE}.py"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop(MODULE, None)


def test_it_is_used_as_its_class_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(RSDPipeline, "pocket", lambda **options: made.append(options))
    before = list(sys.path)
    open_pipeline(ModelChoice(prm_format=NAME))
    assert sys.path == before
    assert made == [{"prm_format": sys.modules[MODULE].Mine}]


def test_ask_scores_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    question = held_out(1, events=(3,))[0].question
    assert main(["ask", question, "--prm-format", NAME, "--threshold", "0.5", "--json"]) == 0
    generation = Generation.model_validate_json(capsys.readouterr().out)
    assert {step.reward for step in generation.steps} == {0.625}


def test_doctor_asks_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--prm-format", NAME]) == 0
    paths = pocket_paths()
    models = ["--draft", str(paths.draft), "--target", str(paths.target), "--prm", str(_prm_saying())]
    assert main(["doctor", *models, "--prm-format", f"{MODULE}:Picky"]) == 2
    assert "Picky was asked" in capsys.readouterr().err


def _prm_saying(**word: Any) -> Path:
    """The pocket PRM, whose config says something else of its format, or nothing."""
    folder = Path("prm").absolute()
    shutil.copytree(pocket_paths().prm, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["rsd_prm"]
    (folder / "config.json").write_text(json.dumps(config | word), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:Mine", r"^prm_format='no_such_module:Mine' cannot be loaded: No module named"),
        (f"{MODULE}:Other", "cannot be loaded: module 'rsd_test_format' has no attribute 'Other'"),
        (f"{MODULE}:thing", "is no PRM format but 3"),
        (f"{MODULE}:TRLFormat.name", "cannot be loaded"),
        ("json:loads", r"is no PRM format but <function loads .* subclass of rsd_integrations.PRMFormat"),
        ("json:JSONDecoder", "is no PRM format but <class"),
        (":Mine", "cannot be loaded"),
        (".here:Mine", "cannot be loaded"),
        (f"{MODULE}:", "cannot be loaded"),
    ],
)
def test_what_is_no_format_is_refused_at_once(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ModelChoice(prm_format=name)


def test_a_model_that_names_a_module_runs_no_code(rsd: Rsd) -> None:
    prm = _prm_saying(rsd_prm={"format": NAME})
    paths = pocket_paths()
    result = rsd("doctor", "--draft", str(paths.draft), "--target", str(paths.target), "--prm", str(prm))
    assert result.code == 2
    assert f"there is no PRM format '{NAME}'" in result.err
    assert MODULE not in sys.modules


def test_tuning_does_not_go_on_with_rewards_of_an_earlier_version(rsd: Rsd, module: Path) -> None:
    problem = held_out(1)[0]
    line = json.dumps({"question": problem.question, "answer": str(problem.answer)})
    Path("questions.jsonl").write_text(line, encoding="utf-8")
    command = ["tune", "questions.jsonl", "--thresholds", "0.5", "--out", "out", "--prm-format", NAME]
    assert rsd(*command).code == 0
    assert "going on from" in rsd(*command).err
    module.write_text(SOURCE.replace("0.625", "0.5"), encoding="utf-8")
    assert "answers of other models, questions or settings" in rsd(*command).err
