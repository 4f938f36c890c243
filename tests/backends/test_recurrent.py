"""Recurrent layers over slots: equal to full recompute, and no more is read again than has to be."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch import launch
from rsd_integrations.backends.torch.forwards import Compiled
from rsd_integrations.backends.torch.plan import PREFILL_CHUNK, SlotFeed
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.recurrent import RecurrentRunner
from rsd_integrations.backends.torch.slot_session import SlotSession
from rsd_integrations.backends.torch.states import is_recurrent
from rsd_integrations.engine import job
from rsd_integrations.errors import ModelError
from tests.backends.test_slots import close, run_a_history
from tests.backends.test_slots import runner_of as slot_runner
from tests.backends.test_speculation import ASKED, ask, check_equal
from tests.oracle import Party
from tests.recording import Recordings
from tests.test_oracle import GREEDY, PROMPTS, check_all
from tests.tiny_models import (
    ARCHITECTURES,
    RECURRENT,
    causal,
    config,
    memory_of,
    token_classifier,
    tokenizer,
    trio,
)


def runner_of(model: Any, slots: int = 4, capacity: int = 128, **options: Any) -> RecurrentRunner:
    made = slot_runner(model, slots, capacity, **options)
    assert isinstance(made, RecurrentRunner)
    return made


@contextmanager
def forwards(model: Any) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens) of each forward in the block."""
    shapes: list[tuple[int, int]] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape))
    )
    try:
        yield shapes
    finally:
        hook.remove()


def usual(architecture: str, way: str) -> bool:
    """How forwards are launched is not the architecture's matter, so by default two are recorded."""
    return way == "called" or (way == "recorded" and architecture in ("Qwen3_5Text", "FalconH1"))


@pytest.mark.parametrize(
    ("architecture", "way"),
    [
        pytest.param(architecture, way, marks=[] if usual(architecture, way) else pytest.mark.slow)
        for architecture in RECURRENT
        for way in ("called", "in runs", "recorded")
    ],
)
def test_any_history_gives_what_a_full_forward_gives(architecture: str, way: str) -> None:
    """Rows of all lengths, appended to, rolled back to anywhere, dropped and begun anew."""
    if way == "recorded" and architecture == "Qwen3Next":
        pytest.skip("experts are recorded in bfloat16 only")
    model, recordings = causal(architecture, 3), Recordings()
    assert is_recurrent(model.config)
    runner = runner_of(model, capacity=96, launcher=recordings.launcher if way == "recorded" else None)
    if way == "in runs":
        runner.most_gathered = 0
    for seed in range(2):
        run_a_history(model, runner, random.Random(f"{architecture} {seed}"))
        for slot in range(4):
            runner.release(slot)
    assert (recordings.replayed > recordings.recorded) == (way == "recorded")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_attends_alone_is_not_recurrent(architecture: str) -> None:
    assert not is_recurrent(config(architecture, seed_vocabulary=50).get_text_config())


def test_a_rejected_step_is_not_read_again_nor_what_was_before_it() -> None:
    """Back to the step's beginning, after however many tokens: nothing but the new step is read."""
    model = causal("Qwen3_5Text", 3)
    runner = runner_of(model)
    session, slot = list(range(5, 15)), runner.claim()[0]
    runner.run([SlotFeed(slot, 0, session, base=10)])
    for round_ in range(3):
        base = len(session)
        for token in range(0, 20, 2):  # Written one by one, or as guesses, and then rejected.
            pair = [token + round_, token]
            feeds = [pair] if token % 8 == 6 else [pair[:1], pair[1:]]
            for place, tokens in enumerate(feeds):
                runner.run([SlotFeed(slot, base + token + place, tokens, base=base)])
        new = [30 + round_, 31, 32]
        with forwards(model) as shapes:
            output = runner.run([SlotFeed(slot, base, new, base=base)])[0]
        assert shapes == [(1, 3)]
        session += new
        assert close(model, output, session)


def test_few_states_are_kept_of_a_long_text() -> None:
    """However long a step with guesses is, and however many steps there are."""
    model, rng = causal("Lfm2", 3), random.Random(4)
    runner = runner_of(model, capacity=400)
    slot, text, base = runner.claim()[0], [1, 2, 3], 3
    runner.run([SlotFeed(slot, 0, text, base=3)])
    while len(text) < 380:
        new = [rng.randrange(90) for _ in range(rng.choice([1, 1, 4]))]
        outputs = runner.run([SlotFeed(slot, len(text), new, base=base)])
        text += new
        base = len(text) if rng.random() < 0.1 else base
        places = runner.cache._texts[slot].places
        positions = [place.position for place in places]
        assert positions == sorted(set(positions))
        assert sum(place.settled for place in places) <= 2
        assert len(places) <= 3
    assert close(model, outputs[0], text)


def test_far_before_any_state_it_reads_on_in_chunks() -> None:
    """Which no session asks for, and which must not be wrong or take the memory of one long forward."""
    model = causal("Lfm2", 3, max_position_embeddings=4096)
    runner = runner_of(model, slots=1, capacity=3 * PREFILL_CHUNK)
    text = [7 + number % 80 for number in range(2 * PREFILL_CHUNK + 100)]
    slot = runner.claim()[0]
    for start in range(0, len(text), 50):
        runner.run([SlotFeed(slot, start, text[start : start + 50], base=start)])
    back = text[: PREFILL_CHUNK + 300]
    with forwards(model) as shapes:
        output = runner.run([SlotFeed(slot, len(back), [5])])[0]
    assert close(model, output, [*back, 5])
    assert max(tokens for _, tokens in shapes) <= PREFILL_CHUNK + 1


def test_rows_of_equal_length_share_a_forward() -> None:
    model = causal("FalconH1", 3)
    runner = runner_of(model)
    texts = [[slot + 2, 9, 4] for slot in range(4)]
    with forwards(model) as shapes:
        outputs = runner.run([SlotFeed(slot, 0, text) for slot, text in enumerate(texts)])
        outputs = runner.run([SlotFeed(slot, 3, [8] * (1 + slot // 3)) for slot in range(4)])
    assert sorted(shapes) == [(1, 2), (3, 1), (4, 3)]
    for slot, (text, output) in enumerate(zip(texts, outputs, strict=True)):
        assert close(model, output, [*text, *[8] * (1 + slot // 3)])


def test_a_place_to_read_may_lie_within_what_is_read_again() -> None:
    """Guesses behind a rollback: outputs at each of them, none of what is read once more before."""
    model, text = causal("GraniteMoeHybrid", 3), list(range(5, 17))
    runner = runner_of(model)
    for start in range(12):
        runner.run([SlotFeed(0, start, text[start : start + 1])])
    read = runner.run([SlotFeed(0, 6, [40, 41, 42, 43], 1, 2)])[0]
    assert isinstance(read, Read)
    assert len(read.fetched) == 3
    for place in range(3):
        one = Read(read.kept_R[place : place + 1], read.fetched[place : place + 1])
        assert close(model, one, [*text[:6], *[40, 41, 42, 43][: place + 2]])


def test_one_bad_row_fails_alone_and_leaves_the_others_states() -> None:
    model = causal("Qwen3_5Text", 3)
    runner = runner_of(model)
    for slot in range(3):
        runner.run([SlotFeed(slot, 0, [slot + 3, 4])])
    outputs = runner.run([SlotFeed(0, 2, [1, 2]), SlotFeed(1, 2, [10**6, 2]), SlotFeed(2, 2, [3, 4])])
    assert isinstance(outputs[1], Exception)
    assert close(model, outputs[0], [3, 4, 1, 2])
    assert close(model, outputs[2], [5, 4, 3, 4])
    again = runner.run([SlotFeed(1, 2, [6, 7])])
    assert close(model, again[0], [4, 4, 6, 7])


def test_a_first_forward_that_fails_half_way_spoils_no_later_one() -> None:
    model = causal("Qwen3_5Text", 3)
    runner = runner_of(model)
    hook = model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        assert isinstance(runner.run([SlotFeed(0, 0, [4, 5])])[0], Exception)
    finally:
        hook.remove()
    assert close(model, runner.run([SlotFeed(0, 0, [4, 5])])[0], [4, 5])


def test_states_that_a_failed_forward_has_overwritten_are_not_relied_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = causal("Qwen3_5Text", 3)
    runner = runner_of(model)
    for start in range(3):
        runner.run([SlotFeed(0, start, [start + 4])])
    with monkeypatch.context() as patch:
        patch.setattr("rsd_integrations.backends.torch.runner.Fetch", lambda source: 1 / 0)
        assert isinstance(runner.run([SlotFeed(0, 3, [7])])[0], Exception)
    assert close(model, runner.run([SlotFeed(0, 2, [9])])[0], [4, 5, 9])


def test_a_slot_that_was_given_back_is_begun_anew() -> None:
    model = causal("Qwen3_5Text", 3)
    runner = runner_of(model, slots=1)
    slot = runner.claim()[0]
    runner.run([SlotFeed(slot, 0, [1, 2, 3])])
    runner.run([SlotFeed(slot, 3, [4, 5], base=3)])
    runner.release(slot, [1, 2, 3])
    assert not runner.cache._texts[slot].places  # It holds no memory for nobody.
    assert runner.claim([1, 2, 3])[0] == slot
    assert close(model, runner.run([SlotFeed(slot, 0, [4, 5])])[0], [4, 5])


def test_the_next_turn_of_a_chat_reads_what_is_new() -> None:
    model = causal("Qwen3_5Text", 3)
    runner = runner_of(model, slots=2, capacity=300, keeps=True)
    prompt = [5 + number % 70 for number in range(100)]
    asked = [
        (prompt, 100),
        ([*prompt, 7, 8, 9], 3),
        (prompt, 1),  # Of the same again all but the last token is known.
        ([*prompt[:60], 2, 3], 62),  # Another text, before any state that is kept.
    ]
    with forwards(model) as shapes:
        for text, read in asked:
            del shapes[:]
            session = SlotSession(runner, tuple(text), None)
            feed = session.feed()
            output = runner.run([feed])[0]
            assert sum(rows * tokens for rows, tokens in shapes) == read
            assert close(model, output, text)
            assert isinstance(output, Read)
            session.fed(feed, output)
            session.close()


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_what_candidates_share_is_read_once(rate: float) -> None:
    """The prompt, and the steps that were kept, the target's too; the last token of them by each."""
    draft, target = causal("Qwen3_5Text", 0, "ascii"), causal("Lfm2", 1, "ascii")
    how = {"temperature": 1.0, "seed": 2, "step_delimiter": "e", "max_step_tokens": 9, "max_tokens": 60}
    prompt = "She buys 9 more; how many has she now? " * 3
    with (
        RSDPipeline.from_pretrained(**recurrent(draft, target), device="cpu") as pipe,
        forwards(draft) as shapes,
    ):
        made = pipe.generate(prompt, draft_candidates=4, weighting="constant", acceptance_rate=rate, **how)
    read, usage = sum(rows * tokens for rows, tokens in shapes), made.usage
    # Each candidate's tokens, once more the first of each step, and what was kept of the target's.
    rewritten = sum(step.target_tokens for step in made.steps)
    assert usage.prompt_tokens <= read
    assert read <= usage.prompt_tokens + usage.draft.generated + 4 * len(made.steps) + rewritten
    assert (rewritten > 10) == (rate < 1)


def test_other_questions_on_long_documents_read_them_in_part() -> None:
    """From the last chunk that both begin with; of the answer to the first nothing is needed for that, nor of
    who had the slot before.
    """
    model = causal("Lfm2", 3, max_position_embeddings=4096)
    runner = runner_of(model, slots=2, capacity=6 * PREFILL_CHUNK, keeps=True)
    documents = [7 + number % 80 for number in range(5 * PREFILL_CHUNK + 100)]
    for prompt in ([5, 6, 7], [*documents, 1, 2, 3]):
        first = SlotSession(runner, tuple(prompt), None)
        for _ in range(30):
            while first.cached < len(first.tokens):
                feed = first.feed()
                first.fed(feed, runner.run([feed])[0])  # type: ignore[arg-type]
            first.tokens.append(9)
            if len(first.tokens) % 3 == 0:
                first.keep()
        first.close()
    assert runner.pool.known([*documents, 5]) == 5 * PREFILL_CHUNK
    assert runner.pool.known([*documents[: 5 * PREFILL_CHUNK - 50], 5]) == 4 * PREFILL_CHUNK
    places = runner.cache._texts[0].places
    assert len([place for place in places if place.position < len(documents)]) <= 3
    second = SlotSession(runner, (*documents, 5), None)
    feed = second.feed()
    assert close(model, runner.run([feed])[0], [*documents, 5])
    assert len(feed.tokens) == 101


def test_a_copy_forgets_what_its_slot_had_read_otherwise() -> None:
    """A candidate's own step was not the one that was kept."""
    model, text = causal("Qwen3_5Text", 3), [5, 6, 7, 8]
    runner = runner_of(model)
    for slot, step in enumerate(([20, 21, 22, 23, 24], [30, 31, 32, 33, 34])):
        runner.run([SlotFeed(slot, 0, text, base=4)])
        for place, token in enumerate(step):
            runner.run([SlotFeed(slot, 4 + place, [token], base=4)])
    for end in (9, 6):
        runner.cache.copy(0, 1, 4, end)
        known = runner.cache._texts[1]
        assert all(position <= end for position in known.held.values())
        assert all(place.position <= end for place in known.places)
        assert close(model, runner.run([SlotFeed(1, end, [9])])[0], [*[*text, 20, 21, 22, 23, 24][:end], 9])
        runner.run([SlotFeed(1, 4, [30, 31, 32, 33, 34])])


def test_others_wait_for_the_same_prompt_and_not_for_another() -> None:
    """A prompt that begins alike, but goes another way, would know nothing of it."""
    runner = runner_of(causal("Qwen3_5Text", 3), capacity=300, keeps=True)
    prompt = tuple(5 + number % 70 for number in range(150))
    first = SlotSession(runner, prompt, None)
    assert SlotSession(runner, prompt, None).waits([first])
    assert SlotSession(runner, (*prompt, 9, 9), None).waits([first])
    assert not SlotSession(runner, (*prompt[:140], *[3] * 90), None).waits([first])
    documents = tuple(5 + number % 70 for number in range(2 * PREFILL_CHUNK))
    reading = SlotSession(runner, (*documents, 1, 2), None)
    assert SlotSession(runner, (*documents[:-9], 3), None).waits([reading])  # For the first chunk.
    first.fed(feed := first.feed(), runner.run([feed])[0])  # type: ignore[arg-type]
    assert runner.pool.known([*prompt, 9]) == 150
    assert runner.pool.known([*prompt[:140], 9]) == 0
    first.close()


def test_answers_are_the_same_recorded_and_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token, in company, with guesses, with candidates, past rejected steps."""
    models, recordings = recurrent("Qwen3_5Text", "Lfm2"), Recordings()
    with RSDPipeline.from_pretrained(**models, device="cpu") as pipe:
        called = [ask(pipe, given) for given in ASKED[::3]]
    monkeypatch.setattr(launch, "recorder_for", lambda device: recordings)
    with RSDPipeline.from_pretrained(**models, device="cpu") as pipe, ThreadPoolExecutor() as pool:
        recorded = list(pool.map(lambda given: ask(pipe, given), ASKED[::3]))
    assert recordings.replayed > 2 * recordings.recorded > 0
    for one, other in zip(called, recorded, strict=True):
        check_equal(one, other)


def test_a_prm_may_be_recurrent() -> None:
    models = recurrent("Qwen2", "Llama")
    three = tuple(Party(*source) for source in models.values())
    with RSDPipeline.from_pretrained(**models, device="cpu") as pipe:
        check_all(three, pipe, [(PROMPTS[number % 3], terms) for number, terms in enumerate(GREEDY[::2])])  # type: ignore[arg-type]


def test_memory_counts_states_and_the_keys_of_layers_that_attend(tmp_path: Any) -> None:
    tok, model = tokenizer("ascii"), causal("Qwen3_5Text", 0, "ascii")
    runner = runner_of(model, slots=2, capacity=64)
    runner.run([SlotFeed(0, 0, [1, 2, 3])])
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    for source in (str(tmp_path), (model, tok)):
        memory = memory_of("draft", source, max_length=64)
        assert 2 * memory.cache_per_token * 65 == runner.cache.bytes
        states = [store[0] for store in runner.cache.stores]
        assert memory.states == 8 * sum(state.numel() * state.element_size() for state in states)
    assert model.dtype == torch.float32  # A loaded model stays as it is.


def recurrent(draft: Any, target: Any) -> dict[str, Any]:
    return trio(draft, target) | {"prm": (token_classifier(0, "ascii", "Qwen3_5Text"), tokenizer("ascii"))}


@pytest.mark.slow  # Compiling takes half a minute.
def test_compiled_ones_read_any_history() -> None:
    model = causal("Lfm2", 3)
    runner = runner_of(model, capacity=96, launcher=lambda slots, capacity: Compiled)
    run_a_history(model, runner, random.Random(1))


@pytest.mark.parametrize("guesses", [True, False])
def test_guesses_do_not_have_the_text_before_them_read_again(
    guesses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewrite behind a long prompt, and one behind many steps that were kept."""
    monkeypatch.setattr(job, "GUESSING_PAYS", 0)
    draft, target = causal("Qwen3_5Text", 0, "ascii"), causal("Qwen3_5Text", 1, "ascii")
    how = {"step_delimiter": "e", "max_step_tokens": 12, "max_tokens": 100, "temperature": 1.0, "seed": 1}
    prompt = "The quick brown fox jumps over it. " * 8
    with RSDPipeline.from_pretrained(**recurrent(draft, target), device="cpu", max_length=500) as pipe:
        for rate in (0.0, 0.8):
            with forwards(target) as shapes:
                made = pipe.generate(
                    prompt, weighting="constant", acceptance_rate=rate, speculation=guesses, **how
                )
            read = sum(rows * tokens for rows, tokens in shapes)
            assert any(step.target_tokens for step in made.steps)
            # Wrong guesses are read, too, and a few tokens before them once more.
            assert read < made.usage.prompt_tokens + (3 if guesses else 1.2) * made.usage.completion_tokens


def mamba() -> Any:
    fields = {"vocab_size": len(tokenizer("ascii")), "hidden_size": 16, "state_size": 4}
    made = transformers.MambaForCausalLM(transformers.MambaConfig(num_hidden_layers=2, **fields))
    made.generation_config.eos_token_id = 1
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def test_states_that_are_not_carried_on_are_found_out() -> None:
    """Of Mamba 1 transformers reads several tokens as if nothing had been before them."""
    with pytest.raises(ModelError, match="does not read several tokens on"):
        RSDPipeline.from_pretrained(**recurrent(mamba(), "Llama"), device="cpu")
