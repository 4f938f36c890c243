"""RSDLLM over real models: every entry point gives what the pipeline gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rsd_integrations import RSDPipeline
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pocket import EXAMPLE_QUESTIONS
from tests.llama_index.entries import ENTRIES, text_of
from tests.tiny_models import tokenizer, trio

HARD = EXAMPLE_QUESTIONS[3]


@pytest.fixture(scope="module")
def tiny() -> Iterator[RSDPipeline]:
    with RSDPipeline.from_pretrained(**trio(), device="cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def pocket() -> Iterator[RSDPipeline]:
    with RSDPipeline.pocket() as pipe:
        yield pipe


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tiny_models(tiny: RSDPipeline, entry: str, temperature: float) -> None:
    fields: dict[str, Any] = {
        "temperature": temperature,
        "seed": 5,
        "max_tokens": 30,
        "step_delimiter": "e",
        "weighting": "constant",
    }
    last = ENTRIES[entry](RSDLLM.from_pipeline(tiny, **fields), "hello there")[-1]
    expected = tiny.generate("hello there", **fields)
    assert text_of(last) == expected.text
    assert last.raw["rsd"]["accepted"] == [step.accepted for step in expected.steps]
    assert last.raw["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_pocket_trio(pocket: RSDPipeline, entry: str) -> None:
    told: list[Any] = []
    responses = ENTRIES[entry](RSDLLM.from_pipeline(pocket, on_step=told.append, seed=0), HARD)
    expected = pocket.generate(HARD, seed=0)
    assert text_of(responses[-1]) == expected.text
    assert [step.text for step in told] == [step.text for step in expected.steps]
    assert False in [step.accepted for step in told]


@pytest.mark.parametrize("entry", ENTRIES)
def test_one_prompt_as_the_template_has_it(tiny: RSDPipeline, entry: str) -> None:
    """No second BOS, no text around it."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
    ids = tokenizer("ascii").apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    llm = RSDLLM.from_pipeline(tiny, system_prompt="Be brief.", max_tokens=3)
    last = ENTRIES[entry](llm, "hello there")[-1]
    assert last.raw["usage"]["prompt_tokens"] == len(ids)
