"""Steps as OpenTelemetry spans, through LlamaIndex's own integration.

It pins llama-index-instrumentation below the version that the rest is tested with, so ``.ci/run`` runs this
in an environment of its own.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("llama_index.observability.otel", reason="see .ci/run: in an environment of its own")

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.embeddings import MockEmbedding
from llama_index.observability.otel import LlamaIndexOpenTelemetry
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.testing import scripted_pipeline
from tests.counting import ANSWER, QUESTION
from tests.follower import follow
from tests.llama_index.entries import ENTRIES, text_of
from tests.llama_index.spans import STEPS, find, otel_tree

EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    LlamaIndexOpenTelemetry(span_exporter=EXPORTER, span_processor="simple").start_registering()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    EXPORTER.clear()
    return EXPORTER


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_tree_with_attributes_and_events(llm: Any, exporter: InMemorySpanExporter, entry: str) -> None:
    assert text_of(ENTRIES[entry](llm)[-1]) == ANSWER
    spans = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    assert otel_tree(spans) == [(f"RSDLLM.{entry}", STEPS)]
    steps = [span for span in spans if span.name == "rsd_step"]
    assert [step.attributes["rsd.reward"] for step in steps] == [0.9, 0.1, 0.8]  # type: ignore[index]
    told = [event.name for step in steps for event in step.events]
    assert told == ["RSDStepAcceptedEvent", "RSDStepRejectedEvent", "RSDStepAcceptedEvent"]


@pytest.mark.parametrize("streaming", [True, False])
async def test_below_the_model_in_rag(llm: Any, exporter: InMemorySpanExporter, streaming: bool) -> None:
    index = VectorStoreIndex.from_documents([Document(text="x")], embed_model=MockEmbedding(embed_dim=4))
    exporter.clear()
    response: Any = await index.as_query_engine(llm=llm, streaming=streaming).aquery(QUESTION)
    if streaming:
        assert "".join([text async for text in response.async_response_gen()]) == ANSWER
    tree = otel_tree(exporter.get_finished_spans())
    (model,) = find(tree, "RSDLLM.astream_chat" if streaming else "RSDLLM.achat")
    assert model[1] == STEPS


async def test_below_the_model_in_an_agent(exporter: InMemorySpanExporter) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    with scripted_pipeline(follow) as pipe:
        agent = FunctionAgent(tools=[add], llm=RSDLLM.from_pipeline(pipe))
        assert str(await agent.run("Add 2 and 3.")) == "The tool says 5."
    models = find(otel_tree(exporter.get_finished_spans()), "RSDLLM.astream_chat")
    assert [[step[0] for step in model[1]] for model in models] == [["rsd_step"] * 2, ["rsd_step"]]
