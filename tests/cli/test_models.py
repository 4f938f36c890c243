from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rsd_integrations.cli.models import ModelChoice, open_pipeline
from rsd_integrations.errors import ConfigError
from rsd_integrations.pipeline import RSDPipeline


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("pocket", "from_pretrained"):

        def record(*models: Any, _name: str = name, **options: Any) -> None:
            made.append((_name, models, options))

        monkeypatch.setattr(RSDPipeline, name, record)
    return made


def test_only_given_options_are_passed_on(calls: list[Any]) -> None:
    open_pipeline(ModelChoice())
    open_pipeline(ModelChoice(max_batch_size=3, device="cpu"))
    assert calls == [("pocket", (), {}), ("pocket", (), {"max_batch_size": 3, "device": "cpu"})]


def test_three_models_are_loaded_in_their_roles(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "target").mkdir()
    open_pipeline(ModelChoice("org/draft", "~/target", str(tmp_path), prm_format="trl", dtype="float32"))
    models = ("org/draft", str(tmp_path / "target"), str(tmp_path))
    assert calls == [("from_pretrained", models, {"prm_format": "trl", "dtype": "float32"})]


@pytest.mark.parametrize("folder", ["", "./no", "/no", "~/no", "models/no/such", "..\\no"])
def test_a_path_that_is_no_folder_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"--prm .* is not a folder"):
        ModelChoice("org/draft", "org/target", folder)


@pytest.mark.parametrize("hub_id", ["org/model", "gpt2"])
def test_a_hub_id_is_left_to_the_loader(hub_id: str) -> None:
    assert not ModelChoice(hub_id, hub_id, hub_id).is_pocket
