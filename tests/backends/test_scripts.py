"""Texts whose letters two models' tokenizers split or normalise differently."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.shared.constrain import Grammars
from rsd_integrations.encoding import encode_markup
from rsd_integrations.output import Output
from rsd_integrations.protocols import FREE
from tests.parrots import parrot
from tests.small_tokenizers import across_characters
from tests.tiny_models import CHATML_TOOLS

QUESTION = "2?"
NOT_NFC = ["cafe\u0301", "\uf900", "\u2126", "\u1100\u1161"]


@cache
def plain() -> Any:
    return across_characters(CHATML_TOOLS, size=270, added=("<tool_call>", "</tool_call>"))


@cache
def nfc() -> Any:
    """As Qwen's."""
    marks = ("<tool_call>", "</tool_call>")
    return across_characters(CHATML_TOOLS, size=300, normalizer=normalizers.NFC(), added=marks)


def answer(
    draft: tuple[Any, str],
    target: tuple[Any, str],
    prm: Callable[[Any, list[str]], float] = lambda prompt, steps: 1.0,
    output: Output = FREE,
    **config: Any,
) -> Generation:
    """What models answer that write these scripts by these tokenizers, in deltas that join to the text."""
    with opened(draft, target, prm, output) as pipe:
        return told(pipe, output, **config)


def opened(draft: tuple[Any, str], target: tuple[Any, str], prm: Any, output: Output = FREE) -> RSDPipeline:
    models = [_model(*draft, output), _model(*target, output)]
    pair = dict(zip(("draft", "target"), models, strict=True))
    return RSDPipeline.from_pretrained(**pair, prm=prm, max_length=500, device="cpu")


def told(pipe: RSDPipeline, output: Output = FREE, **config: Any) -> Generation:
    events = list(pipe.stream(QUESTION, output=output, threshold=0.5, **config))
    result = events[-1].generation
    assert result is not None
    assert "".join(event.delta for event in events) == result.text
    assert "\ufffd" not in "".join(step.text for step in result.steps)
    return result


def _model(tokenizer: Any, script: str, output: Output) -> tuple[Any, Any]:
    turns = [{"role": "user", "content": QUESTION}]
    start = tokenizer.apply_chat_template(
        turns, tools=output.tools or None, add_generation_prompt=True, return_dict=False
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = parrot(tokenizer, len(start), (*encode_markup(tokenizer, script), end))
    model.generation_config.eos_token_id = [end]
    return model, tokenizer


def document(**properties: Any) -> Output:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return Output.of(response_format={"type": "json_schema", "json_schema": {"schema": schema}})


@pytest.mark.parametrize("text", NOT_NFC)
@pytest.mark.parametrize("as_key", [False, True])
def test_a_form_is_kept_to_where_one_tokenizer_normalises(text: str, as_key: bool) -> None:
    """The model reads what its tokenizer makes of the text, its constraint the text itself."""
    value = {text: 1} if as_key else {"a": text}
    first = {text: {"type": "integer"}} if as_key else {"a": {"enum": [text, "x"]}}
    written = json.dumps({**value, "b": list(range(9))}, ensure_ascii=False)
    output = document(**first, b={"type": "array", "items": {"type": "integer"}})
    result = answer((plain(), written), (nfc(), written), output=output, max_step_tokens=24)
    assert (result.text, result.finish_reason) == (written, "stop")
    assert len(result.steps) > 1


@pytest.mark.parametrize("text", NOT_NFC)
def test_a_call_is_forced_where_one_tokenizer_normalises(text: str) -> None:
    parameters = {"type": "object", "properties": {"unit": {"enum": [text, "V"]}}, "required": ["unit"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    call = json.dumps({"name": "f", "arguments": {"unit": text}}, ensure_ascii=False)
    script = f"<tool_call>\n{call}\n</tool_call>"
    output = Output.of(tools=tools, tool_choice="required")
    result = answer((plain(), script), (nfc(), script), output=output)
    assert [call.arguments for call in result.tool_calls] == [{"unit": text}]


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("e\u0301a\uf900\u2126\u1100\u1161é公 <|im_end|>"), min_size=1, max_size=8)
)
def test_text_that_a_schema_prescribes_is_written_as_it_is(text: str) -> None:
    """Also by a model whose tokenizer would normalise it, and where it spells a control token."""
    tokenizer = nfc()
    schema = {"type": "object", "properties": {text: {"enum": [text]}}, "required": [text]}
    output = Output.of(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    constraint = Grammars(tokenizer, frozenset({tokenizer.eos_token_id}), None, "m").open(output, None)
    written: list[int] = []
    while not constraint.takes(tokenizer.eos_token_id):
        written.append(int(constraint.allowed(len(tokenizer)).int().argmax()))
        constraint.push(written[-1:])
    assert json.loads(tokenizer.decode(written)) == {text: text}


DRAFT, TARGET = "中国人民大学的学生", "大国公园很好天气吧"


def spelled_out(script: str, number: int) -> tuple[Any, str]:
    """By a vocabulary in which each token is a byte. With another number it is another vocabulary."""
    return across_characters(size=258, added=("<|other|>",) * number), script


@pytest.fixture(scope="module")
def spelling() -> Iterator[tuple[RSDPipeline, list[int]]]:
    """Both models spell, and a PRM that rejects the steps of these numbers."""
    rejected: list[int] = []

    def prm(prompt: Any, steps: list[str]) -> float:
        return 0.0 if len(steps) in rejected else 1.0

    with opened(spelled_out(DRAFT, 0), spelled_out(TARGET, 1), prm) as pipe:
        yield pipe, rejected


@pytest.mark.parametrize("most", [1, 5, *(pytest.param(most, marks=pytest.mark.slow) for most in (2, 4, 7))])
@pytest.mark.parametrize("rejected", [(2,), (1, 3), (2, 3, 5)])
@pytest.mark.parametrize(
    "fields", [{}, {"repetition_penalty": 1.000001}, {"draft_candidates": 2, "temperature": 0.001, "seed": 1}]
)
def test_a_limit_may_cut_a_character(
    spelling: tuple[RSDPipeline, list[int]], most: int, rejected: tuple[int, ...], fields: dict[str, Any]
) -> None:
    """The other model, which knows the text alone, writes the character anew."""
    pipe, rejects = spelling
    rejects[:] = rejected
    result = told(pipe, max_step_tokens=most, max_steps=100, **fields)
    assert result.finish_reason == "stop"
    assert all(letter in pair for letter, *pair in zip(result.text, DRAFT, TARGET, strict=True))


@pytest.mark.parametrize("most", [1, 2, 4, 5, 7])
def test_a_limit_may_cut_a_character_in_a_document(most: int) -> None:
    def prm(prompt: Any, steps: list[str]) -> float:
        return len(steps) % 2

    scripts = [json.dumps({"a": text}, ensure_ascii=False) for text in (DRAFT, TARGET)]
    draft, target = (spelled_out(script, number) for number, script in enumerate(scripts))
    result = answer(draft, target, prm, document(a={"type": "string"}), max_step_tokens=most, max_steps=100)
    assert result.finish_reason == "stop"
    written = json.loads(result.text)["a"]
    assert all(letter in pair for letter, *pair in zip(written, DRAFT, TARGET, strict=True))
