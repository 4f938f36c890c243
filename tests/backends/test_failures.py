"""What fails one request of a batch outside of its forward fails no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch.scorer import TorchScorerSession
from rsd_integrations.backends.torch.slot_session import SlotSession
from rsd_integrations.backends.torch.slots import SlotCache
from rsd_integrations.backends.torch.writer_session import TorchWriterSession
from rsd_integrations.errors import BackendError, DeviceMemoryError, RSDError
from tests.backends.test_pool import HEAD, read_all, runner_of
from tests.backends.test_slots import close
from tests.tiny_models import causal, tokenizer, trio

PROMPTS = ["Ava has 12 marbles. " + question for question in ("zzz", "How many?", "Where is she?", "Hi")]
FIELDS: dict[str, Any] = {
    "step_delimiter": ("e", " ", "a"),
    "weighting": "constant",
    "acceptance_rate": 0.6,
    "temperature": 0.8,
    "max_tokens": 20,
    "seed": 0,
}


class PanicException(BaseException):
    """As of libraries in Rust: no ``Exception``."""


@pytest.fixture(scope="module")
def four() -> Iterator[tuple[RSDPipeline, list[str]]]:
    """A pipeline of four rows, and what it answers to each prompt alone. It goes on behind each failure."""
    with RSDPipeline.from_pretrained(**trio(), device="cpu", max_batch_size=4) as pipe:
        yield pipe, [pipe.generate(prompt, **FIELDS).text for prompt in PROMPTS]


def of_the_first(session: SlotSession) -> bool:
    """Whether it is of the request that is to fail."""
    return "zzz" in tokenizer("ascii").decode(session.tokens[: session.prompt_tokens])


@pytest.mark.parametrize(
    ("owner", "method", "raised", "told"),
    [
        (SlotSession, "_claimed", torch.OutOfMemoryError("no room"), DeviceMemoryError),
        (SlotSession, "catch_up", MemoryError("no room"), DeviceMemoryError),
        (TorchWriterSession, "recall", ValueError("no such token"), BackendError),
        (TorchWriterSession, "take", PanicException("retry limit"), BackendError),
        (TorchWriterSession, "row", torch.OutOfMemoryError("no room"), DeviceMemoryError),
        (TorchScorerSession, "begin", PanicException("retry limit"), BackendError),
    ],
    ids=["claim", "catch up", "recall", "take", "draw", "lay out"],
)
def test_one_request_fails_alone(
    owner: type[SlotSession],
    method: str,
    raised: BaseException,
    told: type[RSDError],
    four: tuple[RSDPipeline, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe, alone = four
    real: Callable[..., Any] = getattr(owner, method)

    def failing(self: Any, *given: Any, **named: Any) -> Any:
        if of_the_first(self):
            raise raised
        return real(self, *given, **named)

    backend: Any = pipe.backend
    all_there, advance = threading.Event(), backend.draft.advance

    def waiting(sessions: Any) -> Any:
        if len(sessions) == len(PROMPTS):
            all_there.set()
        return advance(sessions) if all_there.is_set() else [None] * len(sessions)

    monkeypatch.setattr(backend.draft, "advance", waiting)
    monkeypatch.setattr(owner, method, failing)
    streams = [pipe.stream(prompt, **FIELDS) for prompt in PROMPTS]
    with pytest.raises(told, match=str(raised)) as failed:
        streams[0].result()
    assert failed.value.__cause__ is raised
    assert [stream.result().text for stream in streams[1:]] == alone[1:]
    assert [getattr(backend, role).runner.pool.free for role in ("draft", "target", "prm")] == [4, 4, 4]


@pytest.fixture
def halfway(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Copies fail halfway, until it is undone."""

    @torch.inference_mode()
    def copy(self: SlotCache, source: int, target: int, start: int, end: int) -> None:
        for states in self.states():
            states[target, :, start : (start + end) // 2] = states[source, :, start : (start + end) // 2]
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(SlotCache, "copy", copy)
    return monkeypatch


@pytest.mark.parametrize("of", ["what is wanted", "what has to make room"])
def test_a_copy_that_fails_halfway_leaves_nothing_to_be_taken_for_what_was_there(
    of: str, halfway: pytest.MonkeyPatch
) -> None:
    """The next request with the text that was there reads it anew."""
    model = causal("Qwen2", 3)
    runner = runner_of(model, slots=2)
    sevens, chat = [7] * 40, [*HEAD * 2, 60, 61]
    first, second = (sevens, chat) if of == "what is wanted" else (chat, sevens)
    sessions = [SlotSession(runner, tuple(text), None) for text in (first, second)]
    for session in sessions:
        read_all(runner, session)
    if of == "what is wanted":  # The free slot knows sevens, and is given a part of the chat.
        sessions[0].close()
        other = [*HEAD * 2, 62, 63, 64]
    else:  # Both are free; the chat moves to where the sevens are, which were used before.
        for session in reversed(sessions):
            session.close()
        other = [9] * 40
    with pytest.raises(torch.OutOfMemoryError):
        SlotSession(runner, tuple(other), None).feed()
    halfway.undo()
    output, fed = read_all(runner, again := SlotSession(runner, tuple(sevens), None))
    assert fed == 40 and close(model, output, again.tokens)


def test_a_candidate_s_slot_is_wiped_of_a_copy_that_failed_halfway(halfway: pytest.MonkeyPatch) -> None:
    runner = runner_of(causal("Qwen2", 3))
    one, other = (SlotSession(runner, tuple(HEAD), None) for _ in range(2))
    other.join(one)
    read_all(runner, one)
    with pytest.raises(torch.OutOfMemoryError):
        other.catch_up()
    assert other._slot is not None and any(states[other._slot].any() for states in runner.cache.states())
    slot = other._slot
    other.close()
    assert not any(states[slot].any() for states in runner.cache.states())
