"""Steps as spans and events of LlamaIndex's instrumentation, in every way to call."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.embeddings import MockEmbedding
from llama_index_instrumentation.base import BaseEvent

from rsd_integrations import RSDPipeline, Step
from rsd_integrations.functions import FunctionScorer, RemoteFunctionScorer, RewardFunction
from rsd_integrations.llama_index import RSDLLM, RSDStepAcceptedEvent, RSDStepEvent, RSDStepRejectedEvent
from rsd_integrations.protocols import Backend
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.testing import ScriptedWriter, scripted_pipeline
from tests.awaited import Awaited
from tests.counting import ANSWER, QUESTION, counting_pipeline
from tests.llama_index.entries import ENTRIES, STREAMS, text_of
from tests.llama_index.spans import KEPT, STEPS, recording


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_tree(llm: Any, entry: str) -> None:
    with recording() as record:
        assert text_of(ENTRIES[entry](llm)[-1]) == ANSWER
    assert record.roots == [(f"RSDLLM.{entry}", STEPS)]
    assert not any(span.open or span.error for span in record.spans.values())


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_events(llm: Any, entry: str) -> None:
    with recording() as record:
        ENTRIES[entry](llm)
    steps = [event for event in record.events if isinstance(event, RSDStepEvent)]
    assert [type(step) for step in steps] == [
        RSDStepAcceptedEvent,
        RSDStepRejectedEvent,
        RSDStepAcceptedEvent,
    ]
    assert [step.span_id for step in steps] == [span.id for span in record.named("rsd_step")]
    rejected = steps[1]
    assert (rejected.text, rejected.rejected_text) == ("TWO\n\n", "two\n\n")
    assert (rejected.reward, rejected.threshold, rejected.source) == (0.1, 0.7, "target")
    assert rejected.model_dump()["class_name"] == "RSDStepRejectedEvent"
    shown = [event.response for event in record.events if "InProgress" in type(event).__name__]
    if entry in STREAMS:
        assert [response.delta for response in shown] == ["one\n\n", "TWO\n\n", "three", ""]
        before = record.events.index(steps[1])
        assert "TWO" not in str(
            [event for event in record.events[:before] if "InProgress" in str(type(event))]
        )


def test_what_the_spans_say(llm: Any) -> None:
    with recording() as record:
        llm.complete(QUESTION)
    step = record.named("rsd_step")[1]
    assert step.inputs == {"index": 1, "threshold": 0.7}
    assert isinstance(step.result, Step)
    assert step.result.rejected_text == "two\n\n"
    assert record.named("rsd_draft")[1].result == {"text": "two\n\n"}
    assert record.named("rsd_score")[1].result["reward"] == 0.1
    (target,) = record.named("rsd_target")
    assert target.inputs == {"rejected_text": "two\n\n"}
    assert target.result == {"text": "TWO\n\n"}


def test_no_threshold_is_told_where_rewards_meet_none(llm: Any) -> None:
    with recording() as record:
        llm.complete(QUESTION, weighting="clip", threshold=0.4, seed=1)
    assert {span.inputs["threshold"] for span in record.named("rsd_step")} == {None}
    steps = [event for event in record.events if isinstance(event, RSDStepEvent)]
    assert {step.threshold for step in steps} == {None}


@pytest.mark.parametrize("entry", ENTRIES)
def test_trace_steps(llm: Any, entry: str) -> None:
    for level, below in (("steps", [("rsd_step", [])] * 3), ("off", [])):
        with recording() as record:
            ENTRIES[entry](llm, trace_steps=level)
        assert record.roots == [(f"RSDLLM.{entry}", below)]
        steps = [event for event in record.events if isinstance(event, RSDStepEvent)]
        assert len(steps) == 3
        if level == "off":
            assert {step.span_id for step in steps} == set(record.spans)


@pytest.mark.parametrize("entry", ENTRIES)
def test_one_model_alone(llm: Any, entry: str) -> None:
    for threshold, part in ((0.0, "rsd_draft"), (2.0, "rsd_target")):
        with recording() as record:
            ENTRIES[entry](llm, threshold=threshold)
        assert record.roots == [(f"RSDLLM.{entry}", [("rsd_step", [(part, [])])] * 3)]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_failure_leaves_no_span_open(entry: str) -> None:
    def script(prompt: Any, index: int, text: str) -> str | Exception:
        return OSError("it broke") if index else "one\n\n"

    broken = pytest.raises(OSError, match="it broke")
    with scripted_pipeline(script) as pipe, recording() as record, broken:
        ENTRIES[entry](RSDLLM.from_pipeline(pipe))
    assert not any(span.open for span in record.spans.values())
    failed = [span.name for span in record.spans.values() if isinstance(span.error, OSError)]
    assert {"rsd_step", "rsd_draft"} <= set(failed)
    assert record.roots[0][1][0] == KEPT


@pytest.mark.parametrize("entry", STREAMS)
def test_a_stream_that_is_left_early_leaves_no_span_open(llm: Any, entry: str) -> None:
    chat: Any = [ChatMessage(QUESTION)] if "chat" in entry else QUESTION

    async def leave() -> None:
        stream = await getattr(llm, entry)(chat)
        await anext(stream)
        await stream.aclose()
        del stream
        await asyncio.sleep(0.05)

    with recording() as record:
        if entry.startswith("a"):
            asyncio.run(leave())
        else:
            stream = getattr(llm, entry)(chat)
            next(stream)
            stream.close()
    assert record.named("rsd_step")
    assert not any(span.open for span in record.spans.values())


def test_broken_handlers_break_nothing(llm: Any) -> None:
    with recording() as record:
        record.spans = None  # type: ignore[assignment]
        record.events = None  # type: ignore[assignment]
        for ask in ENTRIES.values():
            assert text_of(ask(llm)[-1]) == ANSWER


def test_streams_side_by_side_keep_their_own_spans(llm: Any) -> None:
    with recording() as record:
        one, other = llm.stream_complete("one?"), llm.stream_complete("other?")
        for _ in zip(one, other, strict=True):
            pass
    assert record.roots == [("RSDLLM.stream_complete", STEPS)] * 2


async def test_async_streams_side_by_side_keep_their_own_spans(llm: Any) -> None:
    async def ask(text: str) -> None:
        async for _ in await llm.astream_complete(text):
            await asyncio.sleep(0)

    with recording() as record:
        await asyncio.gather(*(ask(str(number)) for number in range(4)))
    assert record.roots == [("RSDLLM.astream_complete", STEPS)] * 4


@pytest.mark.parametrize("streaming", [True, False])
async def test_below_the_model_in_rag(llm: Any, streaming: bool) -> None:
    index = VectorStoreIndex.from_documents([Document(text="x")], embed_model=MockEmbedding(embed_dim=4))
    engine = index.as_query_engine(llm=llm, streaming=streaming)
    with recording() as record:
        response: Any = engine.query(QUESTION)
        assert ("".join(response.response_gen) if streaming else str(response)) == ANSWER
    assert record.steps_below("RSDLLM.stream_chat" if streaming else "RSDLLM.chat") == STEPS
    # LlamaIndex calls the model of a stream only where that is read, outside of the query's spans.
    assert len(record.roots) == (2 if streaming else 1)
    with recording() as record:
        aresponse: Any = await engine.aquery(QUESTION)
        if streaming:
            assert "".join([text async for text in aresponse.async_response_gen()]) == ANSWER
    assert record.steps_below("RSDLLM.astream_chat" if streaming else "RSDLLM.achat") == STEPS
    assert len(record.roots) == (2 if streaming else 1)


def test_an_event_tells_all_of_its_step() -> None:
    # Which of the two kinds it is says whether the step was accepted.
    own = set(RSDStepEvent.model_fields) - set(BaseEvent.model_fields)
    assert own == set(Step.model_fields) - {"accepted"} | {"threshold"}


def test_candidates_are_told() -> None:
    with counting_pipeline() as pipe, recording() as record:
        RSDLLM.from_pipeline(pipe, draft_candidates=2, temperature=1.0).complete(QUESTION)
    steps = [event for event in record.events if isinstance(event, RSDStepEvent)]
    assert [len(step.candidates) for step in steps] == [2] * 3
    assert steps[0].candidates[0] == {"text": "one\n\n", "reward": 0.9}


@pytest.mark.parametrize("remote", [False, True])
def test_a_function_that_scores_sees_the_call_s_context_though_its_stream_is_read_elsewhere(
    remote: bool,
) -> None:
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    seen = set()

    def judged(prompt: Any, steps: tuple[str, ...]) -> float:
        seen.add(caller.get())
        return 0.9

    draft, target, judge = ScriptedWriter(["one\n\n", "two"]), ScriptedWriter([]), RewardFunction(judged)
    backend: Any = Backend(draft, target, FunctionScorer(judge), 2)
    if remote:
        backend = RemoteBackend(Awaited(draft), Awaited(target), RemoteFunctionScorer(judge), 2)
    with RSDPipeline(backend) as pipe:
        context = copy_context()
        context.run(caller.set, "somebody")
        stream = context.run(RSDLLM.from_pipeline(pipe).stream_complete, QUESTION)
        assert [*stream][-1].text == "one\n\ntwo"
    assert seen == {"somebody"}
