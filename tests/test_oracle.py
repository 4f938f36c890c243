"""The engine against a naive telling of RSD, on tiny fp32 models of real architectures."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.engine import job
from rsd_integrations.engine.batch import SCORE_ROUNDS
from tests.oracle import Party, Story, Terms, naive_rsd, plain_generate
from tests.tiny_models import trio

PAIRS = {
    "qwen": ("Qwen2", "Qwen3"),
    "llama": ("Llama", "Qwen2"),
    "mistral": ("Mistral", "Mistral"),
    "gemma": ("Gemma2", "Gemma3Text"),
    "phi": ("Phi3", "Mistral"),
    "gpt": ("GPT2", "GPTNeoX"),
    "recurrent": ("Qwen3_5Text", "FalconH1"),
}
PROMPTS = ("hello there", "Ava has 12 marbles.", "She buys 9 more; how many has she now? " * 3)
ROUNDING = 2e-5
"""Closer calls than this may go either way in another order of summation."""


@functools.cache
def parties(pair: str, flavours: tuple[str, str, str] = ("ascii",) * 3) -> tuple[Party, Party, Party]:
    """Draft, target and PRM."""
    draft, target, prm = (Party(*source) for source in trio(*PAIRS[pair], flavours).values())
    return draft, target, prm


def load(three: tuple[Party, Party, Party], **options: Any) -> RSDPipeline:
    """The engine over the oracle's models."""
    draft, target, prm = ((party.model, party.tokenizer) for party in three)
    return RSDPipeline.from_pretrained(draft, target, prm, device="cpu", **options)


def seeds(usual: int) -> Any:
    """So many of ten seeds, and the rest with the slow tests."""
    return pytest.mark.parametrize(
        "numbers", [range(usual), pytest.param(range(usual, 10), marks=pytest.mark.slow)], ids=str
    )


@pytest.fixture(autouse=True, scope="module")
def the_draft_guesses() -> Iterator[None]:
    """Inside of rewrites, whatever the models' sizes: the tiny ones are alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "GUESSING_PAYS", 0)
        yield


def usual(*names: str) -> Any:
    """A test of these pairs (without a window, with one, with places learnt, with states), and of the others
    with the slow tests.
    """
    each = [pytest.param(name, marks=[] if name in names else pytest.mark.slow) for name in PAIRS]
    return pytest.mark.parametrize("pair", each, indirect=True)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in ("qwen", "llama", "mistral", "phi") else name
        for name in PAIRS
    ],
)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[tuple[Party, Party, Party], RSDPipeline]]:
    three = parties(request.param)
    with load(three) as pipe:
        yield three, pipe


@pytest.fixture(scope="module")
def mixed_tokenizers() -> Iterator[tuple[tuple[Party, Party, Party], RSDPipeline]]:
    three = parties("llama", ("ascii", "ascii-b", "ascii"))
    with load(three) as pipe:
        yield three, pipe


def fields(terms: Terms) -> dict[str, Any]:
    """The same settings for the pipeline."""
    given = dict(vars(terms))
    return given | {"step_delimiter": given.pop("delimiters")}


def assert_same(generation: Generation, story: Story) -> None:
    """Text, sources, step texts, rewards, token counts and the end."""
    assert generation.text == story.text
    assert [step.source for step in generation.steps] == [step.source for step in story.steps]
    assert [step.text for step in generation.steps] == [step.text for step in story.steps]
    assert generation.finish_reason == story.finish
    for step, told in zip(generation.steps, story.steps, strict=True):
        assert (step.reward is None) == (told.reward is None)
        assert step.reward == pytest.approx(told.reward, abs=1e-4) or step.reward is None
        assert step.draft_tokens == told.drafted
        assert step.target_tokens == (len(told.ids) if told.source == "target" else 0)
    assert generation.usage.completion_tokens == sum(len(step.ids) for step in story.steps)


def check_all(
    three: tuple[Party, Party, Party], pipe: RSDPipeline, cases: list[tuple[str, Terms]]
) -> list[Story]:
    """Every case against the oracle, all at once in the engine; the stories that were no close call."""
    streams = [pipe.stream(prompt, **fields(terms)) for prompt, terms in cases]
    stories = []
    for (prompt, terms), stream in zip(cases, streams, strict=True):
        generation, story = stream.result(), naive_rsd(*three, prompt, terms)
        if story.margin > ROUNDING:
            assert_same(generation, story)
            stories.append(story)
    assert len(stories) >= len(cases) // 2
    return stories


GREEDY = [
    Terms(threshold=0.5),
    Terms(threshold=0.3, delimiters=("e",)),
    Terms(threshold=0.6, delimiters=("e", "\n\n", "\n"), max_step_tokens=7),
    Terms(threshold=0.2, delimiters=(" ", "s"), stop=("th",)),
    Terms(threshold=0.5, delimiters=("e", " "), repetition_penalty=1.3),
    Terms(weighting="constant", acceptance_rate=0.4, delimiters=("a",), seed=3),
    Terms(weighting="clip", delimiters=("o",), seed=1, max_steps=3),
    Terms(weighting="sigmoid", delimiters=("e",), seed=2, max_step_tokens=3),
    Terms(weighting="logistic", threshold=0.4, beta=3.0, delimiters=(" ",), seed=4),
]


def test_greedy_equals_the_oracle(pair: Any) -> None:
    three, pipe = pair
    stories = check_all(three, pipe, [(PROMPTS[n % 3], terms) for n, terms in enumerate(GREEDY)])
    sources = {step.source for story in stories for step in story.steps}
    assert sources == {"draft", "target"}


def sampled(seed: int) -> Terms:
    """A different mixture of settings for each seed."""
    return Terms(
        threshold=(0.2, 0.4, 0.6, 0.8)[seed % 4],
        weighting=("step", "clip", "logistic")[seed % 3],
        beta=4.0,
        delimiters=(("e",), ("\n", "a"), (" ",), ("\n\n",))[seed // 4 % 4],
        temperature=(0.5, 1.0, 1.6)[seed % 3],
        top_k=(None, 5, 40)[seed % 3],
        top_p=(1.0, 0.9, 0.6)[seed // 3 % 3],
        min_p=(0.0, 0.1)[seed % 2],
        repetition_penalty=(1.0, 1.0, 1.5, 0.8)[seed % 4],
        max_step_tokens=(512, 6)[seed % 2],
        stop=((), ("e o", "an"))[seed // 2 % 2],
        seed=seed,
    )


@seeds(5)
def test_sampling_equals_the_oracle(pair: Any, numbers: range) -> None:
    three, pipe = pair
    cases = [(PROMPTS[seed % len(PROMPTS)], sampled(seed)) for seed in numbers]
    check_all(three, pipe, cases)


def best_of(seed: int) -> Terms:
    """Two to four candidates in a different mixture of settings for each seed."""
    terms = vars(sampled(seed)) | {"draft_candidates": 2 + seed % 3}
    # Any is accepted; every other seed at most.
    return Terms(**terms | ({"threshold": 0.0} if seed % 2 else {}))


@usual("gemma", "recurrent")
@seeds(3)
def test_the_best_of_several_candidates_equals_the_oracle(pair: Any, numbers: range) -> None:
    three, pipe = pair
    check_all(three, pipe, [(PROMPTS[seed % len(PROMPTS)], best_of(seed)) for seed in numbers])


@seeds(3)
def test_candidates_of_different_tokenizers(mixed_tokenizers: Any, numbers: range) -> None:
    three, pipe = mixed_tokenizers
    check_all(three, pipe, [(PROMPTS[seed % len(PROMPTS)], best_of(seed)) for seed in numbers])


def test_what_all_candidates_share_is_read_once() -> None:
    """Prompt and committed steps go once through draft and PRM, however many candidates there are."""
    three = parties("qwen")
    settings = {"threshold": 0.0, "temperature": 1.0, "seed": 2, "step_delimiter": "e", "max_step_tokens": 9}
    with load(three) as pipe:
        usage = pipe.generate(PROMPTS[2] * 5, draft_candidates=6, max_tokens=60, **settings).usage
        length = usage.prompt_tokens
        assert usage.draft.generated > 6 * usage.completion_tokens / 2
        # What a candidate wrote is fed to it alone, what was kept to the others not at all.
        assert length < usage.draft.forwarded <= length + usage.draft.generated
        assert usage.prm.forwarded <= length + usage.prm.generated


def test_different_tokenizers_share_text(mixed_tokenizers: Any) -> None:
    three, pipe = mixed_tokenizers
    assert three[0].encode("more marbles.\n\n") != three[1].encode("more marbles.\n\n")
    cases = [(PROMPTS[n % 3], terms) for n, terms in enumerate(GREEDY)]
    cases += [(PROMPTS[seed % 3], sampled(seed)) for seed in range(5)]
    stories = check_all(three, pipe, cases)
    turns = [{step.source for step in story.steps} for story in stories]
    assert {"draft", "target"} in turns


@pytest.mark.parametrize("flavour", [pytest.param("ascii", marks=pytest.mark.slow), "ascii-b"])
def test_the_prm_may_have_a_tokenizer_of_its_own(flavour: str) -> None:
    three = parties("qwen", ("ascii", "ascii", flavour))
    with load(three) as pipe:
        check_all(three, pipe, [(PROMPTS[0], terms) for terms in GREEDY])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_threshold_0_is_the_draft_alone(pair: Any, prompt: str) -> None:
    three, pipe = pair
    ids, text = plain_generate(three[0], prompt, 40)
    generation = pipe.generate(prompt, threshold=0, max_tokens=40, max_step_tokens=9, step_delimiter="e")
    assert generation.text == text
    assert generation.usage.completion_tokens == len(ids)
    assert {step.source for step in generation.steps} == {"draft"}
    assert generation.usage.target.forwarded == generation.usage.prm.forwarded == 0


@pytest.mark.parametrize(("prompt", "penalty"), [*((prompt, 1.0) for prompt in PROMPTS), (PROMPTS[0], 1.2)])
def test_a_threshold_above_1_is_the_target_alone(pair: Any, prompt: str, penalty: float) -> None:
    three, pipe = pair
    ids, text = plain_generate(three[1], prompt, 40, penalty)
    how = {"max_tokens": 40, "max_step_tokens": 9, "step_delimiter": "e", "repetition_penalty": penalty}
    generation = pipe.generate(prompt, threshold=1.5, **how)
    assert generation.text == text
    assert generation.usage.completion_tokens == len(ids)
    assert {step.source for step in generation.steps} == {"target"}
    assert generation.usage.draft.forwarded == generation.usage.prm.forwarded == 0


@usual("gpt")  # test_recurrent.py has requests in company, too.
def test_a_request_does_not_depend_on_its_company(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests arrive while others run, some of which are cancelled in mid-step.

    Where steps wait for each other's scores, what the draft then wrote on in vain is counted, and nothing
    else differs; where they do not, nothing at all.
    """
    _, pipe = pair
    cases = [(PROMPTS[n % 3], sampled(n)) for n in range(6)] + [(PROMPTS[n % 3], GREEDY[n]) for n in range(4)]
    alone = [pipe.generate(prompt, **fields(terms)) for prompt, terms in cases]
    for rounds in (0, SCORE_ROUNDS):
        monkeypatch.setattr(pipe._engine, "_score_rounds", rounds)
        for first, second in zip(alone, at_once(pipe, cases), strict=True):
            in_vain = second.usage.draft.forwarded - first.usage.draft.forwarded
            assert 0 <= in_vain <= rounds * len(first.steps)
            assert without_vain(second) == without_vain(first)
            assert rounds or plain(second) == plain(first)


def at_once(pipe: RSDPipeline, cases: list[tuple[str, Terms]]) -> list[Generation]:
    """Every case in a thread of its own, each beside its like that is given up."""

    def one(index: int) -> Generation:
        prompt, terms = cases[index]
        doomed = pipe.stream(prompt, **fields(terms))
        if index % 2:
            next(doomed)  # It has drafted its first step: cancel it in the middle of its life.
        answer = pipe.generate(prompt, **fields(terms))
        doomed.close()
        return answer

    with ThreadPoolExecutor(len(cases)) as threads:
        return list(threads.map(one, range(len(cases))))


def without_vain(generation: Generation) -> dict[str, Any]:
    """What may depend neither on the clock nor on company."""
    dumped = plain(generation)
    usage = dumped["usage"]
    assert usage["flops"].pop("total") >= usage["flops"]["paper"]
    for part in ("forwarded", "flops"):
        del usage["draft"][part]
    del usage["flops_ratio"]["total"]
    return dumped


def plain(generation: Generation) -> dict[str, Any]:
    """What may not depend on the clock."""
    dumped = generation.model_dump()
    for step in dumped["steps"]:
        step["reward"] = step["reward"] and pytest.approx(step["reward"], abs=1e-4)
        step["acceptance_probability"] = pytest.approx(step["acceptance_probability"], abs=1e-4)
        for name in ("draft_ms", "score_ms", "target_ms"):
            del step[name]
    return dumped


def test_long_answers_past_the_sliding_window_and_the_prefill_chunk() -> None:
    """A prompt longer than a prefill chunk, an answer many windows long."""
    three = parties("mistral")
    prompt = "marbles and more " * 30
    assert len(three[0].prompt(prompt)) > 200
    with load(three, max_length=512) as pipe:
        check_all(three, pipe, [(prompt, Terms(threshold=0.4, delimiters=(" ",), max_tokens=120))])
