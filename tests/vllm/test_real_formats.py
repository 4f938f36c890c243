"""PRM formats and forced calls over real vLLM servers of random models: run by hand as ``test_real`` is."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rsd_integrations import Output, RSDPipeline
from rsd_integrations.backends.torch.heads import headed_class
from tests.tiny_models import config, tokenizer
from tests.vllm.real import serve
from tests.vllm.test_answers import told

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("RSD_VLLM_PYTHON" not in os.environ, reason="RSD_VLLM_PYTHON names no Python"),
]

SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": ["x\n\ny", "z"]}, "b": {"type": "boolean"}},
            "required": ["a", "b"],
        },
    },
}


def _save(folder: Path, kind: Any, architecture: str, tok: Any, **more: Any) -> Path:
    made = config(architecture, seed_vocabulary=len(tok), **SIZES, **more)
    torch.manual_seed(3)
    model = (kind(made) if isinstance(kind, type) else kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("random")
    tags = copy.deepcopy(tokenizer("ascii"))
    tags.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    made = config("Qwen2", seed_vocabulary=len(tags), **SIZES)
    judge = _save(root / "prm", headed_class("process_reward", made), "Qwen2", tags)
    saved = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(
        json.dumps(saved | {"architectures": ["Qwen2ForProcessRewardModel"], "num_labels": 2})
    )
    writer = _save(root / "writer", transformers.LlamaForCausalLM, "Llama", tokenizer("tools"))
    return {"prm": judge, "writer": writer}


@pytest.fixture(scope="module")
def urls(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    tag = json.loads((folders["prm"] / "tokenizer.json").read_text())["added_tokens"]
    (tag,) = [token["id"] for token in tag if token["content"] == "<extra_0>"]
    pools = [
        "--runner",
        "pooling",
        "--pooler-config",
        json.dumps({"step_tag_id": tag, "tok_pooling_type": "STEP"}),
    ]
    guided = ["--structured-outputs-config", '{"backend": "guidance"}']
    served = [(folders["writer"], guided), (folders["prm"], pools)]
    with serve(os.environ["RSD_VLLM_PYTHON"], served, tmp_path_factory.mktemp("logs")) as found:
        yield dict(zip(("writer", "prm"), found, strict=True))


@pytest.mark.parametrize("form", ["qwen", "judge"])
def test_rewards_are_equal(folders: dict[str, Path], urls: dict[str, str], form: str) -> None:
    judge = "prm" if form == "qwen" else "writer"
    fields: dict[str, Any] = {"max_tokens": 60, "step_delimiter": ["e", " "], "weighting": "clip", "seed": 1}
    writer = str(folders["writer"])
    with (
        RSDPipeline.from_vllm(urls["writer"], urls["writer"], urls[judge], prm_format=form) as over,
        RSDPipeline.from_pretrained(
            writer, writer, str(folders[judge]), prm_format=form, device="cpu"
        ) as within,
    ):
        for question in ("What is it?", "And so on, and on."):
            mine, theirs = (pipe.generate(question, **fields) for pipe in (over, within))
            assert told(mine) == told(theirs)
            rewards = [step.reward for step in theirs.steps]
            assert len(set(rewards)) > 1
            assert [step.reward for step in mine.steps] == pytest.approx(rewards, abs=1e-3)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("step", [512, 9])
def test_forced_calls_are_equal(
    folders: dict[str, Path], urls: dict[str, str], parallel: bool, step: int
) -> None:
    output = Output.of(tools=[LOOK], tool_choice="required", parallel_tool_calls=parallel)
    fields: dict[str, Any] = {"output": output, "max_tokens": 120, "threshold": 0.0, "max_step_tokens": step}
    writer = str(folders["writer"])
    with (
        RSDPipeline.from_vllm(urls["writer"], urls["writer"], urls["prm"]) as over,
        RSDPipeline.from_pretrained(writer, writer, str(folders["prm"]), device="cpu") as within,
    ):
        mine, theirs = (pipe.generate("Look!", **fields) for pipe in (over, within))
    assert told(mine) == told(theirs)
    calls = [[(call.name, call.arguments) for call in one.tool_calls] for one in (mine, theirs)]
    assert calls[0] == calls[1] != []
