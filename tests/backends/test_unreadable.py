"""Sources that cannot be read: what is said, and what to do."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.shared import unreadable
from rsd_integrations.backends.shared.describe import eos_ids
from rsd_integrations.backends.shared.sources import HUB_OPTIONS, Source
from rsd_integrations.backends.torch.memory import trio_memory
from rsd_integrations.backends.torch.refusals import check_architecture
from rsd_integrations.errors import ConfigError, ModelError
from tests.tiny_models import causal, saved, tokenizer, trio

GATED = (
    "You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/meta/L.\n"
    "403 Client Error with hf_secret"
)
PRIVATE = (
    "meta/L is not a valid model identifier\nIf this is a private repository, make sure to pass a token "
    "having permission to this repo by passing `token=<your_token>`"
)
CODE = "The repository contains custom code.\nPlease pass the argument `trust_remote_code=True` to allow it."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return saved(trio(), tmp_path_factory.mktemp("models"))


@pytest.fixture
def target(folders: dict[str, str], tmp_path: Path) -> Path:
    """A copy of the target's folder, to be spoilt."""
    return Path(shutil.copytree(folders["target"], tmp_path / "target"))


def load(**given: Any) -> RSDPipeline:
    return RSDPipeline.from_pretrained(**trio() | {"device": "cpu"} | given)


def doctor(target: Any, **options: Any) -> Any:
    return trio_memory(trio() | {"target": target}, device="cpu", **options)


def refused(auto: Any, said: str, monkeypatch: pytest.MonkeyPatch, kind: type[Exception] = OSError) -> str:
    """What is said of a hub id of which transformers says this."""

    def fail(name: str, **options: Any) -> Any:
        raise kind(said)

    monkeypatch.setattr(auto, "from_pretrained", fail)
    with pytest.raises(ModelError) as caught:
        load(target="meta/L", target_kwargs={"token": "hf_secret"})
    return str(caught.value)


@pytest.mark.parametrize("auto", [AutoConfig, AutoTokenizer])
@pytest.mark.parametrize(
    ("said", "told", "helps"),
    [
        (GATED, "gated repo. Make sure to have access", "pass a token in target_kwargs"),
        (PRIVATE, "identifier If this is a private repository", "pass a token in target_kwargs"),
        (CODE, "custom code. Please pass", 'target_kwargs={"trust_remote_code": True}'),
    ],
)
def test_what_the_hub_says_is_told_and_the_option_named(
    auto: Any, said: str, told: str, helps: str, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.from_pretrained(folders["target"])
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, **options: config)
    message = refused(auto, said, monkeypatch)
    assert told in message
    assert helps in message
    assert "hf_secret" not in message


def test_long_errors_are_cut_and_empty_ones_have_a_name() -> None:
    assert unreadable.told(ValueError("long " * 500), {}) == f"ValueError: {('long ' * 500)[:500]}..."
    assert unreadable.told(ValueError(), {}) == "ValueError: ValueError()."
    assert unreadable.told(ValueError("It ends."), {"token": True}) == "ValueError: It ends."
    assert unreadable.first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert unreadable.first_line(ValueError()) == "ValueError: ValueError()"


def test_a_folder_without_a_tokenizer_names_the_option(target: Path) -> None:
    for file in target.glob("*token*"):
        file.unlink()
    with pytest.raises(
        ModelError, match=r"one from one of|one of: \(1\).*target_kwargs=\{'tokenizer'"
    ) as caught:
        load(target=target)
    assert "(3)" in str(caught.value)
    with load(target=target, target_kwargs={"tokenizer": tokenizer("ascii")}) as pipe:
        assert pipe.count_tokens("Hello")


def test_only_a_missing_file_points_to_pickles(target: Path) -> None:
    weights = target / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (whole[:100], b"version https://git-lfs.github.com/spec/v1\noid sha256:aaa\nsize 12\n"):
        weights.write_bytes(cut)
        with pytest.raises(ModelError, match=r"cannot load target=.*pointer of Git LFS") as caught:
            load(target=target)
        assert ".bin" not in caught.value.hint
    shutil.rmtree(target)
    causal("Llama", 1, "ascii").save_pretrained(target, max_shard_size="20KB")
    tokenizer("ascii").save_pretrained(target)
    first, *others = sorted(target.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(ModelError, match=rf"{first.name}.*is missing") as caught:
        load(target=target)
    assert ".bin" not in caught.value.hint
    for file in others:
        file.unlink()
    (target / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"file named model\.safetensors.*use_safetensors=False"):
        load(target=target)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "training_args.bin").touch()


def gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")


@pytest.mark.parametrize("use", [load, doctor])
@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    ("make", "told"),
    [(adapter, r"is an adapter of PEFT.*AutoPeftModel"), (gguf, r"is made for llama\.cpp.*gguf_file")],
)
def test_adapters_and_gguf_files_are_named(
    make: Callable[[Path], None], told: str, config: bool, use: Callable[..., Any], target: Path
) -> None:
    make(target)
    if not config:
        (target / "config.json").unlink()
    for given in (
        {"target": target},
        {"target": target.parent, "target_kwargs": {"subfolder": "target"}},
    ):
        with pytest.raises(ModelError, match=rf"target=.*{told}"):
            use(**given)


def test_a_gguf_file_itself_is_named(target: Path) -> None:
    gguf(target)
    with pytest.raises(ModelError, match="is made for"):
        load(target=target / "model-Q4_K_M.gguf")


def test_whole_models_may_lie_beside_adapters_and_gguf_files(target: Path) -> None:
    (target / "model-Q4_K_M.gguf").touch()
    load(target=target).close()
    (target / "adapter_model.safetensors").touch()
    (target / "adapter_config.json").write_text("{}")
    assert doctor(target=target)


def test_a_gguf_file_that_is_named_is_left_to_transformers(target: Path) -> None:
    gguf(target)
    with pytest.raises(ModelError, match="cannot load"):
        load(target=target, target_kwargs={"model_kwargs": {"gguf_file": "model-Q4_K_M.gguf"}})


@pytest.mark.parametrize(
    ("name", "found", "told"),
    [
        ("me/lora", "adapter_config.json", "is an adapter of PEFT"),
        ("me/Model-GGUF", None, "is made for llama"),
        ("me/model", None, "cannot read the config"),
    ],
)
def test_hub_ids_without_a_config(
    name: str, found: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, **options: Any) -> Any:
        raise OSError(f"{name} does not appear to have a file named config.json.")

    def find(name: str, **options: Any) -> str | None:
        assert options == {"revision": "r"}
        return found

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    monkeypatch.setattr(unreadable, "find_adapter_config_file", find)
    with pytest.raises(ModelError, match=rf"target='{name}'.*{told}|{told}.*target='{name}'"):
        load(target=name, target_kwargs={"revision": "r"})


def test_a_hub_that_does_not_answer_is_not_asked_for_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(name: str, **options: Any) -> Any:
        asked.append(name)
        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(unreadable, "find_adapter_config_file", fail)
    assert "couldn't connect" in refused(AutoConfig, "We couldn't connect to the hub.", monkeypatch)
    assert not asked
    assert not unreadable.is_adapter("me/model", {})
    assert asked


def test_a_nameless_model_needs_its_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", pytest.fail)
    model = copy.deepcopy(causal("Llama", 1, "ascii"))
    model.config._name_or_path = ""
    with pytest.raises(ModelError, match=r"target is a LlamaForCausalLM .*Pass \(model, tokenizer\)"):
        load(target=model)
    load(target=model, target_kwargs={"tokenizer": tokenizer("ascii")}).close()


def test_a_model_with_a_name_finds_its_tokenizer(folders: dict[str, str]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["target"])
    load(target=model).close()


@pytest.mark.parametrize(
    "model", [torch.nn.Linear(3, 3), torch.nn.DataParallel(torch.nn.Linear(3, 3))], ids=["module", "parallel"]
)
def test_modules_that_are_no_models(model: Any) -> None:
    for given in (model, (model, tokenizer("ascii"))):
        with pytest.raises(ModelError, match=rf"target is a {type(model).__name__} without a config"):
            load(target=given)


class Processor:
    """As processors are: they have a tokenizer, and are none."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer("ascii")


@pytest.mark.parametrize(
    ("role", "given"),
    [("draft", Processor()), ("prm", Processor()), ("target", tokenizer("ascii").backend_tokenizer)],
)
def test_tokenizers_of_another_kind(role: str, given: Any) -> None:
    with pytest.raises(
        ModelError, match=rf"tokenizer of {role} is a {type(given).__name__}.*processor\.token"
    ):
        load(**{role: (trio()[role][0], given)})


def test_a_config_that_does_not_count_its_layers(target: Path) -> None:
    config = json.loads((target / "config.json").read_text())
    source = Source.of("target", target, None)
    source.config = transformers.PretrainedConfig(**{"vocab_size": config["vocab_size"]})
    with pytest.raises(ModelError, match="how many layers it has"):
        check_architecture(source)


@pytest.mark.parametrize("ids", [2, [2], torch.tensor(2), torch.tensor([2])])
def test_ends_in_every_form(ids: Any) -> None:
    tok: PreTrainedTokenizerFast = copy.deepcopy(tokenizer("ascii"))
    tok.eos_token = "!"
    generation = transformers.GenerationConfig()
    generation.eos_token_id = ids
    assert eos_ids(generation, tok) == {2, tok.eos_token_id}


OWN = ("dtype", "device_map", "quantization_config", "attn_implementation", "device", "tokenizer")


@pytest.mark.parametrize("name", [*HUB_OPTIONS, *OWN])
@pytest.mark.parametrize("use", [load, doctor])
def test_options_in_model_kwargs_do_not_pass_by_the_checks(
    name: str, use: Callable[..., Any], folders: dict[str, str]
) -> None:
    told = rf"model_kwargs=.*{name}.*target_kwargs=\{{'{name}': \.\.\.\}}"
    with pytest.raises(ConfigError, match=told):
        use(target=folders["target"], target_kwargs={"model_kwargs": {name: "x"}})


def test_the_old_name_of_dtype_is_told(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"'torch_dtype'.*target_kwargs=\{'dtype'"):
        load(target=folders["target"], target_kwargs={"model_kwargs": {"torch_dtype": "bfloat16"}})
