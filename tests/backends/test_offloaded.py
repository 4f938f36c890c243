"""Models some of whose weights are brought into memory only while they are used."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations import RSDPipeline
from rsd_integrations.errors import ModelError
from tests.tiny_models import saved, tokenizer, trio

PLACES = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return saved(trio(), tmp_path_factory.mktemp("models"))


def rewards(folders: dict[str, str], device_map: Any, off: Path) -> list[float]:
    options = {"device_map": device_map, "offload_folder": str(off)}
    with RSDPipeline.from_pretrained(**folders, device="cpu", prm_kwargs=options) as pipe:
        return list(pipe.score("Ava has 12 marbles.", ["a.", "b"]))


def placed(**elsewhere: str) -> dict[str, str]:
    return {f"model.{place}": "cpu" for place in PLACES} | {"score": "cpu"} | elsewhere


@pytest.mark.parametrize("part", ["score", "model.layers.1"])
def test_a_part_on_disk_gives_the_same_rewards(folders: dict[str, str], part: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    plain = rewards(folders, {"": "cpu"}, tmp_path)
    assert rewards(folders, placed(**{part: "disk"}), tmp_path) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("role", ["target", "prm"])
def test_token_embeddings_on_disk_are_named(folders: dict[str, str], role: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    head = {"lm_head" if role == "target" else "score": "cpu"}
    places = {f"model.{place}": "cpu" for place in PLACES} | head | {"model.embed_tokens": "disk"}
    options = {"device_map": places, "offload_folder": str(tmp_path)}
    with pytest.raises(ModelError, match=r"token embeddings of .* are not in memory"):
        RSDPipeline.from_pretrained(**folders, device="cpu", **{f"{role}_kwargs": options})


@pytest.mark.parametrize("role", ["target", "prm"])
def test_a_model_without_weights_is_named(role: str) -> None:
    given = trio()
    given[role] = (copy.deepcopy(given[role][0]).to("meta"), tokenizer("ascii"))
    with pytest.raises(ModelError, match=r"token embeddings of .* are not in memory"):
        RSDPipeline.from_pretrained(**given, device="cpu")


def test_meta_is_no_device_to_run_on(folders: dict[str, str]) -> None:
    for options in ({"device": "meta"}, {"target_kwargs": {"device": "meta"}}):
        with pytest.raises(ModelError, match=r"token embeddings of .* are not in memory"):
            RSDPipeline.from_pretrained(**folders, **options)  # type: ignore[arg-type]
