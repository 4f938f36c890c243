"""Drafts write on behind steps that wait for their reward: answers and counts stay what they were."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from rsd_integrations import RSDPipeline
from rsd_integrations.engine import tasks
from rsd_integrations.errors import ConfigError
from rsd_integrations.pocket.task import held_out
from rsd_integrations.types import Generation
from tests.gated import PATIENCE
from tests.vllm.conftest import Trio
from tests.vllm.test_answers import told

QUESTIONS = [problem.question for problem in held_out(3)]


@pytest.fixture
def without(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An answer of the same servers whose draft waits."""

    def answer(question: str, **fields: Any) -> Generation:
        with monkeypatch.context() as patched:
            patched.setattr(tasks, "AHEAD", 0)
            return trio.pipe.generate(question, **fields)

    return answer


def streams(trio: Trio) -> int:
    return sum(bool(body.get("stream")) for _, body in trio.draft.asked)


def until(true: Callable[[], bool]) -> bool:
    """Wait for it, not for ever."""
    end = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


SAMPLED = {"temperature": 1.0, "seed": 5}


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 0.5},
        {"weighting": "constant", "acceptance_rate": 1.0},
        {"weighting": "constant", "acceptance_rate": 0.5, **SAMPLED},
        {"weighting": "constant", "acceptance_rate": 0.8, **SAMPLED, "top_p": 0.8, "max_step_tokens": 7},
        {"weighting": "constant", "acceptance_rate": 0.8, **SAMPLED, "max_tokens": 40},
        {"weighting": "constant", "acceptance_rate": 0.9, **SAMPLED, "max_steps": 3, "stop": ["9"]},
        {"weighting": "constant", "acceptance_rate": 0.9, "step_delimiter": [".", ":"], **SAMPLED},
    ],
)
def test_answers_are_the_same_with_and_without(trio: Trio, without: Any, fields: dict[str, Any]) -> None:
    ahead = trio.pipe.generate(QUESTIONS[0], **fields)
    assert streams(trio) > 0
    trio.draft.asked.clear()
    waiting = without(QUESTIONS[0], **fields)
    assert streams(trio) == 0
    assert told(ahead) == told(waiting)
    assert [step.reward for step in ahead.steps] == [step.reward for step in waiting.steps]
    assert ahead.usage.flops.paper == waiting.usage.flops.paper
    assert ahead.usage.draft.generated == waiting.usage.draft.generated
    assert ahead.usage.draft.forwarded >= waiting.usage.draft.forwarded
    assert ahead.usage.target.forwarded == waiting.usage.target.forwarded


def test_nothing_is_in_vain_where_all_steps_are_kept(trio: Trio, without: Any) -> None:
    fields = {"weighting": "constant", "acceptance_rate": 1.0}
    ahead, waiting = trio.pipe.generate(QUESTIONS[0], **fields), without(QUESTIONS[0], **fields)
    assert ahead.usage == waiting.usage


def test_the_draft_writes_while_its_step_is_scored(trio: Trio) -> None:
    """The PRM's server answers only once the draft's has been asked for the next step."""
    missed = []

    def waits(handler: Any) -> bool:
        # One question of the draft for each step that was scored, and one more.
        missed.append(not until(lambda: len(trio.draft.asked) > len(trio.prm.asked)))
        return False

    trio.prm.faults += [waits] * 2
    trio.pipe.generate(QUESTIONS[0], weighting="constant", acceptance_rate=1.0)
    assert missed == [False, False]


def test_what_a_rejection_throws_away_is_left_and_counted(
    trio: Trio, without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slow draft the tokens that had come by then."""
    fields = {"threshold": 1.0, "max_steps": 2}  # No reward reaches it.
    waiting = without(QUESTIONS[0], **fields)
    monkeypatch.setattr(trio.draft, "pace", 0.05)
    monkeypatch.setattr(trio.draft, "streamed", 0)
    trio.draft.left.clear()
    trio.draft.asked.clear()

    def slow_from_here(handler: Any) -> bool:
        assert until(lambda: trio.draft.streamed > 3)
        trio.draft.pace = PATIENCE  # Whatever comes next comes too late, however long the rejection takes.
        return False

    trio.prm.faults += [slow_from_here]
    ahead = trio.pipe.generate(QUESTIONS[0], **fields)
    assert told(ahead) == told(waiting)
    assert streams(trio) == 1  # Behind a rejected step it waits for a kept one.
    assert trio.draft.left.wait(60)
    assert ahead.usage.draft.forwarded > waiting.usage.draft.forwarded
    assert ahead.usage.draft.generated == waiting.usage.draft.generated


def refuse(handler: Any) -> bool:
    handler.say(400, {"error": {"message": "no streams here"}})
    return True


def nonsense(handler: Any) -> bool:
    handler.say(200, b"data: {\n\n", Content_Type="text/event-stream")
    return True


def nothing(handler: Any) -> bool:
    handler.say(200, b"data: [DONE]\n\n", Content_Type="text/event-stream")
    return True


def others(handler: Any) -> bool:
    handler.say(200, b'data: {"error": "out of memory"}\n\n', Content_Type="text/event-stream")
    return True


def cut(handler: Any) -> bool:
    """It breaks off without a sign, as behind some proxies."""
    token = handler.server.double.tokenizer.encode("She", add_special_tokens=False)[:1]
    told = {"choices": [{"token_ids": token, "finish_reason": None, "stop_reason": None}]}
    handler.say(200, b"data: " + json.dumps(told).encode() + b"\n\n", Content_Type="text/event-stream")
    return True


def abort(handler: Any) -> bool:
    told = {"choices": [{"token_ids": [5], "finish_reason": "abort", "stop_reason": None}]}
    handler.say(200, b"data: " + json.dumps(told).encode() + b"\n\n", Content_Type="text/event-stream")
    return True


def drop(handler: Any) -> bool:
    handler.drop()
    return True


@pytest.mark.parametrize("fault", [refuse, nonsense, nothing, others, cut, abort, drop])
def test_where_it_fails_the_question_is_asked_again(trio: Trio, without: Any, fault: Any) -> None:
    fields = {"weighting": "constant", "acceptance_rate": 1.0, "temperature": 1.0, "seed": 1}
    waiting = without(QUESTIONS[1], **fields)

    def of_streams(handler: Any) -> bool:
        if trio.draft.asked[-1][1].get("stream"):
            return bool(fault(handler))
        return False

    trio.draft.faults += [of_streams] * 50
    assert told(trio.pipe.generate(QUESTIONS[1], **fields)) == told(waiting)


def test_a_stream_of_more_than_was_asked_for_is_left(trio: Trio, without: Any) -> None:
    """It would go on for ever, and the request wait for its end."""
    fields = {"weighting": "constant", "acceptance_rate": 1.0}
    waiting = without(QUESTIONS[1], **fields)
    told_all = {"choices": [{"token_ids": [5], "finish_reason": "length", "stop_reason": None}]}
    trio.draft.left.clear()

    def goes_on(handler: Any) -> bool:
        body = trio.draft.asked[-1][1]
        if not body.get("stream"):
            trio.draft.faults.append(goes_on)
            return False
        event = b"data: " + json.dumps(told_all).encode() + b"\n\n"
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + event * (body["max_tokens"] + 1)
        )
        handler.hang(PATIENCE)
        return True

    trio.draft.faults.append(goes_on)
    assert told(trio.pipe.generate(QUESTIONS[1], **fields)) == told(waiting)
    assert trio.draft.left.wait(10)


def test_an_answer_that_is_left_leaves_what_it_had_written_ahead(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio.draft, "pace", PATIENCE)
    trio.draft.left.clear()
    hangs = threading.Event()
    trio.prm.faults += [lambda handler: hangs.wait(PATIENCE) and False]
    with trio.pipe.stream(QUESTIONS[0], threshold=0.5) as events:
        next(events)
        assert until(lambda: streams(trio) > 0)
    assert trio.draft.left.wait(60)
    hangs.set()


def test_many_requests_do_without(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at when both have asked for their first reward; the last that is at work is alone."""
    monkeypatch.setattr(tasks, "AHEAD", 1)
    seen = []

    def waits(handler: Any) -> bool:
        assert until(lambda: len(trio.prm.asked) == 2)
        seen.append(streams(trio))
        return False

    both = len(trio.draft.asked) + 2
    trio.draft.faults += [lambda handler: until(lambda: len(trio.draft.asked) >= both) and False] * 2
    trio.prm.faults += [waits] * 2
    pair = [trio.pipe.stream(question, threshold=0.5) for question in QUESTIONS[:2]]
    for events in pair:
        events.result()
    assert seen[0] == 0


def test_it_can_be_turned_off(trio: Trio) -> None:
    with RSDPipeline.from_vllm(**trio.urls, draft_kwargs={"ahead": False}) as pipe:
        trio.draft.asked.clear()
        pipe.generate(QUESTIONS[0], threshold=0.5)
    assert streams(trio) == 0
    for role, given in (("target", False), ("draft", "no"), ("prm", True)):
        with pytest.raises(ConfigError, match=f"{role}_kwargs: ahead={given!r}. Give True or False"):
            RSDPipeline.from_vllm(**trio.urls, **{f"{role}_kwargs": {"ahead": given}})
