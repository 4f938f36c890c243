"""Steps as OpenTelemetry spans, through openinference's integration, with an in-memory exporter."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.embeddings import MockEmbedding
from openinference.instrumentation import TraceConfig
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.testing import scripted_pipeline
from tests.counting import ANSWER, QUESTION
from tests.follower import follow
from tests.llama_index.entries import ENTRIES, text_of
from tests.llama_index.spans import KEPT, STEPS, find, otel_tree


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    # It warns of each event that is not its own (openinference#2918).
    logging.getLogger("openinference.instrumentation.llama_index._handler").setLevel(logging.ERROR)
    yield exporter
    instrumentor.uninstrument()


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_tree(llm: Any, exporter: InMemorySpanExporter, entry: str) -> None:
    assert text_of(ENTRIES[entry](llm)[-1]) == ANSWER
    spans = exporter.get_finished_spans()
    assert otel_tree(spans) == [(f"RSDLLM.{entry}", STEPS)]
    assert len({span.context.trace_id for span in spans}) == 1
    assert not trace.get_current_span().is_recording()


def test_what_is_to_be_hidden_is(llm: Any) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = LlamaIndexInstrumentor()
    hiding = TraceConfig(hide_inputs=True, hide_outputs=True)
    instrumentor.instrument(tracer_provider=provider, config=hiding)
    try:
        llm.complete(QUESTION)
    finally:
        instrumentor.uninstrument()
    told = "".join(span.to_json() for span in exporter.get_finished_spans()).lower()
    assert "rsd.accepted" in told
    assert [word for word in ("two", "three", QUESTION.lower()) if word in told] == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_the_spans_say(llm: Any, exporter: InMemorySpanExporter, entry: str) -> None:
    ENTRIES[entry](llm)
    spans = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    (model,) = [span for span in spans if span.name.startswith("RSDLLM.")]
    assert model.attributes["openinference.span.kind"] == "LLM"
    assert model.attributes["llm.token_count.prompt"] == 16
    assert model.attributes["llm.token_count.completion"] == 16
    steps = [span for span in spans if span.name == "rsd_step"]
    assert [step.attributes["rsd.accepted"] for step in steps] == [True, False, True]
    assert [step.attributes["rsd.reward"] for step in steps] == [0.9, 0.1, 0.8]
    assert [step.attributes["rsd.source"] for step in steps] == ["draft", "target", "draft"]
    assert steps[1].attributes["rsd.threshold"] == 0.7
    told = json.loads(str(steps[1].attributes["output.value"]))
    assert (told["text"], told["rejected_text"]) == ("TWO\n\n", "two\n\n")
    scores = [span for span in spans if span.name == "rsd_score"]
    assert [score.attributes["rsd.reward"] for score in scores] == [0.9, 0.1, 0.8]
    for span in spans:
        if span.name.startswith("rsd_"):
            assert span.attributes["openinference.span.kind"] == "CHAIN"
            assert not [name for name in span.attributes if "token_count" in name]


def test_a_failure(exporter: InMemorySpanExporter) -> None:
    def script(prompt: Any, index: int, text: str) -> str | Exception:
        return OSError("it broke") if index else "one\n\n"

    with scripted_pipeline(script) as pipe, pytest.raises(OSError, match="it broke"):
        RSDLLM.from_pipeline(pipe).complete(QUESTION)
    failed = {span.name for span in exporter.get_finished_spans() if not span.status.is_ok}
    assert failed == {"RSDLLM.complete", "rsd_step", "rsd_draft"}


@pytest.mark.parametrize("streaming", [True, False])
async def test_below_the_model_in_rag(llm: Any, exporter: InMemorySpanExporter, streaming: bool) -> None:
    index = VectorStoreIndex.from_documents([Document(text="x")], embed_model=MockEmbedding(embed_dim=4))
    engine = index.as_query_engine(llm=llm, streaming=streaming)
    exporter.clear()
    response: Any = engine.query(QUESTION)
    assert ("".join(response.response_gen) if streaming else str(response)) == ANSWER
    tree = otel_tree(exporter.get_finished_spans())
    assert len(tree) == 1
    (model,) = find(tree, "RSDLLM.stream_chat" if streaming else "RSDLLM.chat")
    assert model[1] == STEPS
    exporter.clear()
    aresponse: Any = await engine.aquery(QUESTION)
    if streaming:
        assert "".join([text async for text in aresponse.async_response_gen()]) == ANSWER
    tree = otel_tree(exporter.get_finished_spans())
    assert len(tree) == 1
    (model,) = find(tree, "RSDLLM.astream_chat" if streaming else "RSDLLM.achat")
    assert model[1] == STEPS


@pytest.mark.parametrize("streaming", [True, False])
async def test_below_the_model_in_an_agent(exporter: InMemorySpanExporter, streaming: bool) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    with scripted_pipeline(follow) as pipe:
        agent = FunctionAgent(tools=[add], llm=RSDLLM.from_pipeline(pipe), streaming=streaming)
        assert str(await agent.run("Add 2 and 3.")) == "The tool says 5."
    tree = otel_tree(exporter.get_finished_spans())
    assert len(tree) == 1
    models = find(tree, "RSDLLM.astream_chat" if streaming else "RSDLLM.achat")
    assert [[step[0] for step in model[1]] for model in models] == [["rsd_step"] * 2, ["rsd_step"]]
    assert models[1][1] == [KEPT]


def test_a_span_of_the_users_own_is_not_written_on(llm: Any) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("mine").start_as_current_span("mine"):
        llm.complete(QUESTION)
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes or {}) == {}
