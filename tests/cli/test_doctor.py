"""``rsd doctor``: what it finds, what it misses, and memory told before a weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch import memory
from rsd_integrations.backends.torch.memory import model_memory
from rsd_integrations.cli import doctor, main
from rsd_integrations.pocket import pocket_paths
from tests.tiny_models import causal, token_classifier, tokenizer


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def test_a_whole_installation(capsys: Any) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "python",
        "torch",
        "transformers",
        "langchain-core",
        "pocket trio",
        "draft",
        "4.02 M",
        "needed",
    ):
        assert part in shown
    assert "MISSING" not in shown


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found, gone = doctor._version, ("langchain-core", "llguidance")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in gone else found(name))
    assert main(["doctor"]) == 1  # llguidance is required.
    shown = capsys.readouterr().out
    assert "missing; for ChatRSD: pip install 'rsd-integrations[langchain]'" in shown
    assert "MISSING" in shown


def test_a_missing_extra_alone_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "matplotlib" else found(name))
    assert main(["doctor"]) == 0
    assert "rsd-integrations[report]" in capsys.readouterr().out


@pytest.mark.parametrize("found", [None, "/usr/bin/clang++"])
def test_a_compiler_is_looked_for(found: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: found if name == "clang++" else None)
    assert main(["doctor"]) == 0
    said = "/usr/bin/clang++, for compile=True" if found else "for compile=True: install g++ or clang++"
    assert said in capsys.readouterr().out


def test_missing_weights(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def gone() -> None:
        raise FileNotFoundError("the pocket weights are missing")

    monkeypatch.setattr("rsd_integrations.pocket.pocket_paths", gone)
    assert main(["doctor"]) == 1
    assert "the pocket weights are missing" in capsys.readouterr().out


def test_numbers_are_those_of_the_loaded_models() -> None:
    """Weights and caches to the byte."""
    folders = vars(pocket_paths())
    with RSDPipeline.pocket(max_batch_size=3, max_length=200) as pipe:
        pipe.generate("Ava has 12 marbles. She buys 9 more. How many has she?", weighting="constant")
        for role, folder in folders.items():
            told = model_memory(role, folder, device="cpu", max_length=200)
            model = getattr(pipe.backend, role)
            head = 0 if role != "prm" else model.info.parameters - told.parameters
            assert (told.parameters + head, head < 200) == (model.info.parameters, True)
            assert told.window == model.info.window
            if model.runner.cache.bytes:
                assert told.cache(3) == model.runner.cache.bytes


@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma3Text", "Phi3", "GPT2", "Llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_models(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = causal(architecture, 0, "ascii").to(dtype)
    model.save_pretrained(tmp_path)
    tokenizer("ascii").save_pretrained(tmp_path)
    told = model_memory("target", str(tmp_path))
    assert told.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert told.weights == told.parameters * dtype.itemsize
    assert told.dtype == str(dtype).removeprefix("torch.")
    assert model_memory("target", str(tmp_path), dtype="float16").weights == 2 * told.parameters
    model.to(torch.float32)


def test_what_does_not_fit_says_what_would(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    folders = {}
    for role, model in (
        ("draft", causal("Llama", 0)),
        ("target", causal("Llama", 1)),
        ("prm", token_classifier(0)),
    ):
        folders[role] = str(tmp_path / role)
        model.save_pretrained(folders[role])
        tokenizer().save_pretrained(folders[role])
    needs = [model_memory(role, folder, max_length=64) for role, folder in folders.items()]
    weights, each = sum(need.weights for need in needs), sum(need.cache(1) for need in needs)
    arguments = [part for role, folder in folders.items() for part in (f"--{role}", folder)]
    command = ["doctor", *arguments, "--max-length", "64", "--max-batch-size", "8"]
    for free, code, message in (
        (weights + 8 * each, 0, "fits"),
        (weights + 8 * each - 1, 1, "max_batch_size=7 would fit"),
        (weights - 1, 1, "no request would"),
    ):
        monkeypatch.setattr(memory, "device_memory", lambda device, free=free: free)
        assert main(command) == code
        assert message in capsys.readouterr().out


def test_a_folder_that_is_not_there(capsys: Any) -> None:
    assert main(["doctor", "--draft", "/gone", "--target", "/gone", "--prm", "/gone"]) == 2
    assert "--draft '/gone' is not a folder" in capsys.readouterr().err
