"""Forwards that run ahead of the host: of tokens that only the device knows."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.torch import launch
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.slot_session import SlotSession
from tests.backends.test_slots import recomputed, runner_of
from tests.backends.test_speculation import FIELDS, PAIRS, check_equal, load
from tests.recording import Recordings
from tests.tiny_models import causal

PROMPTS = ("Ava has 12 marbles. She buys 9 more.", "Hi.", "What is left of 7 apples? " * 3)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    made = Recordings()
    monkeypatch.setattr(launch, "recorder_for", lambda device: made)
    return made


def runner_and_model() -> tuple[SlotRunner, Any]:
    model = causal("Qwen2", 3)
    return runner_of(model, launcher=Recordings().launcher), model


def run(runner: SlotRunner, *feeds: SlotFeed, ahead: bool = True) -> list[Read]:
    made = runner.run(feeds, ahead=ahead)
    assert all(isinstance(output, Read) for output in made)
    return made  # type: ignore[return-value]


def test_what_ran_ahead_is_what_would_have_run() -> None:
    runner, model = runner_and_model()
    slots, texts = [runner.pool.claim()[0], runner.pool.claim()[0]], [[5], [9]]
    early = False
    for length in range(1, 12):
        feeds = [
            SlotFeed(slot, length - 1, [text[-1]], early=early)
            for slot, text in zip(slots, texts, strict=True)
        ]
        for text, output in zip(texts, run(runner, *feeds), strict=True):
            assert output.ahead == early
            assert output.fetched == [int(recomputed(model, text).argmax())]
            text.append(output.fetched[0])
            assert output.followed
        early = True


def test_it_ends_where_the_shape_ends() -> None:
    """A recording reads so many positions and no more: the next one starts afresh."""
    runner = runner_of(causal("Qwen2", 3), capacity=512, launcher=Recordings().launcher)
    slot = runner.pool.claim()[0]
    run(runner, SlotFeed(slot, 0, [3] * 254))
    assert run(runner, SlotFeed(slot, 254, [4]))[0].followed
    assert not run(runner, SlotFeed(slot, 255, [4], early=True))[0].followed
    assert run(runner, SlotFeed(slot, 256, [4], early=True))[0].followed


def test_it_is_not_taken_for_what_it_is_not() -> None:
    """A slot whose past has changed does not say so by its place and token: its feed is not early."""
    runner, model = runner_and_model()
    slot = runner.pool.claim()[0]
    token = run(runner, SlotFeed(slot, 0, [5]))[0].fetched[0]
    output = run(runner, SlotFeed(slot, 1, [token]))[0]
    assert not output.ahead
    assert output.fetched == [int(recomputed(model, [5, token]).argmax())]


def test_a_step_put_in_place_of_another_is_fed() -> None:
    """One token in the place of the one that ran ahead."""
    runner, model = runner_and_model()
    session = SlotSession(runner, (5,), None)
    output = run(runner, feed := session.feed())[0]
    session.fed(feed, output)
    session.tokens += output.fetched
    session.follow([other := output.fetched[0] - 1])
    assert run(runner, session.feed())[0].fetched == [int(recomputed(model, [5, other]).argmax())]


def test_company_that_joins_or_leaves() -> None:
    runner, model = runner_and_model()
    one, two = runner.pool.claim()[0], runner.pool.claim()[0]
    first = run(runner, SlotFeed(one, 0, [5]), SlotFeed(two, 0, [9]))
    # One leaves: the other takes what ran ahead.
    alone = run(runner, SlotFeed(two, 1, first[1].fetched, early=True))[0]
    assert (alone.ahead, alone.followed) == (True, True)
    # It comes back, with something else: both get what is theirs.
    again, other = run(runner, SlotFeed(one, 1, [7]), SlotFeed(two, 2, alone.fetched, early=True))
    assert (again.ahead, other.ahead) == (False, True)
    assert (again.followed, other.followed) == (False, False)
    assert again.fetched == [int(recomputed(model, [5, 7]).argmax())]
    expected = recomputed(model, [9, *first[1].fetched, *alone.fetched])
    assert other.fetched == [int(expected.argmax())]


def test_it_does_not_write_to_a_slot_that_was_given_back() -> None:
    runner, _ = runner_and_model()
    one, two = runner.pool.claim()[0], runner.pool.claim()[0]
    first = run(runner, SlotFeed(one, 0, [5]), SlotFeed(two, 0, [9]))
    runner.release(one)
    run(runner, SlotFeed(two, 1, first[1].fetched, early=True))
    layer = runner.cache.layers[0]
    assert not layer.keys[one, :, : runner.capacity].any()


def test_numbers_that_are_no_tokens_are_not_fed() -> None:
    """The device goes on before the host has seen that the logits are not finite."""
    runner, _ = runner_and_model()
    slot = runner.pool.claim()[0]
    run(runner, SlotFeed(slot, 0, [5]), ahead=False)
    with torch.inference_mode():
        runner.cache.layers[0].values[slot, :, 0] = float("nan")
    assert run(runner, SlotFeed(slot, 1, [6]))[0].fetched == [-1]
    assert run(runner, SlotFeed(slot, 2, [7], early=True))[0].fetched == [-1]


def ask(pipe: RSDPipeline, number: int) -> Generation:
    rng = random.Random(number)
    more: dict[str, Any] = {
        "acceptance_rate": rng.choice([0.0, 0.5, 1.0]),
        "speculation": rng.random() < 0.5,
        "temperature": rng.choice([0.0, 0.0, 0.0, 0.9]),
        "max_step_tokens": rng.choice([1, 2, 7, 20]),
        "max_tokens": rng.randint(1, 60),
    }
    return pipe.generate(PROMPTS[number % 3], **{**FIELDS, **more}, seed=number)


@pytest.mark.parametrize("pair", ["other tokenizer", pytest.param("sliding window", marks=pytest.mark.slow)])
def test_a_storm_of_requests(pair: str, recordings: Recordings) -> None:
    """Of all kinds, many at once, some given up: each of the others gets what it gets alone."""
    with load(*PAIRS[pair]) as pipe, ThreadPoolExecutor(12) as pool:
        given_up = [pipe.stream(PROMPTS[2], **FIELDS, seed=seed) for seed in range(4)]
        running = [pool.submit(ask, pipe, number) for number in range(9)]
        for stream in given_up:
            next(stream)
            stream.close()
        together = [one.result() for one in running]
        ahead = sum(one.usage.draft.forwarded + one.usage.target.forwarded for one in together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "recorder_for", lambda device: None)
        with load(*PAIRS[pair]) as pipe:
            alone = [ask(pipe, number) for number in range(9)]
    for one, other in zip(together, alone, strict=True):
        check_equal(one, other)
    # What ran ahead in vain is counted.
    assert ahead > sum(one.usage.draft.forwarded + one.usage.target.forwarded for one in alone)


def forwarded(pipe: RSDPipeline, runs_ahead: bool, **fields: Any) -> tuple[int, int]:
    """Tokens that went through draft and target, and the number of steps."""
    for role in ("draft", "target"):
        getattr(pipe.backend, role).runner.runs_ahead = runs_ahead
    given = {**FIELDS, "acceptance_rate": 0.5, "speculation": False, "seed": 3, **fields}
    generation = pipe.generate(PROMPTS[0], **given)
    usage = generation.usage
    return usage.draft.forwarded + usage.target.forwarded, len(generation.steps)


def test_one_token_a_step_of_each_at_most_is_in_vain(recordings: Recordings) -> None:
    """And none where nothing is rejected, or where a limit ends the step, which is known before."""
    with load(*PAIRS["same tokenizer"]) as pipe:
        for fields, in_vain in (
            ({}, True),
            ({"acceptance_rate": 1.0}, False),
            ({"step_delimiter": "\0", "max_step_tokens": 7}, False),
        ):
            (ahead, steps), (usual, _) = (forwarded(pipe, on, **fields) for on in (True, False))
            assert 0 <= ahead - usual <= 2 * steps
            assert (ahead > usual) == in_vain
