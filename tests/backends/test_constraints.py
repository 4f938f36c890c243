"""Constrained decoding in the torch backend, against a naive search over all valid documents."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.errors import ConfigError
from rsd_integrations.output import Output
from rsd_integrations.types import InvalidToolCall
from tests.tiny_models import causal, tokenizer, trio

QUESTION = "Which colour has the sky?"
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["blue", "green", "sky blue"]},
        "sure": {"type": "boolean"},
        "rank": {"enum": [1, 2, 10, None]},
    },
    "required": ["colour", "sure", "rank"],
}
DOCUMENTS = [
    json.dumps({"colour": colour, "sure": sure, "rank": rank})
    for colour, sure, rank in itertools.product(
        ("blue", "green", "sky blue"), (True, False), (1, 2, 10, None)
    )
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"To {name}.",
            "parameters": {
                "type": "object",
                "properties": {"x": {"enum": [1, 22]}, "why": {"enum": ["so", "no"]}},
                "required": ["x", "why"],
            },
        },
    }
    for name in ("add", "look_up")
]
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SCHEMA}}


def loaded(flavours: Sequence[str], target: str = "Llama", **options: Any) -> RSDPipeline:
    models = trio("Qwen2", target, flavours, max_position_embeddings=2048)
    return RSDPipeline.from_pretrained(**models, device="cpu", **options)


@pytest.fixture(scope="module", params=[("tools", "tools"), ("tools", "tools-b"), ("tools-b", "tools")])
def pipe(request: pytest.FixtureRequest) -> Iterator[RSDPipeline]:
    with loaded((*request.param, "ascii")) as made:
        yield made


def call_text(name: str, x: int, why: str) -> str:
    arguments = json.dumps({"x": x, "why": why})
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CALLS = [
    call_text(name, x, why) for name, x, why in itertools.product(("add", "look_up"), (1, 22), ("so", "no"))
]


def forced_after(text: str, valid: Sequence[str]) -> str:
    """What all valid texts that begin so go on with."""
    columns = zip(*(one[len(text) :] for one in valid if one.startswith(text)), strict=False)
    return "".join(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def naive(model: Any, tok: Any, prompt: list[int], valid: Sequence[str]) -> str:
    """Greedy decoding in which each token must leave a way to a valid text.

    Text that is forced has to be spelled as the tokenizer spells it, which is llguidance's rule.
    """
    ids: list[int] = []
    while True:
        text = tok.decode(ids)
        forced = forced_after(text, valid)
        spelled = tok.encode(forced, add_special_tokens=False)
        if len(spelled) > 1:
            ids.append(spelled[0])
            continue
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, -1]
        for token in logits.argsort(descending=True).tolist():
            if token == tok.eos_token_id:
                if text in valid:
                    return text
            elif token not in tok.all_special_ids:
                longer = tok.decode([*ids, token])
                if longer != text and any(one.startswith(longer) for one in valid):
                    ids.append(token)
                    break


@functools.cache
def naive_document(flavour: str, architecture: str, seed: int) -> str:
    tok = tokenizer(flavour)
    turns = [{"role": "user", "content": QUESTION}]
    prompt = list(tok.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])
    return naive(causal(architecture, seed, flavour, max_position_embeddings=2048), tok, prompt, DOCUMENTS)


@pytest.mark.parametrize("threshold", [0.0, 1.1])
@pytest.mark.parametrize("flavour", ["tools", "tools-b"])
def test_greedy_is_the_best_valid_token_each_time(threshold: float, flavour: str) -> None:
    with loaded((flavour, flavour, "ascii")) as pipe:
        answer = pipe.generate(QUESTION, threshold=threshold, output=Output.of(response_format=JSON_FORMAT))
    expected = naive_document(flavour, "Qwen2" if threshold == 0 else "Llama", 0 if threshold == 0 else 1)
    assert answer.text == expected
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("seed", range(8))
def test_documents_are_valid_whatever_is_rejected(pipe: RSDPipeline, seed: int) -> None:
    """Steps of three tokens: each rejection rolls the grammar back, each commit moves both sides on."""
    answer = pipe.generate(
        QUESTION,
        output=Output.of(response_format=JSON_FORMAT),
        weighting="constant",
        acceptance_rate=0.5,
        max_step_tokens=3,
        temperature=1.5,
        seed=seed,
    )
    assert answer.text in DOCUMENTS
    assert len(answer.steps) > 3
    assert "".join(step.text for step in answer.steps) == answer.text


def test_both_sources_were_seen(pipe: RSDPipeline) -> None:
    sources = {
        step.source
        for seed in range(4)
        for step in pipe.generate(
            QUESTION,
            output=Output.of(response_format=JSON_FORMAT),
            weighting="constant",
            max_step_tokens=3,
            seed=seed,
        ).steps
    }
    assert sources == {"draft", "target"}


@pytest.mark.parametrize("seed", range(4))
def test_a_document_is_one_step(pipe: RSDPipeline, seed: int) -> None:
    """However often its strings hold the delimiter."""
    answer = pipe.generate(
        QUESTION,
        output=Output.of(response_format=JSON_FORMAT),
        step_delimiter=("\n", "e", " "),
        temperature=1.0,
        seed=seed,
    )
    assert answer.text in DOCUMENTS
    assert len(answer.steps) == 1


@pytest.mark.parametrize(
    "choice", ["required", "any", "add", {"type": "function", "function": {"name": "add"}}]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_is_a_call(pipe: RSDPipeline, choice: Any, seed: int) -> None:
    output = Output.of(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    answer = pipe.generate(
        QUESTION,
        output=output,
        weighting="constant",
        temperature=1.0,
        max_step_tokens=7,
        step_delimiter="e",
        seed=seed,
    )
    assert answer.text == ""
    assert "".join(step.text for step in answer.steps) in CALLS
    assert not answer.invalid_tool_calls
    (call,) = answer.tool_calls
    assert call.name in (("add", "look_up") if choice in ("required", "any") else ("add",))
    assert call.arguments["x"] in (1, 22)
    assert answer.finish_reason == "tool_calls"


def test_greedy_forced_calls_are_the_best_valid_tokens() -> None:
    tok = tokenizer("tools")
    turns = [{"role": "user", "content": QUESTION}]
    prompt = tok.apply_chat_template(turns, tools=TOOLS, add_generation_prompt=True)["input_ids"]
    expected = naive(causal("Llama", 1, "tools", max_position_embeddings=2048), tok, list(prompt), CALLS)
    with loaded(("tools", "tools", "ascii")) as pipe:
        output = Output.of(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        answer = pipe.generate(QUESTION, output=output, threshold=1.1)
    assert answer.steps[0].text == expected


def test_parallel_calls_are_a_step_each(pipe: RSDPipeline) -> None:
    several = [
        answer
        for seed in range(12)
        if len((answer := forced_parallel(pipe, seed)).tool_calls) > 1
        and answer.finish_reason == "tool_calls"
    ]
    assert several
    for answer in several:
        texts = [step.text.strip() for step in answer.steps if step.text.strip()]
        assert all(text in CALLS for text in texts)
        assert len(texts) == len(answer.tool_calls)
        assert len({call.id for call in answer.tool_calls}) == len(answer.tool_calls)


def forced_parallel(pipe: RSDPipeline, seed: int) -> Generation:
    return pipe.generate(
        QUESTION,
        output=Output.of(tools=TOOLS, tool_choice="required"),
        temperature=50.0,
        weighting="constant",
        seed=seed,
        max_tokens=250,
    )


def test_a_document_or_calls(pipe: RSDPipeline) -> None:
    """As agents ask for it: tools and a form for the final answer at once."""
    kinds = set()
    for seed in range(16):
        answer = pipe.generate(
            QUESTION,
            output=Output.of(tools=TOOLS, response_format=JSON_FORMAT, parallel_tool_calls=False),
            temperature=50.0,
            seed=seed,
        )
        kinds.add("calls" if answer.tool_calls else "document")
        assert answer.text == "" if answer.tool_calls else answer.text in DOCUMENTS
    assert kinds == {"calls", "document"}


@pytest.mark.parametrize("seed", range(6))
def test_strict_tools_leave_words_free_and_calls_valid(pipe: RSDPipeline, seed: int) -> None:
    strict = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    answer = pipe.generate(
        QUESTION, output=Output.of(tools=strict), temperature=2.0, seed=seed, max_tokens=120
    )
    assert not answer.invalid_tool_calls or answer.finish_reason == "length"


def test_the_model_is_shown_its_tools(pipe: RSDPipeline) -> None:
    bare, shown = pipe.count_tokens(QUESTION), pipe.count_tokens(QUESTION, output=Output.of(tools=TOOLS))
    assert shown > bare + 50
    hidden = Output.of(tools=TOOLS, tool_choice="none")
    assert pipe.count_tokens(QUESTION, output=hidden) == bare


def test_company_changes_nothing(pipe: RSDPipeline) -> None:
    outputs = [
        Output(),
        Output.of(response_format=JSON_FORMAT),
        Output.of(tools=TOOLS, tool_choice="required", parallel_tool_calls=False),
    ]
    common = {"max_tokens": 60, "temperature": 1.0, "weighting": "constant", "seed": 5}
    alone = [pipe.generate(QUESTION, output=output, **common) for output in outputs]  # type: ignore[arg-type]
    streams = [pipe.stream(QUESTION, output=output, **common) for output in outputs]  # type: ignore[arg-type]
    together = [stream.result() for stream in streams]
    assert [one.text for one in alone] == [one.text for one in together]
    assert [[step.text for step in one.steps] for one in alone] == [
        [step.text for step in one.steps] for one in together
    ]


def test_each_document_is_in_the_order_of_its_schema(pipe: RSDPipeline) -> None:
    """A model that has to give its reasons first does so, whoever asked for the same the other way round."""
    for order in (("why", "sure"), ("sure", "why")):
        schema = {"properties": {name: {"type": "boolean"} for name in order}, "required": ["sure", "why"]}
        answer = pipe.generate(QUESTION, output=Output(schema={"type": "object", **schema}), max_tokens=80)
        assert tuple(json.loads(answer.text)) == order


def test_a_length_limit_cuts_a_document_and_says_so(pipe: RSDPipeline) -> None:
    answer = pipe.generate(QUESTION, output=Output.of(response_format=JSON_FORMAT), max_tokens=6)
    assert answer.finish_reason == "length"
    assert any(document.startswith(answer.text) for document in DOCUMENTS)


def test_a_cut_call_is_invalid(pipe: RSDPipeline) -> None:
    output = Output.of(tools=TOOLS, tool_choice="add")
    answer = pipe.generate(QUESTION, output=output, max_tokens=9)
    assert answer.tool_calls == () and answer.text == ""
    (broken,) = answer.invalid_tool_calls
    assert isinstance(broken, InvalidToolCall) and "malformed" in broken.error
    assert answer.finish_reason == "length"


def test_models_without_tools_in_their_template_say_so() -> None:
    with (
        loaded(("ascii", "tools", "ascii")) as pipe,
        pytest.raises(ConfigError, match="takes no tools"),
    ):
        pipe.generate(QUESTION, output=Output.of(tools=TOOLS))


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "nonsense"}, False),
        ({"type": "array", "uniqueItems": True, "items": {}}, True),
        ({"$ref": "#"}, False),
    ],
)
def test_schemas_that_cannot_be_enforced_are_refused(pipe: RSDPipeline, schema: Any, strict: bool) -> None:
    asked = {"type": "json_schema", "json_schema": {"schema": schema, "strict": strict}}
    with pytest.raises(ConfigError, match="cannot be enforced"):
        pipe.generate(QUESTION, output=Output.of(response_format=asked))
    assert pipe.generate(QUESTION, max_tokens=3).usage.completion_tokens <= 3


@pytest.mark.parametrize("more", ["draft", "target"])
def test_models_that_end_answers_by_different_tokens(more: str) -> None:
    """A fine-tuned model often has one end of sequence where the official one has two."""
    tok = tokenizer("tools")
    ends = [tok.eos_token_id, tok.convert_tokens_to_ids("<|endoftext|>")]
    models = copy.deepcopy(trio(flavours="tools", max_position_embeddings=2048))
    for role in ("draft", "target"):
        models[role][0].generation_config.eos_token_id = ends if role == more else ends[:1]
    form = Output.of(response_format=JSON_FORMAT)
    with RSDPipeline.from_pretrained(**models, device="cpu") as pipe:
        for seed in range(8):
            made = pipe.generate(
                QUESTION, seed=seed, temperature=1.0, weighting="constant", acceptance_rate=0.5, output=form
            )
            assert made.text in DOCUMENTS
