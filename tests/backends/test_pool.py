"""Slots that know what earlier requests read, and what must not come of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.pool import LEAST_SHARED, shared
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.slot_session import SlotSession, to_feed
from rsd_integrations.errors import ConfigError
from tests.backends.test_slots import close
from tests.backends.test_slots import runner_of as slot_runner
from tests.tiny_models import ARCHITECTURES, RECURRENT, causal, trio

HEAD = [5 + index % 40 for index in range(LEAST_SHARED)]
FIELDS: dict[str, Any] = {
    "weighting": "constant",
    "acceptance_rate": 0.5,
    "step_delimiter": ("e", "\n\n"),
    "max_tokens": 40,
    "max_step_tokens": 10,
}
CONTEXT = "The sky is blue, and the grass is green, and nobody ever said that it was otherwise. " * 3


def runner_of(model: Any, *, slots: int = 4, keeps: bool = True) -> SlotRunner:
    return slot_runner(model, slots, 200, keeps=keeps)


def read_all(runner: SlotRunner, session: SlotSession) -> tuple[Any, int]:
    """The output at the last token, and how many tokens were fed for it."""
    fed, output = 0, None
    while session.cached < len(session.tokens):
        feed = session.feed()
        (output,) = runner.run([feed])
        session.fed(feed, output)  # type: ignore[arg-type]
        fed += len(feed.tokens)
    return output, fed


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *RECURRENT])
def test_any_order_of_requests_gives_what_full_forwards_give(architecture: str) -> None:
    """Requests that begin like others, at work or gone, copied, moved out of the way and cut off."""
    model, rng = causal(architecture, 3), random.Random(architecture)
    runner = runner_of(model)
    texts, open_now, saved = [HEAD * 3], [], 0
    for _ in range(40):
        if len(open_now) == 4 or (open_now and rng.random() < 0.4):
            open_now.pop(rng.randrange(len(open_now))).close()
        root = rng.choice(texts)
        text = root[: rng.randint(len(root) // 3, len(root))] + [
            rng.randint(5, 60) for _ in range(rng.randint(1, 12))
        ]
        text = text[:180]
        texts.append(text)
        session = SlotSession(runner, tuple(text), None)
        output, fed = read_all(runner, session)
        assert close(model, output, text)
        assert session.tally.forwarded == len(text)
        saved += len(text) - fed
        open_now.append(session)
        if rng.random() < 0.3 and len(text) > 2:
            # Rolled back, so that less is known than was written.
            session.base = len(text) // 2
            session.replace(())
    # States are known in few places, and here most texts end before them.
    assert saved > 100 or architecture in RECURRENT


def test_the_next_turn_reads_only_what_is_new() -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model)
    one = SlotSession(runner, tuple(HEAD * 3), None)
    assert read_all(runner, one)[1] == len(HEAD) * 3
    one.close()
    text = [*HEAD * 3, 7, 8, 9]
    output, fed = read_all(runner, SlotSession(runner, tuple(text), None))
    assert fed == 3
    assert close(model, output, text)


def test_the_same_again_reads_its_last_token() -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model)
    for number in range(3):
        session = SlotSession(runner, tuple(HEAD * 2), None)
        output, fed = read_all(runner, session)
        assert fed == (1 if number else len(HEAD) * 2)
        assert close(model, output, HEAD * 2)
        assert session._slot == 0
        session.close()


def test_two_chats_in_turns_both_stay_known() -> None:
    runner = runner_of(causal("Qwen2", 3), slots=3)
    chats = [HEAD * 2 + [number] * 20 for number in (50, 51)]
    fed = []
    for _ in range(3):
        for chat in chats:
            chat += [7, 8]
            session = SlotSession(runner, tuple(chat), None)
            fed.append(read_all(runner, session)[1])
            # One request alone is always in the first slot.
            assert session._slot == 0
            session.close()
    assert fed == [54, 22, 2, 2, 2, 2]


@pytest.mark.parametrize(("length", "kept"), [(40, 0), (20, 1)])
def test_a_chat_that_went_on_elsewhere_is_forgotten_first_where_it_was(length: int, kept: int) -> None:
    """Not one that is older and was not gone on with, nor one of which little went on elsewhere."""
    runner = runner_of(causal("Qwen2", 3), slots=4)
    old, chat, between, new = ([number] * 40 for number in (50, 51, 52, 53))
    fed = []
    for text in (old, chat, between, [*chat[:length], 7, 8], new, [*(old, chat)[kept], 7]):
        session = SlotSession(runner, tuple(text), None)
        fed.append(read_all(runner, session)[1])
        session.close()
    assert fed == [40, 40, 40, 2, 40, 1]


def test_nothing_is_moved_onto_what_is_wanted() -> None:
    """Of two slots one knows the text and is the older: what lies in the other has to go."""
    model = causal("Qwen2", 3)
    runner = runner_of(model, slots=2)
    for text, fed in ((HEAD * 2, 32), ([60] * 30, 30), (HEAD * 2, 1)):
        session = SlotSession(runner, tuple(text), None)
        output, read = read_all(runner, session)
        assert read == fed
        assert close(model, output, text)
        session.close()


def test_what_is_read_just_now_is_waited_for_and_copied() -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model)
    texts = [HEAD * 6 + [number] for number in (50, 51, 52)] + [[60] * 30]
    sessions = [SlotSession(runner, tuple(text), None) for text in texts]
    assert to_feed(sessions) == [0, 3]
    fed = [read_all(runner, sessions[0])[1]]
    assert to_feed(sessions[1:3]) == [0, 1]
    for session, text in zip(sessions[1:3], texts[1:3], strict=True):
        output, more = read_all(runner, session)
        fed.append(more)
        assert close(model, output, text)
    assert fed == [len(HEAD) * 6 + 1, 1, 1]


def test_nothing_is_kept_where_that_is_off() -> None:
    runner = runner_of(causal("Qwen2", 3), keeps=False)
    sessions = [SlotSession(runner, tuple(HEAD * 6), None) for _ in range(2)]
    assert to_feed(sessions) == [0, 1]
    assert [read_all(runner, session)[1] for session in sessions] == [len(HEAD) * 6] * 2
    sessions[0].close()
    assert read_all(runner, SlotSession(runner, tuple(HEAD * 6), None))[1] == len(HEAD) * 6


@pytest.mark.parametrize("busy", [True, False])
def test_what_is_not_sound_is_read_by_nobody_else(busy: bool) -> None:
    """A row that failed or whose outputs were not finite may have left anything in its slot."""
    model = causal("Qwen2", 3)
    runner = runner_of(model)
    bad = SlotSession(runner, tuple(HEAD * 2), None)
    read_all(runner, bad)
    assert isinstance(runner.run([SlotFeed(bad.feed().slot, len(HEAD) * 2, [10**6])])[0], Exception)
    if not busy:
        bad.close()
    output, fed = read_all(runner, SlotSession(runner, tuple(HEAD * 2), None))
    assert fed == len(HEAD) * 2
    assert close(model, output, HEAD * 2)


def test_outputs_that_are_not_finite_spoil_a_slot() -> None:
    runner = runner_of(causal("Qwen2", 3))
    session = SlotSession(runner, tuple(HEAD * 2), None)
    read_all(runner, session)
    slot = session.feed().slot
    with torch.inference_mode():
        for layer in runner.cache.layers:
            layer.values[slot, :, 3] = float("nan")
    feed = SlotFeed(slot, len(HEAD) * 2, [7])
    (output,) = runner.run([feed])
    assert not output.sound  # type: ignore[union-attr]
    session.close()
    for layer in runner.cache.layers:
        assert not layer.values[slot].any()


def test_common_beginnings() -> None:
    rng = random.Random(0)
    for _ in range(300):
        one, other = ([rng.randint(0, 1) for _ in range(rng.randint(0, 9))] for _ in range(2))
        expected = next(
            (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
            min(len(one), len(other)),
        )
        assert shared(one, other) == expected


def load(**options: Any) -> RSDPipeline:
    return RSDPipeline.from_pretrained(**trio(), device="cpu", **options)


@pytest.fixture(scope="module")
def expected() -> Iterator[list[Any]]:
    with load(prefix_caching=False) as pipe:
        yield [ask(pipe, number) for number in range(8)]


def ask(pipe: RSDPipeline, number: int) -> Any:
    given = {**FIELDS, "seed": number, "temperature": 0.8 if number % 2 else 0.0}
    made = pipe.generate(CONTEXT + "And?" * (number % 3), **given)
    return made.text, [step.accepted for step in made.steps], made.usage.target, made.usage.prm


def test_whole_answers_are_the_same_and_read_less(expected: list[Any]) -> None:
    """Alone, one behind the other, then all at once: texts, decisions and what they cost."""
    with load() as pipe:
        read = []
        for model in (pipe.backend.draft, pipe.backend.target, pipe.backend.prm):
            readout = model.runner._readout  # type: ignore[attr-defined]

            def counting(inputs: Any, *more: Any, readout: Any = readout) -> Any:
                read.append(inputs["input_ids"].numel())
                return readout(inputs, *more)

            model.runner._readout = counting  # type: ignore[attr-defined]
        assert [ask(pipe, number) for number in range(8)] == expected
        alone = sum(read)
        read.clear()
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda number: ask(pipe, number), range(8)))
        # What the PRM and the target cost is a request's own affair in any company.
        assert together == expected
    forwarded = sum(usage.forwarded for answer in expected for usage in answer[2:])
    assert alone < forwarded


def test_it_is_a_choice_of_two() -> None:
    with pytest.raises(ConfigError, match="prefix_caching='yes'"):
        load(prefix_caching="yes")


def test_what_is_copied_from_the_family_is_wiped_with_its_slot() -> None:
    """Even if the request ends before the slot is fed."""
    runner = runner_of(causal("Qwen2", 3))
    one, other = (SlotSession(runner, tuple(HEAD), None) for _ in range(2))
    other.join(one)
    read_all(runner, one)
    other.catch_up()
    assert other.caught_up
    slot = other._slot
    assert any(layer.values[slot].any() for layer in runner.cache.layers)
    other._seen = lambda: []  # type: ignore[method-assign]
    other.close()
    assert not any(layer.values[slot].any() for layer in runner.cache.layers)


def test_forgetting_keeps_the_live_and_shares_nothing() -> None:
    """What was read before the weights changed is of no use to anybody else."""
    runner = runner_of(causal("Qwen2", 3))
    pool, tokens = runner.pool, [*HEAD, 1]
    (free, _), (live, _) = pool.claim(), pool.claim(seen=lambda: tokens)
    pool.release(free, tokens)
    assert pool.known(tokens) == len(tokens)
    pool.forget()
    assert pool.known(tokens) == 0
    pool.release(live, tokens)
    assert pool.known(tokens) == 0
    again, known = pool.claim(tokens, seen=lambda: tokens)
    assert known == 0
    pool.release(again, tokens)
    assert pool.known(tokens) == len(tokens)
