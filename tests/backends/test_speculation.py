"""Guesses inside the target's rewrites change nothing but the number of forwards."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.torch.guesses import Guesses
from rsd_integrations.engine import job
from rsd_integrations.output import Output
from rsd_integrations.protocols import GuessStep
from tests.tiny_models import causal, trio

PROMPT = "Ava has 12 marbles. She buys 9 more."
PAIRS = {
    "same tokenizer": (("Qwen2", "ascii"), ("Llama", "ascii")),
    "other tokenizer": (("Qwen2", "ascii"), ("Llama", "ascii-b")),
    "sliding window": (("Mistral", "ascii"), ("Mistral", "ascii")),
    "kinds of layers": (("Gemma2", "ascii"), ("Gemma3Text", "ascii")),
}


def pairs(*slow: str, of: str = "pair") -> Any:
    """A test for each pair, or for each ``pipe`` of one; some of them only with the slow ones."""
    each = [pytest.param(pair, marks=[pytest.mark.slow] * (pair in slow)) for pair in PAIRS]
    return pytest.mark.parametrize(of, each, indirect=of == "pipe")


FIELDS: dict[str, Any] = {
    "weighting": "constant",
    "acceptance_rate": 0.3,
    "step_delimiter": ("e", "\n\n"),
    "max_tokens": 40,
    "max_step_tokens": 20,
}


ASKED: list[dict[str, Any]] = [
    {"seed": 0},
    {"seed": 1, "temperature": 0.8},
    {"seed": 2, "speculation": False},
    {"seed": 3, "temperature": 0.8, "draft_candidates": 3},
    {"seed": 4, "acceptance_rate": 0.0},
]
"""Of all kinds: greedy and sampled, without guesses, with candidates, all steps rejected."""


def ask(pipe: RSDPipeline, given: dict[str, Any]) -> Generation:
    """An answer to the prompt with these fields besides ``FIELDS``."""
    return pipe.generate(PROMPT, **{**FIELDS, **given})


def load(
    draft: tuple[str, str],
    target: tuple[str, str],
    *,
    seeds: tuple[int, int] = (0, 1),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> RSDPipeline:
    models = [
        copy.deepcopy(causal(kind, seed, flavour)).to(dtype)
        for (kind, flavour), seed in zip((draft, target), seeds, strict=True)
    ]
    flavours = (draft[1], target[1], "ascii")
    return RSDPipeline.from_pretrained(**trio(*models, flavours), device="cpu", **options)


@pytest.fixture(autouse=True, scope="module")
def the_draft_guesses() -> Iterator[None]:
    """Whatever the models' sizes: the tiny ones are alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "GUESSING_PAYS", 0)
        yield


@pytest.fixture(scope="module", params=PAIRS)
def pipe(request: pytest.FixtureRequest) -> Iterator[RSDPipeline]:
    with load(*PAIRS[request.param]) as made:
        yield made


def facts(generation: Generation) -> Any:
    """All that speculation must leave as it is, but the rewards."""
    usage = generation.usage
    return (
        generation.text,
        generation.finish_reason,
        [(step.text, step.rejected_text, step.accepted, step.target_tokens) for step in generation.steps],
        (usage.completion_tokens, usage.target.generated, usage.draft.generated, usage.flops.paper),
    )


def check_equal(one: Generation, other: Generation) -> None:
    """Texts to the letter, rewards to rounding."""
    assert facts(one) == facts(other)
    for step, expected in zip(one.steps, other.steps, strict=True):
        assert step.reward == pytest.approx(expected.reward, abs=1e-4)


@pytest.mark.parametrize(
    ("temperature", "seed"),
    [
        pytest.param(*case, marks=[] if case in ((0.0, 0), (0.7, 1), (1.5, 0)) else pytest.mark.slow)
        for case in product((0.0, 0.7, 1.5), range(4))
    ],
)
def test_the_same_answer_with_and_without(pipe: RSDPipeline, temperature: float, seed: int) -> None:
    """Token for token, greedy and sampled: the target draws at each place what it would draw anyway."""
    given = {**FIELDS, "temperature": temperature, "seed": seed}
    one, other = (pipe.generate(PROMPT, **given, speculation=on) for on in (True, False))
    check_equal(one, other)
    assert False in [step.accepted for step in one.steps]


# What ends a step has nothing to do with layers.
@pairs("same tokenizer", "sliding window", "kinds of layers", of="pipe")
def test_with_stop_strings_limits_and_filters(pipe: RSDPipeline) -> None:
    fields = {**FIELDS, "seed": 5}
    text = pipe.generate(PROMPT, **fields, speculation=False).text
    for more in (
        {"stop": text[20:23]},
        {"max_tokens": 7},
        {"max_step_tokens": 1},
        {"max_step_tokens": 3},
        {"temperature": 1.0, "top_p": 0.5, "top_k": 9, "seed": 3},
        {"repetition_penalty": 1.2},
        {"temperature": 1.0, "repetition_penalty": 1.2, "seed": 4},
        {"acceptance_rate": 0.0},
    ):
        given = {**fields, **more}
        one, other = (pipe.generate(PROMPT, **given, speculation=on) for on in (True, False))
        check_equal(one, other)


@pairs("same tokenizer", "sliding window", "kinds of layers", of="pipe")
def test_in_company(pipe: RSDPipeline) -> None:
    def ask(seed: int) -> Generation:
        return pipe.generate(PROMPT * (1 + seed % 3), **FIELDS, seed=seed, speculation=seed % 2 == 0)

    alone = [ask(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    for one, other in zip(alone, together, strict=True):
        check_equal(one, other)


def test_with_a_form() -> None:
    form = {"type": "object", "properties": {"a": {"enum": ["x y", "z", "zz"]}, "b": {"type": "boolean"}}}
    schema = {"schema": form | {"required": ["a", "b"]}}
    output = Output.of(response_format={"type": "json_schema", "json_schema": schema})
    with load(*PAIRS["same tokenizer"]) as pipe:
        for seed in range(4):
            given = {"weighting": "constant", "acceptance_rate": 0.2, "temperature": 1.0, "seed": seed}
            one, other = (
                pipe.generate(PROMPT, **given, output=output, speculation=on) for on in (True, False)
            )
            assert json.loads(one.text) == json.loads(other.text)
            check_equal(one, other)


def count_forwards(model: Any) -> list[int]:
    """A number that goes up with each forward."""
    readout, forwards = model.runner._readout, [0]

    def counting(*given: Any) -> Any:
        forwards[0] += 1
        return readout(*given)

    model.runner._readout = counting
    return forwards


def test_right_guesses_save_forwards() -> None:
    """A target that agrees with the draft takes a rejected step whole."""
    with load(("Llama", "ascii"), ("Llama", "ascii"), seeds=(1, 1)) as pipe:
        forwards = count_forwards(pipe.backend.target)
        counts = {}
        for on in (True, False):
            forwards[0] = 0
            given = {**FIELDS, "acceptance_rate": 0.0, "step_delimiter": "\0", "max_tokens": 60}
            generation = pipe.generate(PROMPT, **given, speculation=on)
            counts[on] = forwards[0]
            assert all(step.text == step.rejected_text for step in generation.steps)
    assert counts[False] >= 60
    assert counts[True] <= 12


def test_wrong_guesses_are_given_up() -> None:
    guesses = Guesses(range(100, 200))
    forwards = 0
    while asked := guesses.next(50):
        forwards += 1
        assert not guesses.drawn(7)
        guesses.verified(0, len(asked))
    assert forwards == 3


def test_where_none_was_right_the_next_step_tries_once() -> None:
    guesses = Guesses(range(100, 200), more=True)
    assert guesses.trusted is None
    while asked := guesses.next(50):
        assert not guesses.drawn(7)
        guesses.verified(0, len(asked))
    assert guesses.trusted is False
    again = Guesses([1, 2, 3, 4], more=True, trusted=guesses.trusted)
    assert again.trusted is False
    assert not again.drawn(7)
    again.verified(0, 4)
    assert not again.next(50)
    assert not again.wanted
    # One right guess, and there is patience again.
    again = Guesses(range(1, 100), trusted=False)
    assert again.drawn(1)
    again.verified(1, 8)
    assert again.trusted
    assert not again.drawn(7)
    again.verified(0, 4)
    assert again.next(50)


@pytest.mark.parametrize(
    ("trusted", "right", "asked"),
    [(None, False, [1, 1, 1]), (None, True, [4, 2, 1]), (True, False, [1, 1, 1]), (False, False, [])],
)
def test_the_draft_is_asked_for_one_guess_where_the_last_were_wrong(
    trusted: bool | None, right: bool, asked: list[int]
) -> None:
    """Other requests wait for all of its guesses but the first."""
    guesses = Guesses([7], more=True, trusted=trusted)
    assert guesses.drawn(7 if right else 8) is right
    guesses.verified(int(right), 1)
    tried = []
    while wanted := guesses.wanted:
        guesses.give([9] * wanted)
        assert not guesses.drawn(5)
        guesses.verified(0, wanted)
        tried.append(wanted)
    assert tried == asked
    assert guesses.trusted is right


def test_a_request_whose_guesses_are_wrong_makes_fewer() -> None:
    """Of two models that never agree; a wrong guess goes through the target in vain."""
    given = {**FIELDS, "acceptance_rate": 0.0, "step_delimiter": "\0", "max_step_tokens": 12}
    with load(*PAIRS["same tokenizer"]) as pipe:
        read = [pipe.generate(PROMPT, **given, speculation=on).usage.target.forwarded for on in (True, False)]
    # Five rewrites of eight guesses each, and more of them in the first one only.
    assert 0 < read[0] - read[1] <= 5 * 8 + 3 * 8


def test_a_word_in_another_s_place_and_words_left_out() -> None:
    guesses = Guesses([1, 2, 3, 4, 5, 6, 7, 8])
    assert guesses.drawn(1)
    assert not guesses.drawn(99)
    assert guesses.next(9) == [3, 4, 5, 6, 7, 8]
    assert not guesses.drawn(5)
    assert guesses.next(9) == [6, 7, 8]
    assert guesses.next(2) == [6, 7]
    assert guesses.next(0) == guesses.next(-1) == []


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)), st.data())
def test_guesses_are_from_the_rejected_step_in_its_order(
    rejected: list[int], written: list[int], data: st.DataObject
) -> None:
    guesses = Guesses(rejected)
    for token in written:
        asked = guesses.next(data.draw(st.integers(0, 70)))
        assert asked == rejected[len(rejected) - len(guesses._tokens) :][: len(asked)]
        before = list(guesses._tokens)
        assert guesses.drawn(token) is (bool(before) and before[0] == token)
        assert len(guesses._tokens) < len(before) or not before
        guesses.verified(data.draw(st.integers(0, len(asked))), len(asked))


def test_the_draft_goes_on_guessing_from_the_target_s_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where chance led the rejected step elsewhere, the draft still knows how the target goes on."""
    given = {"weighting": "constant", "acceptance_rate": 0.0, "step_delimiter": "\0", "max_step_tokens": 40}
    with load(("Llama", "ascii"), ("Llama", "ascii"), seeds=(1, 1)) as pipe:
        forwards = count_forwards(pipe.backend.target)
        counts, answers = {}, {}
        for pays in (0, math.inf):
            monkeypatch.setattr(job, "GUESSING_PAYS", pays)
            forwards[0] = 0
            answers[pays] = [
                pipe.generate(PROMPT, **given, max_tokens=80, temperature=0.4, seed=seed) for seed in range(6)
            ]
            counts[pays] = forwards[0]
    for one, other in zip(*answers.values(), strict=True):
        check_equal(one, other)
    assert counts[0] < 0.8 * counts[math.inf]
    read = [sum(answer.usage.draft.forwarded for answer in answers[pays]) for pays in (0, math.inf)]
    # What the draft guessed right it need not read again.
    assert read[1] < read[0]


def test_nobody_waits_for_guesses_that_are_never_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """One guess is written in the round that asks for it, and the target runs in the same."""
    given = {**FIELDS, "acceptance_rate": 0.0, "step_delimiter": "\0", "max_step_tokens": 12}
    with load(*PAIRS["same tokenizer"]) as pipe:
        ran: list[str] = []

        def watch(model: Any, name: str) -> None:
            advance = model.advance

            def watched(sessions: Any) -> Any:
                guessing = any(isinstance(session.work, GuessStep) for session in sessions)
                ran.append("guess" if guessing else name)
                return advance(sessions)

            monkeypatch.setattr(model, "advance", watched)

        monkeypatch.setattr(job, "GUESSING_PAYS", 0)
        watch(pipe.backend.draft, "draft")
        watch(pipe.backend.target, "target")
        pipe.generate(PROMPT, **given)
    behind = [after for name, after in pairwise(ran) if name == "guess"]
    assert behind == ["target"] * len(behind) != []


def test_guesses_that_fail_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**FIELDS, "acceptance_rate": 0.0, "step_delimiter": "\0", "max_step_tokens": 40}
    given |= {"temperature": 0.4, "max_tokens": 80, "seed": 1}
    with load(("Llama", "ascii"), ("Llama", "ascii"), seeds=(1, 1)) as pipe:
        draft: Any = pipe.backend.draft
        expected = pipe.generate(PROMPT, **given)
        advance, failed = draft.advance, []

        def failing(sessions: Any) -> Any:
            if any(isinstance(session.work, GuessStep) for session in sessions):
                failed.append(len(sessions))
                return [RuntimeError("no guesses today")] * len(sessions)
            return advance(sessions)

        monkeypatch.setattr(draft, "advance", failing)
        check_equal(pipe.generate(PROMPT, **given), expected)
        assert failed


def test_right_guesses_of_the_draft_make_for_more() -> None:
    guesses = Guesses((), more=True)
    asked = []
    for _ in range(6):
        asked.append(guesses.wanted)
        guesses.give([7] * asked[-1])
        assert guesses.next(100) == [7] * asked[-1]
        assert all(guesses.drawn(7) for _ in range(asked[-1]))
        guesses.verified(asked[-1], asked[-1])
    assert asked == [1, 2, 4, 8, 16, 16]
    guesses.give(())
    assert guesses.wanted == 0
    assert Guesses(()).wanted == 0
