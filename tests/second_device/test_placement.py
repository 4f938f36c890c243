"""What the CPU cannot show: where tensors lie, and what goes to and fro.

``tests/backends/test_second_device.py`` runs this, in a process of its own.
"""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations import Generation, RSDPipeline
from tests.tiny_models import saved, trio

NAME = "tests.second_device.device"

pytestmark = pytest.mark.skipif(NAME not in sys.modules, reason=f"asked with -p {NAME}")

QUESTION = "Ava has 12 marbles. She buys 9 more. How many marbles does Ava have?"
ASKED: list[dict[str, Any]] = [
    {"seed": 0},
    {"seed": 1, "temperature": 0.8, "top_p": 0.9},
    {"seed": 2, "temperature": 0.8, "top_k": 20},
    {"seed": 3, "temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.1},
    {"seed": 4, "temperature": 0.8, "draft_candidates": 3},
    {"seed": 5, "acceptance_rate": 0.0},
    {"seed": 6, "threshold": 0.95, "speculation": False},
    {"seed": 7, "stop": ["="]},
]
BODY = ("embed_tokens", "norm", "rotary_emb")


def answers(pipe: RSDPipeline) -> list[Generation]:
    """Of all kinds, alone and then together."""
    alone = [pipe.generate(QUESTION, max_tokens=48, **given) for given in ASKED]
    streams = [pipe.stream(QUESTION, max_tokens=48, **given) for given in ASKED]
    return alone + [stream.result() for stream in streams]


@functools.cache
def expected() -> list[Generation]:
    with RSDPipeline.pocket() as pipe:
        return answers(pipe)


def split(layers: int, head: str = "lm_head") -> dict[str, Any]:
    """A model on two devices: the second has the later layers, and a head with weights of its own."""
    places = {f"model.{name}": "second:0" for name in BODY} | {head: f"second:{int(head == 'score')}"}
    places |= {f"model.layers.{n}": f"second:{int(n >= layers / 2)}" for n in range(layers)}
    return {"device_map": places}


@pytest.mark.parametrize(
    "options",
    [
        {"device": "second"},
        {"device": "second", "draft_kwargs": {"device": "cpu"}, "prm_kwargs": {"device": "second:1"}},
        {"target_kwargs": {"device": "second:1"}},
        {"draft_kwargs": split(2), "target_kwargs": split(6), "prm_kwargs": split(5, "score")},
    ],
    ids=["one", "mixed", "target", "split"],
)
def test_answers_do_not_depend_on_places(options: dict[str, Any]) -> None:
    with RSDPipeline.pocket(**options) as pipe:
        for one, other in zip(answers(pipe), expected(), strict=True):
            assert one.text == other.text
            for step, same in zip(one.steps, other.steps, strict=True):
                assert (step.source, step.accepted) == (same.source, same.accepted)
                assert step.reward == pytest.approx(same.reward, abs=1e-4)


@pytest.mark.parametrize("role", ["draft", "target", "prm"])
def test_a_model_may_end_elsewhere_than_it_begins(role: str, tmp_path: Path) -> None:
    """As ``device_map="auto"`` lays it over two GPUs."""
    folders = saved(trio(), tmp_path)
    head = "score" if role == "prm" else "lm_head"
    begins = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.layers.0"], 0)
    places = {**begins, **dict.fromkeys(["model.layers.1", "model.norm", head], 1)}
    given = {"seed": 1, "step_delimiter": "e", "max_tokens": 30}
    made = []
    for options in ({}, {f"{role}_kwargs": {"device_map": places}}):
        with RSDPipeline.from_pretrained(**folders, device="cpu", **options) as pipe:
            made.append(pipe.generate(QUESTION, **given))
    assert made[1].text == made[0].text
    rewards = [[step.reward for step in one.steps] for one in made]
    assert rewards[1] == pytest.approx(rewards[0], abs=1e-4)


def test_a_token_costs_one_copy_to_the_host() -> None:
    """And no operation beside the recorded forward: what the host launches is its share of a step."""
    from tests.second_device.device import APPLE, DEVICE

    if APPLE:
        pytest.skip("nothing is recorded there")
    models = {role: (copy.deepcopy(model).to("second"), tok) for role, (model, tok) in trio().items()}
    given = {"threshold": 0.0, "step_delimiter": "\0"}
    counts = []
    with RSDPipeline.from_pretrained(**models, prefix_caching=False) as pipe:
        for tokens in (20, 60) * 3:  # At first shapes are recorded.
            DEVICE.counts()
            made = pipe.generate(QUESTION, max_tokens=tokens, max_step_tokens=tokens, **given)
            assert made.usage.completion_tokens == tokens
            counts.append(DEVICE.counts())
    *_, few, many = counts
    assert {name: many[name] - few[name] for name in many if many[name] != few[name]} == {"to the host": 40}
