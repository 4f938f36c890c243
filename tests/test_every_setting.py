"""Every field of RSDConfig does something, with models of both kinds, and each way to give it takes it there.

A field that is new fails here until it has an example; an example fails where somebody passes the field over.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations import Generation, RSDConfig, RSDPipeline
from rsd_integrations.adapters.calls import call_settings
from rsd_integrations.cli.settings import read_config
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.langchain.caching import cache_key
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.testing import scripted_pipeline
from tests.test_template_variables import SHUT
from tests.tiny_models import CHATML, saved, trio
from tests.vllm.double import double

BASE: dict[str, Any] = {"seed": 1, "threshold": 0.5, "max_tokens": 24, "step_delimiter": ("e", " ", "\n")}
HOT: dict[str, Any] = {"temperature": 2.0}
EXAMPLES: dict[str, tuple[dict[str, Any], Any]] = {
    "threshold": ({}, 0.99),
    "weighting": ({}, "clip"),
    "acceptance_rate": ({"weighting": "constant", "acceptance_rate": 1.0}, 0.0),
    "beta": ({"weighting": "logistic"}, 0.1),
    "step_delimiter": ({}, ("a",)),
    "max_tokens": ({}, 5),
    "max_steps": ({}, 1),
    "max_step_tokens": ({}, 2),
    "temperature": ({}, 2.0),
    "top_p": (HOT, 1e-6),
    "top_k": (HOT, 1),
    "min_p": (HOT, 1.0),
    "repetition_penalty": ({}, 9.0),
    "seed": (HOT, 2),
    "stop": ({}, lambda answer: (answer.text[3:5],)),
    "speculation": ({}, False),
    "draft_candidates": (HOT, 3),
    "chat_template_kwargs": ({}, {"enable_thinking": False}),
}
"""For each field settings beside it, and a value that makes another answer; or what makes such a value of the
answer without it."""

ELSEWHERE = {("servers", "speculation")}
"""What the documentation says does nothing there."""


@pytest.fixture(scope="module", params=["this process", "servers"])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RSDPipeline]:
    models = trio()
    for role in ("draft", "target"):
        model, words = models[role]
        words = copy.deepcopy(words)
        words.chat_template = CHATML + SHUT
        models[role] = model, words
    with ExitStack() as stack:
        if request.param == "servers":
            folders = saved(models, tmp_path_factory.mktemp("models"))
            urls = {role: stack.enter_context(double(Path(folder))).url for role, folder in folders.items()}
            made = RSDPipeline.from_vllm(**urls)
        else:
            made = RSDPipeline.from_pretrained(**models, device="cpu")
        yield stack.enter_context(made)


def answer(pipe: RSDPipeline, **fields: Any) -> Generation:
    return pipe.generate("Ava has 12 marbles.", **{**BASE, **fields})


def seen(answer: Generation) -> dict[str, Any]:
    """What is in an answer, but for times, rounding, and settings that are only repeated in it."""
    return {
        "text": answer.text,
        "end": answer.finish_reason,
        "steps": [
            (step.source, step.text, len(step.candidates), round(step.acceptance_probability, 3))
            for step in answer.steps
        ],
        "read": (answer.usage.prompt_tokens, answer.usage.target.forwarded),
    }


def example(name: str, answer: Generation | None = None) -> Any:
    value = EXAMPLES[name][1]
    return value(answer) if isinstance(value, Callable) and answer else value  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RSDConfig.model_fields)
def test_a_setting_makes_another_answer(pipe: RSDPipeline, name: str, request: pytest.FixtureRequest) -> None:
    beside, _ = EXAMPLES[name]
    before = answer(pipe, **beside)
    assert seen(answer(pipe, **beside)) == seen(before), "something else makes answers differ"
    after = answer(pipe, **{**beside, name: example(name, before)})
    where = request.node.callspec.params["pipe"]
    assert (seen(after) != seen(before)) == ((where, name) not in ELSEWHERE)


@pytest.mark.parametrize("name", RSDConfig.model_fields)
def test_each_way_to_give_a_setting_takes_it_there(name: str) -> None:
    beside, value = EXAMPLES[name][0], ("END",) if name == "stop" else example(name)
    given = {**beside, name: value}
    expected = RSDConfig(**given)
    assert expected != RSDConfig(**beside)
    assert read_config(json.dumps(given)) == expected
    with scripted_pipeline(["a"]) as pipe:
        plain = ChatRSD.from_pipeline(pipe, **beside)
        assert cache_key(plain, None, {name: value}) != cache_key(plain, None, {})
        for kind in (ChatRSD, RSDLLM):
            assert kind.from_pipeline(pipe, **given).config == expected
            assert call_settings(kind.from_pipeline(pipe, **beside), {name: value}).config == expected
