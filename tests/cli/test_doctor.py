"""``rsd doctor``: what it finds, what it misses, and memory told before a weight is read."""

from __future__ import annotations

import copy
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import Qwen3NextConfig, RwkvConfig, xLSTMConfig

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.shared.sources import Source
from rsd_integrations.backends.torch import free_memory, memory
from rsd_integrations.backends.torch.free_memory import device_memory
from rsd_integrations.backends.torch.refusals import check_weights
from rsd_integrations.cli import doctor, main
from rsd_integrations.pocket import pocket_paths
from tests.tiny_models import causal, memory_of, saved, tokenizer, trio


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
        "PRM format: trl, default threshold 0.95",
    ):
        assert part in shown
    assert "MISSING" not in shown


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found, gone = doctor.version_of, ("langchain-core", "llguidance")
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in gone else found(name))
    assert main(["doctor"]) == 1  # llguidance is required.
    shown = capsys.readouterr().out
    assert 'missing; for ChatRSD: pip install "rsd-integrations[langchain]"' in shown
    assert "MISSING" in shown


def test_a_missing_extra_alone_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "matplotlib" else found(name))
    assert main(["doctor"]) == 0
    assert "rsd-integrations[report]" in capsys.readouterr().out


@pytest.mark.parametrize(("package", "extra"), [("langchain-core", "langchain"), ("jinja2", "")])
def test_versions_that_do_not_do(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A failure where it is needed whatever one does."""
    monkeypatch.setattr(doctor, "misfits", lambda one: {package: ">=1.6"} if one == extra else {})
    assert main(["doctor"]) == (0 if extra else 1)
    shown = " ".join(capsys.readouterr().out.split())
    asked = f'"rsd-integrations[{extra}]"' if extra else "rsd-integrations"
    assert f">=1.6 is needed: pip install -U {asked}" in shown


def test_parts_of_an_extra_that_do_not_do(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Which the extra's import would refuse."""
    wrong = {"llama-index-workflows": ">=99"}
    monkeypatch.setattr(doctor, "misfits", lambda one: wrong if one == "llamaindex" else {})
    assert main(["doctor"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"llama-index-workflows \S+ >=99 is needed", shown)


@pytest.mark.parametrize("found", [None, "/usr/bin/clang++"])
def test_a_compiler_is_looked_for(found: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: found if name == "clang++" else None)
    assert main(["doctor"]) == 0
    said = "/usr/bin/clang++, for compile=True" if found else "for compile=True: install g++ or clang++"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("count", "ending"), [(1, ""), (2, "s")])
def test_one_is_not_told_as_several(
    count: int, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert main(["doctor", "--max-batch-size", str(count)]) == 0
    shown = capsys.readouterr().out
    assert f"no GPU, {count} thread{ending} " in shown
    assert f"what is kept of {count} request{ending} at" in shown


def test_names_and_paths_are_whole_in_a_narrow_terminal(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = tmp_path / "A-Very-Long-Name-Of-A-Model-32B-Instruct"
    shutil.copytree(folders["draft"], long)
    assert doctor_of({**folders, "draft": str(long)}) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert " llama-index-core " in shown
    # The folded parts of a path stand in the second column, those of a name in its own.
    parts = "".join(line[19:].strip().removesuffix("ok").strip() for line in shown.splitlines())
    assert str(pocket_paths().draft.parent) in parts
    assert "A-Very-Long-Name-Of-A-Mode " in shown and " l-32B-Instruct " in shown


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
            told = memory_of(role, folder, max_length=200)
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
    told = memory_of("target", str(tmp_path))
    assert told.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert told.weights == told.parameters * dtype.itemsize
    assert told.dtype == str(dtype).removeprefix("torch.")
    assert memory_of("target", str(tmp_path), dtype="float16").weights == 2 * told.parameters
    model.to(torch.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models that load."""
    return saved(trio("Llama"), tmp_path_factory.mktemp("models"))


def doctor_of(folders: dict[str, str], *options: str) -> int:
    return main(["doctor", *[part for role in folders for part in (f"--{role}", folders[role])], *options])


def test_a_device_has_one_verdict_however_it_is_spelled(folders: dict[str, str], capsys: Any) -> None:
    assert doctor_of(folders, "--device", "cpu", "--draft-kwargs", '{"device": "cpu:0"}') == 0
    assert capsys.readouterr().out.count("needed before activations") == 1


def test_the_prms_format_is_told(folders: dict[str, str], capsys: Any) -> None:
    for options, said in (
        ((), "trl, default threshold 0.5\n"),
        (("--prm-format", "judge"), "judge, default threshold 0.7\n"),
        (("--prm-format", "sequence"), "sequence, default threshold 0.7 (arbitrary: rsd tune measures)\n"),
    ):
        assert doctor_of(folders, *options) == 0
        assert f"\nPRM format: {said}" in capsys.readouterr().out


def test_models_that_are_spread_get_no_verdict(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """How accelerate would place them is not known here."""
    monkeypatch.setattr(free_memory, "_machine", lambda: 1)
    assert doctor_of(folders, *(f'--{role}-kwargs={{"device_map": "auto"}}' for role in folders)) == 0
    shown = capsys.readouterr().out
    assert "device_map: " in shown and "FIT" not in shown
    monkeypatch.setattr(free_memory, "_machine", lambda: 1 << 40)
    assert doctor_of(folders, "--target-kwargs", '{"device_map": "auto"}') == 0
    shown = capsys.readouterr().out
    assert "free: no verdict, because a device_map may put more there" in shown and "free: fits" not in shown


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_does_not_fit_says_what_would(
    device: str, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    needs = [memory_of(role, folder, max_length=64) for role, folder in folders.items()]  # type: ignore[arg-type]
    weights, each = sum(need.weights or 0 for need in needs), sum(need.cache(1) for need in needs)
    monkeypatch.setattr(memory, "check_placement", lambda *given: None)  # As where there is a GPU.
    for free, code, message in (
        (weights + 8 * each, 0, "free: fits"),
        (weights + 8 * each - 1, 1, "max_batch_size=7 would fit"),
        (weights - 1, 1, "no request would"),
    ):
        monkeypatch.setattr(free_memory, "device_memory", lambda name, free=free: free)
        assert doctor_of(folders, "--device", device, "--max-length", "64", "--max-batch-size", "8") == code
        shown = capsys.readouterr().out
        assert message in shown
        assert f"{device}: " in shown and "needed before activations" in shown


def test_each_device_has_to_hold_its_own(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One that does not spoils all, wherever it stands."""
    free = {"cuda:0": 1 << 30, "cuda:1": 1 << 20}
    monkeypatch.setattr(free_memory, "device_memory", free.get)
    where = {"draft": "cuda:0", "target": "cuda:1", "prm": "cuda:0"}
    models = [
        replace(memory_of(role, folder), device=where[role], weights=1 << 22)  # type: ignore[arg-type]
        for role, folder in vars(pocket_paths()).items()
    ]
    assert doctor._print_memory(models, 1, Console()) is False
    assert doctor._print_memory(models[::-1], 1, Console()) is False
    shown = capsys.readouterr().out
    assert shown.count("free: fits") == shown.count("free: DOES NOT FIT") == 2
    free["cuda:1"] = 1 << 30
    assert doctor._print_memory(models, 1, Console()) is True


def test_memory_is_told_for_the_place_and_dtype_asked_for(folders: dict[str, str], capsys: Any) -> None:
    assert doctor_of(folders, "--device", "meta", "--dtype", "bfloat16") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    told = [(row[0], *row[2:4]) for row in rows if "meta" in row]
    assert told == [(role, "meta", "bfloat16") for role in ("draft", "target", "PRM")]
    assert ["meta:"] in [row[:1] for row in rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "nonsense"], "--dtype 'nonsense' is no dtype"),
        (["--dtype", "int8"], "--dtype 'int8' is no dtype"),
        (["--device", "banana"], "--device 'banana' is no device"),
        (["--device", "cuda:99"], "--device 'cuda:99' is not available here"),
        (["--prm-format", "nonsense"], "there is no PRM format 'nonsense'"),
    ],
)
def test_what_loading_would_refuse(options: list[str], message: str, capsys: Any) -> None:
    assert main(["doctor", *options]) == 2
    assert message in capsys.readouterr().err


def _config(folder: Path, config: Any) -> str:
    """A folder as of a model with such a config."""
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder)


@pytest.mark.parametrize("config", [RwkvConfig(num_hidden_layers=2), xLSTMConfig(num_hidden_layers=2)])
def test_a_model_that_cannot_be_rolled_back(
    config: Any, folders: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    assert doctor_of({**folders, "target": _config(tmp_path, config)}) == 1
    assert "its cache cannot be rolled back when a step is rejected" in capsys.readouterr().err


def test_a_model_with_recurrent_layers(folders: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    """Of the states 3 layers of 32 x 128 x 128 are of single precision, the convolutions' inputs of half."""
    few = {"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 500}
    config = Qwen3NextConfig(dtype="bfloat16", **few)
    folder = _config(tmp_path, config)
    assert doctor_of({**folders, "target": folder}) == 0
    memory = memory_of("target", folder)
    assert memory.states == 8 * 3 * (32 * 128 * 128 * 4 + 4 * (2 * 16 * 128 + 32 * 128) * 2)
    assert memory.cache_per_token == 1 * 2 * config.num_key_value_heads * config.head_dim * 2
    broken = _config(tmp_path, Qwen3NextConfig(**few | {"num_experts": 1}))
    assert doctor_of({**folders, "target": broken}) == 1
    assert "does not run on a single token" in capsys.readouterr().err


def test_a_folder_without_weights(folders: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    empty = _config(tmp_path, causal("Llama", 0).config)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert doctor_of({**folders, "draft": empty}) == 1
    said = capsys.readouterr().err
    assert f"the folder --draft {empty!r} has no weights (*.safetensors)" in said
    assert "use_safetensors=False in --draft-kwargs" in said
    told = memory_of("draft", empty, {"use_safetensors": False})
    check_weights(Source.of("draft", empty, {"use_safetensors": False}))
    assert told.weights


def test_two_writers_of_two_kinds(folders: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    causal("Llama", 0).save_pretrained(tmp_path)
    plain = copy.deepcopy(tokenizer())
    plain.chat_template = None if plain.chat_template else "{{ messages }}"
    plain.save_pretrained(tmp_path)
    assert doctor_of({**folders, "draft": str(tmp_path)}) == 1
    assert "has no chat template" in capsys.readouterr().err


def _gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


BNB = {"quant_method": "bitsandbytes"}


@pytest.mark.parametrize(
    ("told", "bits"),
    [
        (BNB | {"load_in_4bit": True}, 4.5),
        (BNB | {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4 + 8 / 64 + 32 / 64 / 256),
        (BNB | {"load_in_8bit": True}, 8),
        ({"load_in_4bit": True}, 4.5),
        ({"load_in_8bit": True}, 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1}, 3),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, 4 + 20 / 64),
        ({"quant_method": "fp8"}, 8),
    ],
)
def test_quantized_weights_are_counted_as_such(
    told: dict[str, Any], bits: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpu(monkeypatch, (8, 9))
    model = causal("Llama", 0)
    config = copy.deepcopy(model.config)
    config.dtype = "bfloat16"
    config.quantization_config = told
    counted = memory_of("target", _config(tmp_path, config))
    linear = sum(
        layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    )
    rest = sum(parameter.numel() for parameter in model.parameters()) - linear
    assert counted.quantization == told.get("quant_method", "bitsandbytes")
    assert counted.weights == round(linear * bits / 8) + 2 * rest
    config.quantization_config = told | {"modules_to_not_convert": ["mlp"]}
    skipped = sum(
        layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and "mlp" in name
    )
    counted = memory_of("target", _config(tmp_path, config))
    assert counted.weights == round((linear - skipped) * bits / 8) + 2 * (rest + skipped)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3Moe"])
@pytest.mark.parametrize(
    ("told", "capability"), [({}, None), ({}, (8, 6)), ({"dequantize": True}, (9, 0)), ({}, (9, 0))]
)
def test_fp8_that_is_made_whole_is_counted_whole(
    told: dict[str, Any],
    capability: tuple[int, int] | None,
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _gpu(monkeypatch, capability)
    model = causal(architecture, 0)
    config = copy.deepcopy(model.config)
    config.dtype = "bfloat16"
    config.quantization_config = {"quant_method": "fp8"} | told
    counted = memory_of("target", _config(tmp_path, config))
    whole = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert (counted.weights == whole) == (told != {} or capability != (9, 0))


def test_unknown_quantization_gets_no_verdict(folders: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    config = copy.deepcopy(causal("Llama", 0).config)
    config.quantization_config = {"quant_method": "new-and-small", "bits": 2}
    assert doctor_of({**folders, "target": _config(tmp_path, config)}) == 0
    shown = capsys.readouterr().out
    assert "not counted" in shown
    assert "no verdict, because quantized weights (new-and-small) are not counted here" in shown
    assert "fits" not in shown


def test_free_memory_of_a_machine_and_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    monkeypatch.setattr(free_memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(free_memory, "_CGROUP", cgroup)
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:      50 kB\n")
    assert device_memory("cpu") == 50 * 1024
    cgroup.mkdir()
    for name, text in (("max", "40000"), ("current", "30000"), ("stat", "anon 1\ninactive_file 5000\n")):
        (cgroup / f"memory.{name}").write_text(text)
    assert device_memory("cpu") == 15000
    (cgroup / "memory.max").write_text("max\n")
    assert device_memory("cpu") == 50 * 1024
    assert device_memory("meta") is None


def test_a_folder_that_is_not_there(capsys: Any) -> None:
    assert main(["doctor", "--draft", "/gone", "--target", "/gone", "--prm", "/gone"]) == 2
    assert "--draft '/gone' is not a folder" in capsys.readouterr().err
