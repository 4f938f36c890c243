from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations.cli.models import ModelChoice, open_pipeline
from rsd_integrations.errors import ConfigError
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket import pocket_paths


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
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
    for home in ("HOME", "USERPROFILE"):  # The latter on Windows.
        monkeypatch.setenv(home, str(tmp_path))
    (tmp_path / "target").mkdir()
    open_pipeline(ModelChoice("org/draft", "~/target", str(tmp_path), prm_format="trl", dtype="float32"))
    models = {"draft": "org/draft", "target": str(tmp_path / "target"), "prm": str(tmp_path)}
    assert calls == [("from_pretrained", (), {**models, "prm_format": "trl", "dtype": "float32"})]


def test_servers_are_asked_for_by_their_urls(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    monkeypatch.setattr(RSDPipeline, "from_vllm", lambda **given: calls.append(("from_vllm", given)))
    models = {"draft": "http://d", "target": "http://t:8000/v1", "prm": "https://p"}
    open_pipeline(ModelChoice(*models.values(), prm_format="trl", max_batch_size=9))
    assert calls == [("from_vllm", {**models, "prm_format": "trl", "max_batch_size": 9})]


def test_replicas_and_options_of_single_models(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    monkeypatch.setattr(RSDPipeline, "from_vllm", lambda **given: calls.append(("from_vllm", given)))
    choice = ModelChoice(
        "http://d",
        "http://t1:8000, http://t2:8000",
        "https://p",
        max_length=512,
        target_kwargs='{"model": "big", "source": "org/big"}',
        prm_kwargs="{}",
    )
    open_pipeline(choice)
    assert choice.is_served
    models = {"draft": "http://d", "target": ["http://t1:8000", "http://t2:8000"], "prm": "https://p"}
    options = {"target_kwargs": {"model": "big", "source": "org/big"}, "prm_kwargs": {}}
    assert calls == [("from_vllm", {**models, "max_length": 512, **options})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{'model': 'x'}", r"--draft-kwargs is no JSON: Expecting property name .*column 2.* Write it as"),
        ("[1]", r"--draft-kwargs is no JSON object but a list\. Write it as"),
        ('{"api_key": "s3cret"', r"--draft-kwargs is no JSON: .*\(char 20\)"),
        ('{api_key: "s3cret"}', r"--draft-kwargs is no JSON: "),
        ('{"api_key": "s3cret"}', r"--draft-kwargs holds a secret, .*VLLM_API_KEY"),
        ('{"headers": {"x": "s3cret"}}', "holds a secret"),
        ('{"token": "s3cret"}', "HF_TOKEN"),
    ],
)
def test_options_that_are_none_or_that_others_could_read(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        ModelChoice("a/b", "a/b", "a/b", draft_kwargs=text)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("draft", "given", "seen"),
    [
        (".", {}, {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
        (".", {"TRANSFORMERS_VERBOSITY": "info"}, {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
        ("org/draft", {}, {"TRANSFORMERS_VERBOSITY": "error"}),
    ],
)
def test_transformers_is_asked_to_be_quiet_while_it_loads(
    draft: str, given: dict[str, str], seen: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before, during = dict(os.environ), {}
    monkeypatch.setattr(RSDPipeline, "from_pretrained", lambda **models: during.update(os.environ))
    open_pipeline(ModelChoice(draft, ".", "."))
    assert during == before | seen
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_wrong_checkpoint_is_one_line() -> None:
    where = pocket_paths()
    command = [sys.executable, "-m", "rsd_integrations", "ask", "?", "--draft", str(where.prm)]
    command += ["--target", str(where.target), "--prm", str(where.prm)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the checkpoint ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("folder", ["", "./no", "/no", "~/no", "models/no/such", "..\\no"])
def test_a_path_that_is_no_folder_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"--prm .* is not a folder"):
        ModelChoice("org/draft", "org/target", folder)


@pytest.mark.parametrize("hub_id", ["org/model", "gpt2"])
def test_a_hub_id_is_left_to_the_loader(hub_id: str) -> None:
    assert not ModelChoice(hub_id, hub_id, hub_id).is_pocket
