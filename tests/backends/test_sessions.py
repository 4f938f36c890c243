"""What a session keeps and forgets, token by token, without running a model."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_integrations import RSDPipeline
from rsd_integrations.prm.base import Feed
from rsd_integrations.protocols import DraftStep, Kept, Sampling, Written
from rsd_integrations.text.segment import StepBoundary
from tests.tiny_models import tokenizer, trio

WORK = DraftStep(StepBoundary(("\n\n",)), 20, Sampling(0.0, 1.0, None, lambda: 0.0))


@pytest.fixture(scope="module")
def pipe() -> Any:
    with RSDPipeline.from_pretrained(**trio(flavours="a"), device="cpu") as pipe:
        yield pipe


def tokens(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False))


def test_half_a_character_of_a_rejected_step_is_forgotten(pipe: RSDPipeline) -> None:
    backend: Any = pipe.backend
    session, second = backend.draft.open("x"), tokens("字")
    session.begin(WORK)
    for token in tokens("漢")[:2]:
        session.push(token)
    session.commit(
        Kept("target", Written("", second[:2], "limit", None, backend.draft.vocabulary), ""), own=False
    )
    session.begin(WORK)
    session.push(second[2])
    assert session.written("limit").text == "字"
    assert tuple(session.tokens[-3:]) == second


def test_half_a_character_of_an_accepted_step_becomes_whole_in_the_next(pipe: RSDPipeline) -> None:
    backend: Any = pipe.backend
    session, first = backend.draft.open("x"), tokens("漢")
    session.begin(WORK)
    for token in first[:2]:
        session.push(token)
    written = session.written("limit")
    assert written.text == ""
    session.commit(Kept("draft", written, ""), own=True)
    session.begin(WORK)
    session.push(first[2])
    assert session.written("limit").text == "漢"


def test_a_prm_format_is_told_how_many_steps_there_are(
    pipe: RSDPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = pipe.backend
    session, asked = backend.prm.open("x"), []

    def step(body: str, index: int) -> Feed:
        asked.append((body, index))
        return Feed((5, 6, 7), read=2, probe=1)

    monkeypatch.setattr(backend.prm.format, "step", step)
    start = len(session.tokens)
    session.begin("one")
    session.commit(Kept("draft", Written("one\n\n", (1,), "delimiter"), "one"), own=True)
    assert session.tokens[start:] == [5, 6]  # The probe served the reading alone.
    session.commit(Kept("target", Written("\n", (1,), "limit"), ""), own=False)
    session.commit(Kept("target", Written("two\n\n", (1,), "delimiter"), "two"), own=False)
    session.begin("three")
    assert session.tokens[start:] == [5, 6, 5, 6, 5, 6, 7]
    assert set(asked) == {("one", 0), ("two", 1), ("three", 2)}
