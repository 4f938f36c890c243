"""Constrained decoding in the torch backend, against a naive search over all valid documents."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from llguidance.hf import from_tokenizer

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.shared import constrain
from rsd_integrations.backends.shared.constrain import Grammars
from rsd_integrations.errors import ConfigError
from rsd_integrations.output import Output
from rsd_integrations.types import InvalidToolCall
from tests.test_keyed_forms import fits as keyed_fits
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


@pytest.fixture(
    scope="module",
    params=[
        ("tools", "tools"),
        ("tools", "tools-b"),
        pytest.param(("tools-b", "tools"), marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.parametrize("seed", range(5))
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
@pytest.mark.parametrize("seed", range(2))
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
        for seed in range(8)
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
    for seed in range(6):
        answer = pipe.generate(
            QUESTION,
            output=Output.of(tools=TOOLS, response_format=JSON_FORMAT, parallel_tool_calls=False),
            temperature=50.0,
            seed=seed,
        )
        kinds.add("calls" if answer.tool_calls else "document")
        assert answer.text == "" if answer.tool_calls else answer.text in DOCUMENTS
    assert kinds == {"calls", "document"}


@pytest.mark.parametrize("seed", range(4))
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


@pytest.mark.parametrize(
    ("target", "ends", "read"), [("tools", None, 1), ("tools-b", None, 2), ("tools", [2, 3], 2)]
)
def test_equal_vocabularies_are_read_once(
    monkeypatch: pytest.MonkeyPatch, target: str, ends: list[int] | None, read: int
) -> None:
    """One of 150,000 tokens takes a second, in which an event loop stands still, and 100 MB for good."""
    made = []

    def counted(*args: Any, **given: Any) -> Any:
        made.append(args)
        return from_tokenizer(*args, **given)

    monkeypatch.setattr(constrain, "from_tokenizer", counted)
    models = trio("Qwen2", "Llama", ("tools", target, "ascii"), max_position_embeddings=2048)
    models["draft"] = (models["draft"][0], copy.deepcopy(models["draft"][1]))
    if ends:
        monkeypatch.setattr(models["target"][0].generation_config, "eos_token_id", ends)
    with RSDPipeline.from_pretrained(**models, device="cpu") as pipe:
        for tools in (None, TOOLS):
            pipe.generate(QUESTION, output=Output.of(response_format=JSON_FORMAT, tools=tools), max_tokens=4)
    assert len(made) == read


def fits(schema: Any, document: Any, *, strict: bool = False) -> bool:
    """Whether a document may be written."""
    tok = tokenizer("tools")
    grammars = Grammars(tok, frozenset([tok.eos_token_id]), None, "a model")
    constraint = grammars.open(Output(schema=schema, strict=strict), None)
    for token in tok.encode(json.dumps(document), add_special_tokens=False):
        if not constraint.takes(token):
            return False
        constraint.push([token])
    return constraint.takes(tok.eos_token_id)


def named(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


BOOL = {"type": "boolean"}
BASE = {"$ref": "#/$defs/Base"}
DEFS: dict[str, Any] = {
    "Base": named("a", a=BOOL),
    "Loose": {"properties": {"a": BOOL}, "additionalProperties": True},
    "Loop": {"allOf": [BASE, named(n={"$ref": "#/$defs/Loop"})]},
    "Parent": named(child={"$ref": "#/$defs/Child"}),
    "Child": {"allOf": [{"$ref": "#/$defs/Parent"}, named("b", b=BOOL)]},
    "Self": named(a=BOOL, kids={"type": "array", "items": {"allOf": [{"$ref": "#/$defs/Self"}]}}),
    "Colour": {"enum": ["red", "blue"]},
}
A, B, AB = {"a": True}, {"b": True}, {"a": True, "b": True}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"allOf": [BASE, named("b", b=BOOL)]},
            [AB],
            [A, B, {"a": True, "x": 1}, {**AB, "x": 1}, {"a": 1, "b": 1}],
        ),
        ({"allOf": [named(a=BOOL), named(b=BOOL)]}, [AB, A, B, {}], [{"x": 1}, {**AB, "x": 1}]),
        ({"allOf": [BASE], **named("b", b=BOOL)}, [AB], [A, {**AB, "x": 1}]),
        (
            {**BASE, **named("b", b=BOOL)},
            [AB],
            [A, B, {**AB, "x": 1}, {"a": 1, "b": True}],
        ),
        ({"allOf": [BASE, {"required": ["b"]}]}, [AB, {"a": True, "b": 1}], [A, {**AB, "x": 1}]),
        ({"allOf": [BASE, named(b=BOOL)], "unevaluatedProperties": False}, [AB, A], [{**AB, "x": 1}]),
        ({"allOf": [{"$ref": "#/$defs/Loose"}, named("b", b=BOOL)]}, [AB, {**AB, "x": 1}], [A]),
        (
            named("x", "y", x={"allOf": [BASE, named(b=BOOL)]}, y=BASE),
            [{"x": AB, "y": A}],
            [{"x": A, "y": AB}],
        ),
        ({"$ref": "#/$defs/Loop"}, [A, {**A, "n": A}], [{**A, "n": {**A, "x": 1}}, {**A, "x": 1}]),
        (
            {"$ref": "#/$defs/Child"},
            [B, {"child": B, **B}],
            [{"child": {}, **B}, {"child": {**B, "x": 1}, **B}],
        ),
        ({"$ref": "#/$defs/Self"}, [A, {**A, "kids": [A]}], [{**A, "kids": [{"x": 1}]}]),
        (named(x={"allOf": [BASE], "description": "d"}), [{"x": A}], [{"x": AB}, {"x": {}}]),
        (named(x={"allOf": [{"$ref": "#/$defs/Colour"}], "default": "red"}), [{"x": "blue"}], [{"x": {}}]),
        (
            {**named(k=BOOL), "anyOf": [BASE, named("b", b=BOOL)]},
            [{"k": True, **A}, {"k": True, **B}],
            [{"k": True}],
        ),
        (
            {"required": ["a"], "anyOf": [named(a=BOOL), named(a=BOOL, b=BOOL)]},
            [A, AB],
            [{"a": True, "x": 1}, {"a": 1}],
        ),
        (
            {"allOf": [named("x", x={"$ref": "#/$defs/Base"}), named(x=named("b", b=BOOL))]},
            [{"x": AB}],
            [{"x": A}, {"x": B}, {"x": AB, "y": 1}],
        ),
        (named("a", "b", a=BOOL), [AB, {"a": True, "b": [1]}], [A, {**AB, "x": 1}]),
        (
            {"properties": {"a": {"properties": {"b": BOOL}}}},
            [{}, {"a": B}],
            [[0], -9, "a", {"a": 0}, {"a": {"x": 1}}],
        ),
        ({"required": ["a"]}, [A], [{}, [0], 1]),
        ({"properties": {"a": BOOL}, "type": ["object", "null"]}, [A, None], [1]),
        ({"properties": {"a": BOOL}, "anyOf": [{"type": "null"}, {"type": "object"}]}, [A, None], [1]),
        ({"properties": {"a": BOOL}, "unevaluatedProperties": False}, [A], [AB]),
        ({"type": "object", "patternProperties": {"^a[0-9]$": BOOL}}, [{"a1": True}, {}], [A, {"a1": 1}]),
        (
            {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": BOOL},
            [AB, A, B, {}],
            [{"x": True}, {"a": 1}],
        ),
        (
            {"type": "object", "propertyNames": {"$ref": "#/$defs/Colour"}, "additionalProperties": BOOL},
            [{"red": True}],
            [A],
        ),
    ],
)
def test_objects_hold_what_is_named_for_them(
    schema: Any, good: list[Any], bad: list[Any], strict: bool
) -> None:
    schema = {**schema, "$defs": DEFS}
    assert [one for one in good if not fits(schema, one, strict=strict)] == []
    assert [one for one in bad if fits(schema, one, strict=strict)] == []


@pytest.mark.parametrize("name", ["Qwen3-Coder", "Gemma 4"])
@pytest.mark.parametrize("schema", [{**BASE, **named("b")}, {"allOf": [BASE, named("b")]}])
def test_arguments_by_keys_and_values_inherit_too(name: str, schema: Any) -> None:
    offered = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", **schema}}}
    offered["function"]["parameters"]["$defs"] = DEFS  # type: ignore[index]
    assert keyed_fits(name, offered, {"a": True, "b": 1})
    assert not keyed_fits(name, offered, {"a": 1, "b": 1})
    assert not keyed_fits(name, offered, {"a": True})
    assert not keyed_fits(name, offered, {"a": True, "b": 1, "x": 1})


BIG = 2**53 + 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"enum": ["a", BIG]}, "/properties/id/enum"),
        ({"const": {"of": [-BIG]}}, "/properties/id/const"),
        ({"type": "array", "items": {"anyOf": [{"const": 10**400}]}}, "/properties/id/items/anyOf/const"),
    ],
)
def test_numbers_that_would_be_written_wrongly_are_refused(schema: Any, place: str, strict: bool) -> None:
    with pytest.raises(ConfigError, match=rf"\d{{16,}} at '{re.escape(place)}'.*another number.*as strings"):
        fits(named(id=schema), {}, strict=strict)


def test_numbers_that_are_kept_are_taken() -> None:
    """Notes forbid nothing, and a property may have any name."""
    noted = {
        "type": "integer",
        "default": BIG,
        "examples": [BIG],
        "minimum": -(2**53) + 1,
        "maximum": 2**53 - 1,
    }
    schema = named(enum=noted, minimum={"enum": [2**60, 1e300, 10**22]}, maximum=BOOL)
    assert fits(schema, {"enum": 2**53 - 1, "minimum": 2**60, "maximum": True}, strict=True)
    assert not fits(schema, {"enum": 2**53}, strict=True)


@pytest.mark.parametrize(
    "bounds",
    [
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": "number", "minimum": -1.7976931348623157e308, "exclusiveMaximum": 1.7976931348623157e308},
        {"type": "integer", "exclusiveMinimum": -(10**400), "maximum": BIG},
    ],
)
def test_bounds_of_types_are_left_out(bounds: Any) -> None:
    assert fits(named(x=bounds), {"x": -12})
    with pytest.raises(
        ConfigError, match=r"cannot be enforced.* at '/properties/x/.*inimum' is a bound.*leave strict out"
    ):
        fits(named(x=bounds), {"x": -12}, strict=True)


@pytest.mark.parametrize("pattern", [r"^(?=.*\d)[a-z0-9]{3}$", r"^\bab\b$", r"^(a|b)\1$", r"\Aab\Z"])
def test_patterns_of_another_syntax_are_left_out(pattern: str) -> None:
    schema = named(x={"type": "string", "pattern": pattern, "maxLength": 3}, pattern={"const": "a"})
    assert fits(schema, {"x": "a1b", "pattern": "a"})
    assert not fits(schema, {"x": "a1bc"}) or not fits(schema, {"x": "a1b", "pattern": "b"})
    with pytest.raises(ConfigError, match=r"cannot be enforced[\s\S]*leave strict out"):
        fits(schema, {}, strict=True)


def test_to_leave_strict_out_is_a_hint_where_it_was_asked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        fits({"type": "nonsense"}, 1)
    assert "strict" not in str(caught.value)


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
        for seed in range(4):
            made = pipe.generate(
                QUESTION, seed=seed, temperature=1.0, weighting="constant", acceptance_rate=0.5, output=form
            )
            assert made.text in DOCUMENTS
