"""Slot caches against full recompute, over ragged histories of appends and rollbacks."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import pytest
import torch

from rsd_integrations.backends.torch.forwards import Compiled
from rsd_integrations.backends.torch.plan import PREFILL_CHUNK, SlotFeed
from rsd_integrations.backends.torch.readout import Read, read_logits
from rsd_integrations.backends.torch.recurrent import RecurrentRunner
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.slot_session import SlotSession, to_feed
from rsd_integrations.backends.torch.states import is_recurrent
from tests.recording import Recordings
from tests.tiny_models import ARCHITECTURES, EXPERTS, causal


def runner_of(
    model: Any,
    slots: int = 4,
    capacity: int = 128,
    launcher: Any = None,
    *,
    keeps: bool = False,
    parameters: int = 0,
    traces: bool = False,
) -> SlotRunner:
    kind = RecurrentRunner if is_recurrent(model.config) else SlotRunner
    return kind(
        model.config,
        read_logits(model),
        device=torch.device("cpu"),
        dtype=torch.float32,
        slots=slots,
        capacity=capacity,
        parameters=parameters,
        launcher=launcher and launcher(slots, capacity),
        model=model,
        traces=traces,
        prefix_caching=keeps,
    )


@torch.no_grad()
def recomputed(model: Any, tokens: list[int]) -> torch.Tensor:
    """The last logits by an ordinary forward over all tokens."""
    logits: torch.Tensor = model(torch.tensor([tokens], device=model.device), use_cache=False).logits[0, -1]
    return logits


@functools.lru_cache(maxsize=2000)
def _remembered(model: Any, tokens: tuple[int, ...]) -> torch.Tensor:
    """``recomputed``, once for all ways to run one history. Of models that nobody changes."""
    return recomputed(model, list(tokens))


def close(model: Any, output: Any, tokens: list[int], expected: torch.Tensor | None = None) -> bool:
    """Whether an output at the last token is what an ordinary forward gives, or what is expected."""
    assert isinstance(output, Read), output
    expected = recomputed(model, tokens) if expected is None else expected
    assert output.fetched[-1] == int(output.kept_R[-1].argmax())
    return float((output.kept_R[-1] - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize("way", ["called", pytest.param("keys gathered", marks=pytest.mark.slow), "recorded"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_history_gives_what_a_full_forward_gives(architecture: str, way: str) -> None:
    """Rows of all lengths, appended to, rolled back, dropped and begun anew, past any window."""
    model, recordings = causal(architecture, 3), Recordings()
    runner = runner_of(model, capacity=96, launcher=recordings.launcher if way == "recorded" else None)
    runner.most_gathered = math.inf if way == "keys gathered" else 0
    run_a_history(model, runner, random.Random(architecture))
    assert (recordings.replayed > recordings.recorded) == (way == "recorded")


@pytest.mark.parametrize("architecture", EXPERTS)
def test_a_history_of_a_mixture_of_experts(architecture: str) -> None:
    model = causal(architecture, 3)
    run_a_history(model, runner_of(model, capacity=96), random.Random(architecture))


def run_a_history(model: Any, runner: SlotRunner, rng: random.Random) -> None:
    vocabulary = model.config.get_text_config().vocab_size
    rows: dict[int, list[int]] = {slot: [] for slot in (runner.pool.claim()[0] for _ in range(4))}
    for _ in range(14):
        feeds, chosen = [], rng.sample(sorted(rows), rng.randint(1, 4))
        for slot in chosen:
            tokens = rows[slot]
            if rng.random() < 0.1 or len(tokens) > 60:
                tokens = []
            kept = tokens[: rng.randint(0, len(tokens))] if rng.random() < 0.5 else tokens
            new = [rng.randrange(vocabulary) for _ in range(rng.choice([1, 1, 2, 5, 20]))]
            rows[slot] = kept + new
            feeds.append(SlotFeed(slot, len(kept), new))
        for slot, output in zip(chosen, runner.run(feeds), strict=True):
            assert close(model, output, rows[slot], _remembered(model, tuple(rows[slot])))


@pytest.mark.parametrize("architecture", ["Qwen2", "GPT2", "Gemma3Text"])
def test_one_token_each_in_slots_here_and_there(architecture: str) -> None:
    """With few idle ones between they are a block; with many, runs."""
    model = causal(architecture, 3)
    runner = runner_of(model, slots=9)
    for slots in ([1], [0, 2], [0, 2, 3], [0, 8], [1, 2, 5, 6, 8], [0, 1, 3, 4, 5, 6, 8]):
        texts = [[7 + slot, 3, 5 + slot] for slot in slots]
        for length in range(3):
            feeds = [
                SlotFeed(slot, length, text[length : length + 1])
                for slot, text in zip(slots, texts, strict=True)
            ]
            for text, output in zip(texts, runner.run(feeds), strict=True):
                assert close(model, output, text[: length + 1])


@pytest.mark.parametrize(
    ("parameters", "launcher", "forwards"),
    [(10**6, None, 1), (10**9, None, 2), (10**6, lambda slots, capacity: Compiled, 2)],
)
def test_lengths_share_a_forward_where_it_costs_less(parameters: int, launcher: Any, forwards: int) -> None:
    """Guesses beside single tokens. Compiled, single tokens are the fast ones, and stay alone."""
    model, tokens, ran = causal("Qwen2", 3), list(range(5, 27)), []
    runner = runner_of(model, launcher=launcher, parameters=parameters)
    runner.run([SlotFeed(slot, 0, tokens[:9]) for slot in range(4)])
    forward = runner.forward
    runner.forward = lambda feeds, **more: ran.append(feeds) or forward(feeds, **more)  # type: ignore
    feeds = [SlotFeed(slot, 9, tokens[9 : 22 if slot == 1 else 10]) for slot in range(4)]
    runner._launcher = None  # Compiling takes long.
    for feed, output in zip(feeds, runner.run(feeds), strict=True):
        assert close(model, output, tokens[: 9 + len(feed.tokens)])
    assert len(ran) == forwards


def test_the_place_to_read_may_lie_within_a_feed() -> None:
    model, tokens = causal("Qwen2", 3), [5, 9, 13, 21, 34]
    runner = runner_of(model)
    for read in range(5):
        output = runner.run([SlotFeed(0, 0, tokens, read), SlotFeed(2, 0, tokens[:4], -1)])
        assert close(model, output[0], tokens[: read + 1])
        assert close(model, output[1], tokens[:4])


def test_one_bad_row_fails_alone() -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model)
    outputs = runner.run([SlotFeed(0, 0, [1, 2]), SlotFeed(1, 0, [10**6, 2]), SlotFeed(2, 0, [3, 4])])
    assert isinstance(outputs[1], Exception)
    assert close(model, outputs[0], [1, 2])
    assert close(model, outputs[2], [3, 4])


def test_a_released_slot_is_clean() -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model, slots=2)
    slot = runner.pool.claim()[0]
    runner.run([SlotFeed(slot, 0, [1, 2, 3])])
    with torch.inference_mode():
        for layer in runner.cache.layers:
            layer.keys[slot, :, :3] = float("nan")
            layer.values[slot, :, :3] = float("nan")
    runner.release(slot)
    assert runner.pool.free == 2
    again, other = runner.pool.claim()[0], runner.pool.claim()[0]
    assert again == slot
    # Beside a longer row the stale positions are within reach, masked or not.
    outputs = runner.run([SlotFeed(again, 0, [4, 5, 6]), SlotFeed(other, 0, [1, 2, 3, 4])])
    assert close(model, outputs[0], [4, 5, 6])


def test_a_session_feeds_each_token_once_in_chunks() -> None:
    runner = runner_of(causal("Qwen2", 3), capacity=3 * PREFILL_CHUNK)
    session = SlotSession(runner, tuple(range(PREFILL_CHUNK + 10)), None)
    assert session.feed(guesses=[1, 2]).more == 0  # They come with the last chunk.
    fed = []
    while session.cached < len(session.tokens):
        feed = session.feed()
        fed += feed.tokens
        session.fed(feed, Read(torch.empty(0), []))
    assert fed == session.tokens
    assert session.tally.forwarded == PREFILL_CHUNK + 10
    session.tokens += [1, 2, 3]
    session.replace((7, 8))  # Rolled back before it was fed: only the replacement is.
    assert session.feed().tokens == [7, 8]
    session.close()
    session.close()
    assert runner.pool.free == 4


def test_long_texts_are_read_one_after_the_other_and_short_ones_meanwhile() -> None:
    """Read together, each would be done when the last one is, and all others would wait for that."""
    runner = runner_of(causal("Qwen2", 3), slots=6, capacity=3 * PREFILL_CHUNK)
    half = PREFILL_CHUNK // 2
    lengths = (3, PREFILL_CHUNK + 10, half, half - 1, 2 * PREFILL_CHUNK, 5)
    sessions = [SlotSession(runner, tuple(range(length)), None) for length in lengths]
    read = []
    while going := [session for session in sessions if session.cached < len(session.tokens)]:
        chosen = [going[place] for place in to_feed(going)]
        read.append([(sessions.index(session), len(session.feed().tokens)) for session in chosen])
        for session in chosen:
            session.fed(session.feed(), Read(torch.empty(0), []))
    assert read == [
        [(0, 3), (1, PREFILL_CHUNK), (3, half - 1), (5, 5)],
        [(1, 10), (2, half), (4, PREFILL_CHUNK)],
        [(4, PREFILL_CHUNK)],
    ]


def test_whoever_waits_to_be_read_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all slots, which takes long for many long texts."""
    runner = runner_of(causal("Qwen2", 3), slots=6, capacity=5 * PREFILL_CHUNK, keeps=True)
    sessions = [SlotSession(runner, (n, *range(20, 4 * PREFILL_CHUNK)), None) for n in range(6)]
    looked, known = [0], runner.pool.known

    def counted(tokens: Any) -> int:
        looked[0] += 1
        return known(tokens)

    monkeypatch.setattr(runner.pool, "known", counted)
    assert to_feed(sessions) == [0]
    first = looked[0]
    sessions[0].feed()
    for _ in range(3):
        assert to_feed(sessions) == [0]
    assert looked[0] == first


def test_what_a_slot_knows_makes_no_long_text() -> None:
    """The next turn of a chat does not wait for others' prompts."""
    runner = runner_of(causal("Qwen2", 3), capacity=2 * PREFILL_CHUNK, keeps=True)
    first = SlotSession(runner, tuple(range(7, 87)) * 6, None)
    runner.run([first.feed()])
    first.cached = len(first.tokens)
    first.close()
    other = SlotSession(runner, tuple(range(86, 6, -1)) * 7, None)
    turn = SlotSession(runner, (*first.tokens, 1, 2, 3), None)
    assert to_feed([other, turn]) == [0, 1]


def test_a_session_that_is_never_asked_takes_no_slot() -> None:
    runner = runner_of(causal("Qwen2", 3), slots=1)
    sessions = [SlotSession(runner, (1, 2, 3), None) for _ in range(5)]
    assert runner.pool.free == 1
    sessions[3].feed()
    assert runner.pool.free == 0
    for session in sessions:
        session.close()
    assert runner.pool.free == 1
