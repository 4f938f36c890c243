"""Several tokens in one launch are those of as many launches, and none is written in vain."""

from __future__ import annotations

import copy
import functools
import gc
import os
import random
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.shared.detokenize import Detokenizer
from rsd_integrations.backends.shared.tooling import Calls
from rsd_integrations.backends.shared.writing import Language
from rsd_integrations.backends.torch import bursts, interpreter, traced
from rsd_integrations.backends.torch.bursts import Burst, Endings, Looped
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.engine import job
from rsd_integrations.errors import BackendError
from rsd_integrations.protocols import DraftStep, GuessStep, Sampling, TargetStep, Written
from rsd_integrations.text.segment import StepBoundary, Unbroken
from tests.backends.test_slots import recomputed, runner_of
from tests.backends.test_speculation import ASKED, FIELDS, PAIRS, PROMPT, ask, check_equal, load, pairs
from tests.backends.test_unsound import overflowing
from tests.small_tokenizers import byte_level, sentencepiece_like
from tests.tiny_models import ARCHITECTURES, causal, tokenizer, trio
from tests.warned import own

LONG = {**FIELDS, "acceptance_rate": 1.0, "step_delimiter": "\0"}
"""One step that only a limit ends."""

STATM = Path("/proc/self/statm")

DRAFTED = {"threshold": 0.0, "step_delimiter": "\0", "max_step_tokens": 40, "max_tokens": 40}
"""One that the draft writes, and nobody looks at."""


@functools.cache
def long_answer() -> Generation:
    """Without traces, and so without bursts."""
    with load(*PAIRS["same tokenizer"], cpu_traces=False) as pipe:
        return pipe.generate(PROMPT, **LONG)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards are traced soon, and are in bursts once three sizes agreed; not those of loading alone."""
    monkeypatch.setattr(traced, "PAYS", 4)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many bursts there were of each length; 0: refused."""
    found, real = Counter[int](), Looped.__call__

    def counting(self: Looped, *inputs: Any, **where: Any) -> Any:
        made = real(self, *inputs, **where)
        found[0 if made is None else made[1].shape[1]] += 1
        return made

    monkeypatch.setattr(Looped, "__call__", counting)
    return found


def endless(vocabulary: int = 10_000) -> torch.Tensor:
    """No token ends anything but "none"."""
    ending_V1 = torch.zeros(vocabulary + 1, dtype=torch.bool)
    ending_V1[-1] = True
    return ending_V1


def proven(model: Any, rows: dict[int, list[int]], **options: Any) -> SlotRunner:
    """A runner whose slots hold all but the last token of these rows, with a trace to rely on."""
    runner = runner_of(model, traces=True, parameters=1, **options)
    for slot in range(max(rows) + 1):
        assert runner.pool.claim()[0] == slot
    most = max(map(len, rows.values()))
    for back in range(min(most, 8), 0, -1):
        feeds = [SlotFeed(slot, len(row) - 1 - back, row[-1 - back : -back]) for slot, row in rows.items()]
        if back == min(most, 8):
            feeds = [SlotFeed(slot, 0, row[:-back]) for slot, row in rows.items()]
        runner.run(feeds)
    return runner


def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    """Continued naively."""
    text = list(tokens)
    for _ in range(count):
        text.append(int(recomputed(model, text).argmax()))
    return text[len(tokens) :]


@pytest.mark.parametrize("wrong", [None, 3])
def test_a_trace_is_relied_on_once_three_sizes_agreed(
    wrong: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though two agreed, a third that does not rules it out."""
    compared, real = list[bool](), traced.alike

    def alike(made: Any, called: Any) -> bool:
        compared.append(real(made, called) and len(compared) != wrong)  # The first is of its making.
        return compared[-1]

    monkeypatch.setattr(traced, "alike", alike)
    model = causal("Qwen2", 3)
    runner, text, took = runner_of(model, traces=True, parameters=1), [5], []
    runner.pool.claim()
    for _ in range(9):
        (read,) = runner.run([SlotFeed(0, len(text) - 1, text[-1:])], burst=Burst(4, endless))
        assert isinstance(read, Read)
        took.append(len(read.fetched))
        text += read.fetched
    assert took == [1] * 7 + ([4, 4] if wrong is None else [1, 1])
    assert text[1:] == greedy(model, [5], len(text) - 1)


ROWS = {
    "alone": {2: [5, 9, 13, 21, 34, 2, 17, 8, 11, 3]},
    "neighbours": {0: [5, 9, 13, 21, 34, 2, 17, 8, 11, 3], 1: [29, 23, 7, 7, 1, 4, 4, 9, 30]},
    "with an idle row": {0: [5, 9, 13, 21, 34, 2, 17, 8, 11, 3], 2: [29, 23, 7, 7, 1, 4, 4, 9, 30]},
    "here and there": {0: [5, 9, 13, 21, 34, 2, 17, 8, 11], 3: [29, 23, 7, 7, 1, 4, 4, 9, 30]},
}


def usual(architecture: str, where: str) -> bool:
    """Where rows lie is the plan's matter, so by default not every architecture is tried everywhere."""
    return where == "alone" or (
        where in ("here and there", "with an idle row") and architecture in ("Qwen2", "GPT2", "Gemma3Text")
    )


def burst(runner: SlotRunner, rows: dict[int, list[int]], made: Burst) -> list[Read]:
    feeds = [SlotFeed(slot, len(row) - 1, row[-1:]) for slot, row in rows.items()]
    outputs = runner.run(feeds, ahead=True, burst=made)
    assert all(isinstance(output, Read) for output in outputs)
    return outputs  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("architecture", "where"),
    [
        pytest.param(architecture, where, marks=[] if usual(architecture, where) else pytest.mark.slow)
        for architecture in ARCHITECTURES
        for where in ROWS
    ],
)
def test_tokens_are_those_of_full_forwards(architecture: str, where: str, lengths: Counter[int]) -> None:
    model, rows = causal(architecture, 3), ROWS[where]
    runner = proven(model, rows, capacity=96)
    for (slot, row), output in zip(rows.items(), burst(runner, rows, Burst(7, endless)), strict=True):
        expected = greedy(model, row, 7)
        assert (output.fetched, output.own) == (expected, 6)
        full_V = recomputed(model, [*row, *expected[:-1]])
        torch.testing.assert_close(output.kept_R[0], full_V, atol=1e-4, rtol=1e-4)
        # All of them but the last were fed.
        after = runner.run([SlotFeed(slot, len(row) + 6, expected[-1:])])[0]
        assert after.fetched == greedy(model, [*row, *expected], 1)  # type: ignore[union-attr]
    assert lengths == {7: 1}


def test_it_ends_at_the_first_token_of_any_row_that_may_end() -> None:
    model, rows = causal("Qwen2", 3), ROWS["with an idle row"]
    first, second = (greedy(model, row, 8) for row in rows.values())
    place = next(at for at in range(2, 8) if second[at] not in (*first[:at], *second[:at]))
    ending_V1 = endless()
    ending_V1[second[place]] = True
    outputs = burst(proven(model, rows), rows, Burst(8, lambda: ending_V1))
    assert [output.fetched for output in outputs] == [first[: place + 1], second[: place + 1]]


def test_a_slot_is_given_back_empty() -> None:
    model, rows = causal("Qwen2", 3), ROWS["alone"]
    runner = proven(model, rows)
    burst(runner, rows, Burst(7, endless))
    assert any(states[2, :, 15].any() for states in runner.cache.states())
    runner.pool.spoil(2)
    runner.release(2)
    assert not any(states[2, :, : runner.capacity].any() for states in runner.cache.states())


def test_an_idle_row_between_neither_ends_nor_breaks_it(lengths: Counter[int]) -> None:
    """Not even where what a request left in its slot is no number."""
    model, rows = causal("Qwen2", 3), ROWS["with an idle row"]
    runner = proven(model, rows)
    expected = [greedy(model, row, 6) for row in rows.values()]
    ending_V1 = torch.ones_like(endless())
    ending_V1[[token for drawn in expected for token in drawn]] = False
    for idle in (0.0, torch.nan):
        with torch.inference_mode():
            for states in runner.cache.states():
                states[1] = idle
        assert [output.fetched for output in burst(runner, rows, Burst(6, lambda: ending_V1))] == expected
    assert lengths == {6: 2}


@pairs("same tokenizer", "sliding window", "kinds of layers")
def test_answers_are_the_same(pair: str, lengths: Counter[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and in company, of all kinds, whatever ends a step; and alone nothing is read in vain."""
    monkeypatch.setattr(job, "GUESSING_PAYS", 0)
    asked = [
        *ASKED,
        {"seed": 5, "max_step_tokens": 2},
        {"seed": 6, "max_tokens": 7},
        {"seed": 7, "stop": "a", "step_delimiter": "\n\n"},
        {"seed": 8, "max_steps": 2, "acceptance_rate": 0.9},
        {"seed": 9, **LONG, "max_step_tokens": 60},
    ]
    with load(*PAIRS[pair]) as pipe, ThreadPoolExecutor(len(asked)) as pool:
        alone = [ask(pipe, one) for one in asked]
        together = list(pool.map(lambda one: ask(pipe, one), asked))
    assert sum(count for length, count in lengths.items() if length > 1) > 20
    assert not lengths[0]
    monkeypatch.setattr(SlotRunner, "bursts", lambda *given: False)
    with load(*PAIRS[pair]) as pipe:
        for one, company, fields in zip(alone, together, asked, strict=True):
            expected = ask(pipe, fields)
            check_equal(one, expected)
            check_equal(company, expected)
            assert one.usage == expected.usage


def test_a_window_that_is_full(lengths: Counter[int]) -> None:
    fields = {**LONG, "max_tokens": None, "max_step_tokens": 500}
    with load(*PAIRS["same tokenizer"], max_length=128) as pipe:
        answer = pipe.generate(PROMPT, **fields)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 128
    assert max(lengths) == bursts.MOST_AT_ONCE


@pytest.mark.parametrize("rows", [1, 4])
def test_large_models_write_one_token_at_a_time(rows: int, lengths: Counter[int]) -> None:
    """Whoever comes, or waits for another model, would wait for all of them."""
    model = causal("Qwen2", 3)
    assert runner_of(model, traces=True, parameters=20_000_000 // rows - 1).bursts(rows)
    assert not runner_of(model, traces=True, parameters=20_000_000 // rows).bursts(rows)
    assert not runner_of(model, parameters=1).bursts(rows)
    assert not runner_of(model, traces=True).bursts(rows), "its size is not known"
    with load(*PAIRS["same tokenizer"]) as pipe:
        for writer in (pipe.backend.draft, pipe.backend.target):
            writer.runner._parameters = 20_000_000  # type: ignore[union-attr]
        pipe.generate(PROMPT, **FIELDS)
    assert not lengths


def test_a_rewrite_that_will_take_guesses_does_not_write_on_without_them() -> None:
    with load(*PAIRS["same tokenizer"]) as pipe:
        target: Any = pipe.backend.target
        session = target.open(PROMPT)
        rejected = Written("ab", (5, 9), "limit", None, target.vocabulary)
        sampling = Sampling(0.0, 1.0, None, random.random)
        session.begin(TargetStep(StepBoundary(("\0",)), 30, sampling, rejected=rejected))
        assert session.next_feed().more == 2
        assert session.steady == 0
        while not session.wanted:
            assert target.advance([session]) == [None]
        assert session.steady == 0
        session.guess(())
        assert session.steady == 30 - session.in_progress


def test_nothing_is_written_on_while_half_a_character_is_held_back() -> None:
    """What was held back with it may end the step, whatever comes next."""
    with load(("Qwen2", "a"), ("Llama", "a")) as pipe:
        draft: Any = pipe.backend.draft
        session = draft.open(PROMPT)
        session.begin(DraftStep(StepBoundary(("\n\n",)), 30, Sampling(0.0, 1.0, None, random.random)))
        half, other = draft.encode("\u0436")
        assert session.steady == 30
        assert session.push(half) is None
        assert session.steady == 0
        assert session.push(other) is None
        assert session.steady == 28


def test_a_target_too_small_to_ask_the_draft_writes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its first rewrite already, before it knows that guesses are wrong."""
    fields = {**FIELDS, "acceptance_rate": 0.0, "step_delimiter": "\0", "max_tokens": 40}
    fields["max_step_tokens"] = 40
    monkeypatch.setattr(job, "GUESSING_PAYS", 10**6)
    with load(*PAIRS["same tokenizer"]) as pipe:
        pipe.generate(PROMPT, **fields)
        seen = watched(pipe.backend.target.runner)  # type: ignore[union-attr]
        answer = pipe.generate(PROMPT, **fields)
    assert [step.accepted for step in answer.steps] == [False]
    assert max(output.own for output in seen) == bursts.MOST_AT_ONCE - 1


def test_guesses_come_in_one_launch(lengths: Counter[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """And are read once."""
    found = []
    for may in (True, False):
        with load(*PAIRS["same tokenizer"], prefix_caching=False) as pipe:
            draft: Any = pipe.backend.draft
            if not may:
                monkeypatch.setattr(SlotRunner, "bursts", lambda *given: False)
            session, guesses = draft.open(PROMPT), []
            for count in (6, 9, 9):
                session.begin(GuessStep((5, 9, 13, *guesses), count))
                while (written := draft.advance([session])[0]) is None:
                    pass
                guesses += written.token_ids
            found.append((guesses, session.tally.forwarded))
    assert found[0] == found[1]
    assert lengths[9] == 2


def watched(runner: Any) -> list[Read]:
    """What each feed gave, from now on."""
    run, seen = runner.run, list[Read]()

    def spy(feeds: Any, **more: Any) -> Any:
        outputs = run(feeds, **more)
        seen.extend(outputs)
        return outputs

    runner.run = spy
    return seen


def test_an_overflow_on_the_way_fails_as_it_does_alone() -> None:
    """The token behind which it comes is drawn again by itself, and nothing of it is left behind."""
    with load(*PAIRS["same tokenizer"], prefix_caching=False) as pipe:
        seen = watched(pipe.backend.draft.runner)  # type: ignore[union-attr]
        pipe.generate(PROMPT, **DRAFTED)
        ids = [token for output in seen for token in output.fetched]
        bad = next(token for at, token in enumerate(ids) if at > 12 and token not in ids[:at])
    with load(*PAIRS["same tokenizer"], prefix_caching=False) as pipe:
        runner: Any = pipe.backend.draft.runner  # type: ignore[union-attr]
        runner._readout = overflowing(runner, bad)
        runner._call._kinds.clear()
        seen = watched(runner)
        for _ in range(3):
            with pytest.raises(BackendError, match="NaN or infinite logits"):
                pipe.generate(PROMPT, **DRAFTED)
            assert seen[-1].fetched == [-1]
        assert seen[-2].own > 0
        assert seen[-2].fetched[-2:] == [bad, -1]
        assert all(layer.values.isfinite().all() for layer in runner.cache.layers)


@pytest.mark.parametrize("when", ["made", "first run", "later"])
def test_what_fails_in_a_burst_is_called(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries, runs = interpreter.looped, [0], [0]

    def script(*given: Any) -> Any:
        tries[0] += 1
        if when == "made":
            raise RuntimeError("no compiler today")
        made = real(*given)

        def run(*inputs: Any) -> Any:
            runs[0] += 1
            if runs[0] > (4 if when == "later" else 0):
                raise RuntimeError("the interpreter broke")
            return made(*inputs)

        return run

    monkeypatch.setattr(interpreter, "looped", script)
    with load(*PAIRS["same tokenizer"]) as pipe:
        for _ in range(5):
            check_equal(pipe.generate(PROMPT, **LONG), long_answer())
    assert tries == [1]
    assert runs == [{"made": 0, "first run": 1, "later": 5}[when]]


def _outputs_off(loop: Any, *inputs: Any) -> Any:
    kept, tokens = loop(*inputs)
    return kept + 0.5, tokens


def _token_off(loop: Any, head: Any, ids: Any, positions: Any, most: int, ending: Any) -> Any:
    """One in the middle; all behind it is what belongs behind it."""
    _, first = loop(head, ids, positions, 2, ending)
    first[:, 1] = (first[:, 1] + 1) % 90
    kept, rest = loop(head + torch.tensor([0, 2, 0]), first[:, 1:], positions, most - 2, ending)
    return kept, torch.cat([first, rest], 1)


def _not_finite(loop: Any, *inputs: Any) -> Any:
    kept, tokens = loop(*inputs)
    return kept * torch.nan, tokens


def _second_off(loop: Any, *inputs: Any, calls: list[int]) -> Any:
    calls[0] += 1
    return loop(*inputs) if calls[0] == 1 else _token_off(loop, *inputs)


@pytest.mark.parametrize("wrong", [_outputs_off, _token_off, _not_finite, _second_off])
def test_one_that_computes_something_else_is_not_used(
    wrong: Any, lengths: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = interpreter.looped
    more = {"calls": [0]} if wrong is _second_off else {}

    def script(*given: Any) -> Any:
        return functools.partial(wrong, real(*given), **more)

    monkeypatch.setattr(interpreter, "looped", script)
    with load(*PAIRS["same tokenizer"]) as pipe:
        for _ in range(2):
            check_equal(pipe.generate(PROMPT, **LONG), long_answer())
    assert lengths[0] == 1
    assert lengths.total() == (2 if wrong is _second_off else 1)


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_refused_leaves_nothing_behind(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its own row, for others beside it, for who has the slot next."""
    model, rows = causal("Qwen2", 3), ROWS["neighbours"]
    runner = proven(model, rows)
    real = interpreter.looped

    def script(*given: Any) -> Any:
        loop = real(*given)

        def run(head: Any, *inputs: Any) -> Any:
            kept, tokens = loop(head, *inputs)
            for states in runner.cache.states():
                for slot, start, _ in head.tolist():
                    states[slot, :, start + 1 : start + 7] = torch.nan
            if fails:
                raise RuntimeError("the interpreter broke")
            return kept + 1.0, tokens

        return run

    monkeypatch.setattr(interpreter, "looped", script)
    for output, row in zip(burst(runner, rows, Burst(7, endless)), rows.values(), strict=True):
        assert (output.fetched, output.own) == (greedy(model, row, 1), 0)
    assert all(states[:, :, : runner.capacity].isfinite().all() for states in runner.cache.states())


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="memory is read as Linux shows it")
def test_what_was_made_goes_with_its_runner() -> None:
    """torch.jit would keep some megabytes of each trace and loop until the process ends."""
    model, rows = causal("Qwen2", 3), ROWS["neighbours"]

    def megabytes() -> float:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def grown() -> float:
        gc.collect()
        before = megabytes()
        for _ in range(10):
            burst(proven(model, rows), rows, Burst(7, endless))
        gc.collect()
        return megabytes() - before

    # Before the allocator has what it needs it takes more: how soon that is depends on the tests before.
    assert any(grown() < 12 for _ in range(6))


def test_no_warning_of_torch_reaches_anybody(lengths: Counter[int]) -> None:
    model, rows = causal("Qwen2", 3), ROWS["alone"]
    with warnings.catch_warnings():
        runner = proven(model, rows)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        burst(runner, rows, Burst(7, endless))
    assert not own(told)
    assert lengths == {7: 1}


def test_a_bad_row_fails_alone_and_ends_no_bursts(lengths: Counter[int]) -> None:
    model, rows = causal("Qwen2", 3), ROWS["neighbours"]
    runner = proven(model, rows)
    burst(runner, rows, Burst(3, endless))
    one, other = rows.values()
    feeds = [SlotFeed(0, len(one) - 1, one[-1:]), SlotFeed(1, len(other) - 1, [10**6])]
    made = runner.run(feeds, ahead=True, burst=Burst(3, endless))
    assert isinstance(made[1], Exception)
    assert made[0].fetched == greedy(model, one, 1)  # type: ignore[union-attr]
    assert burst(runner, rows, Burst(3, endless))[1].fetched == greedy(model, other, 3)
    assert lengths == {3: 2}


TOKENIZERS = {
    "byte level": byte_level,
    "sentencepiece": sentencepiece_like,
    "ascii": lambda: tokenizer("ascii"),
}
BOUNDARIES = {
    "paragraphs": StepBoundary(("\n\n",)),
    "several": StepBoundary(("\n\n", "12", "ки")),
    "stop strings": StepBoundary(("\n\n",), stop=("So", "и", "\\boxed")),
    "calls": StepBoundary(("\n\n",), unbroken=Unbroken("+", "- ")),
    "inside": StepBoundary(("\n\n",), unbroken=Unbroken("{", "2}"), inside=True),
}


@functools.cache
def ends_of(kind: str) -> tuple[Any, Endings, list[int]]:
    """A tokenizer, what it can end, and its tokens."""
    made = TOKENIZERS[kind]()
    return made, Endings(made, [3]), sorted(made.get_vocab().values())


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", TOKENIZERS)
@given(seed=st.integers(0, 10**6))
def test_every_token_that_ends_a_step_is_known(kind: str, boundary: str, seed: int) -> None:
    """So that nothing is written in vain behind it."""
    finds = BOUNDARIES[boundary]
    made, endings, ids = ends_of(kind)
    ending_V1 = endings.of(finds.last)
    rng, text, pieces = random.Random(seed), "", Detokenizer(made, frozenset())
    for _ in range(60):
        token = rng.choice(ids)
        checked, held = len(text), pieces.holds
        text += pieces.push([token])
        if finds.find(text, checked) is not None:
            # While half a character is held back there are no bursts.
            assert held or ending_V1[token], (made.decode([token]), text[checked:])
            return


def test_endings_are_few() -> None:
    """Of the alphabet those with the character, the answer's ends, and "none"."""
    made = tokenizer("ascii")
    ending_V1 = Endings(made, [0, 2]).of(frozenset("e\n"))
    texts = {token: made.decode([token]) for token in made.get_vocab().values()}
    expected = {token for token, text in texts.items() if set(text) & set("e\n")} | {0, 2, max(texts) + 1}
    assert set(ending_V1.nonzero().flatten().tolist()) == expected
    nothing = Endings(made, [0]).of(frozenset())
    assert nothing.nonzero().flatten().tolist() == [0, max(texts) + 1]


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_a_character_in_pieces_may_end_with_any_half(kind: str) -> None:
    made = TOKENIZERS[kind]()
    *_, last = pieces = made.encode("\u0436", add_special_tokens=False)
    assert len(pieces) > 1
    assert Endings(made, [0]).of(frozenset("\u0436"))[last]


def test_a_character_with_half_of_another_behind_it_ends_a_step() -> None:
    """A token of a space and the first byte of the euro sign, as Qwen's and Llama's vocabularies have."""
    core = Tokenizer(models.BPE({"<e>": 0, "a": 1, "\u0120\u00e2": 2, "\u0124\u00ac": 3}, []))
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    boundary, pieces = StepBoundary(("\n\n",), stop=("a ",)), Detokenizer(made, frozenset())
    texts = [pieces.push([token]) for token in (1, 2, 3)]
    assert texts == ["a", " ", "\u20ac"]
    assert boundary.find("".join(texts[:2]), 1) is not None
    ending_V1 = Endings(made, [0]).of(boundary.last)
    assert ending_V1[2]
    assert ending_V1[3]


def test_an_end_that_the_tokenizer_does_not_know(lengths: Counter[int]) -> None:
    """Some configs name tokens of a padded vocabulary."""
    model = copy.deepcopy(causal("Qwen2", 0, "ascii"))
    model.generation_config.eos_token_id = [2, 900]
    with RSDPipeline.from_pretrained(**trio(model), device="cpu") as pipe:
        answer = pipe.generate(PROMPT, **FIELDS, seed=1)
    assert max(lengths) > 1
    assert not lengths[0]
    with load(*PAIRS["same tokenizer"], cpu_traces=False) as pipe:
        check_equal(answer, pipe.generate(PROMPT, **FIELDS, seed=1))


def test_what_prepares_a_burst_and_fails_fails_nobody(
    lengths: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Endings, characters: frozenset[str]) -> torch.Tensor:
        raise RuntimeError("a tokenizer that cannot decode what it knows")

    monkeypatch.setattr(Endings, "of", failing)
    with load(*PAIRS["same tokenizer"]) as pipe:
        check_equal(pipe.generate(PROMPT, **LONG), long_answer())
    assert lengths == {0: 1}


def test_sets_of_characters_are_remembered_and_forgotten() -> None:
    endings = Endings(tokenizer("ascii"), [0])
    first = endings.of(frozenset("a"))
    assert endings.of(frozenset("a")) is first
    for number in range(100):
        endings.of(frozenset(chr(200 + number)))
    assert len(endings._known) <= 16
    assert torch.equal(endings.of(frozenset("a")), first)


def test_a_vocabulary_is_asked_for_once_where_nothing_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one is made anew each time, which takes a quarter of a second."""
    made, asked = byte_level(), []
    own = type(made).get_vocab
    monkeypatch.setattr(type(made), "get_vocab", lambda self: asked.append(self) or own(self))
    language = Language.of(made, "m", None, Calls.of(made))
    endings = Endings(made, language.eos_ids)
    assert asked == [made]
    assert language.size == max(own(made).values()) + 1
    assert endings.of(frozenset())[made.eos_token_id]
