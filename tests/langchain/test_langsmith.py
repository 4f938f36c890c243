"""What the real LangSmith SDK posts, in every mode."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.langchain import LangChainTracer
from langsmith import Client, traceable
from langsmith.run_helpers import tracing_context

from cookbook.langsmith_collector import Collector
from rsd_integrations import RewardFunction, __version__
from rsd_integrations.errors import TimedOutError
from rsd_integrations.functions import FunctionScorer
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.protocols import Backend
from rsd_integrations.testing import ScriptedWriter, scripted_pipeline
from tests.counting import ANSWER, QUESTION
from tests.langchain.modes import MODES, NESTED

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")

KEPT = ("rsd.step", [("rsd.draft", []), ("rsd.score", [])])
REWRITTEN = ("rsd.step", [("rsd.draft", []), ("rsd.score", []), ("rsd.target", [])])
TREE = ("ChatRSD", [KEPT, REWRITTEN, KEPT])


@pytest.fixture
def smith() -> Iterator[tuple[Collector, Client]]:
    """A collector and a client that posts to it."""
    with Collector() as collector:
        client = Client(api_url=collector.url, api_key="none")
        yield collector, client
        client.close()


def traced(smith: tuple[Collector, Client], llm: Any, mode: str) -> Collector:
    """Call the model under a tracer and wait until all is posted."""
    collector, client = smith
    assert MODES[mode](llm, [LangChainTracer(client=client, project_name="tests")]) == ANSWER
    client.flush()
    return collector


def model_run(collector: Collector) -> dict[str, Any]:
    """The only run of a model."""
    (run,) = [run for run in collector.runs.values() if run["run_type"] == "llm"]
    return run


@pytest.mark.parametrize("mode", MODES)
def test_the_tree(smith: Any, llm: Any, mode: str) -> None:
    collector = traced(smith, llm, mode)
    run = model_run(collector)
    assert collector.tree(run) == TREE
    assert bool(run.get("parent_run_id")) == (mode in NESTED)
    assert_whole(collector)


def assert_whole(collector: Collector) -> None:
    """No orphan, nothing left open, one trace, children within their parents' order."""
    runs = collector.runs
    assert len({run["trace_id"] for run in runs.values()}) == 1
    for run in runs.values():
        assert run.get("end_time"), run["name"]
        assert run["start_time"] <= run["end_time"]
        if parent_id := run.get("parent_run_id"):
            assert run["dotted_order"].startswith(runs[parent_id]["dotted_order"])


@pytest.mark.parametrize("mode", MODES)
def test_usage_is_counted_once(smith: Any, llm: Any, mode: str) -> None:
    collector = traced(smith, llm, mode)
    run = model_run(collector)
    assert run["extra"]["metadata"]["usage_metadata"]["output_tokens"] == 16
    for other in collector.runs.values():
        metadata = other["extra"].get("metadata", {})
        if other["name"].startswith("rsd."):
            assert "usage_metadata" not in metadata
            assert "usage" not in str(other["outputs"])
            assert not [key for key in metadata if key.startswith("ls_")]


@pytest.mark.parametrize("mode", ["invoke", "stream", "ainvoke", "astream"])
def test_what_the_runs_say(smith: Any, llm: Any, mode: str) -> None:
    collector = traced(smith, llm, mode)
    run = model_run(collector)
    metadata = run["extra"]["metadata"]
    assert metadata["ls_provider"] == "rsd"
    assert metadata["ls_model_name"] == "scripted-target"
    assert metadata["ls_temperature"] == 0.0
    assert {key: metadata[key] for key in ("draft_model", "target_model", "prm_model", "threshold")} == {
        "draft_model": "scripted-draft",
        "target_model": "scripted-target",
        "prm_model": "scripted-prm",
        "threshold": 0.7,
    }
    assert metadata["lc_versions"]["rsd-integrations"] == __version__
    step = collector.children(run["id"])[1]
    assert step["outputs"]["rejected_text"] == "two\n\n"
    assert step["extra"]["metadata"]["rsd_threshold"] == 0.7
    assert step["extra"]["metadata"]["rsd_target_model"] == "scripted-target"
    draft, score, target = collector.children(step["id"])
    assert draft["outputs"]["text"] == "two\n\n"
    assert score["outputs"]["reward"] == 0.1
    assert target["inputs"]["rejected_text"] == "two\n\n"
    assert target["outputs"]["text"] == "TWO\n\n"


def test_no_threshold_is_traced_where_rewards_meet_none(smith: Any, pipe: Any) -> None:
    collector = traced(smith, ChatRSD.from_pipeline(pipe, weighting="clip", seed=1), "invoke")
    run = model_run(collector)
    assert run["extra"]["metadata"].get("threshold") is None
    steps = collector.children(run["id"])
    assert len(steps) == 3
    for step in steps:
        _, score, *_ = collector.children(step["id"])
        assert step["extra"]["metadata"].get("rsd_threshold") is None
        for told in (step["inputs"], step["outputs"], score["outputs"]):
            assert told["threshold"] is None


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
def test_a_secret_among_a_call_s_parameters_is_refused_and_not_traced(
    smith: Any, llm: Any, mode: str
) -> None:
    collector, client = smith
    config = {"callbacks": [LangChainTracer(client=client)]}
    for given in ({"api_key": "SECRET"}, {"token": "SECRET"}, {"extra_headers": {"x-api-key": "SECRET"}}):
        with pytest.raises(ValueError, match=next(iter(given))):
            MODES[mode](llm.bind(**given), config["callbacks"])
    client.flush()
    assert collector.runs
    assert "SECRET" not in str(collector.runs)


def test_the_parameters_of_a_call(smith: Any, pipe: Any) -> None:
    """The object's stop strings are in force, not what its weighting ignores; schemas are no secrets."""

    def traced_by(**settings: Any) -> dict[str, Any]:
        collector, client = smith
        collector.runs.clear()
        schema = {"type": "object", "properties": {"key": {"type": "string"}}}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        call = {"callbacks": [LangChainTracer(client=client)]}
        with contextlib.suppress(ValueError):
            ChatRSD.from_pipeline(pipe, **settings).invoke(QUESTION, call, response_format=form)
        client.flush()
        params: dict[str, Any] = model_run(collector)["extra"]["invocation_params"]
        assert params["response_format"] == form
        return params

    one = traced_by(stop=("END",), beta=3.0)
    assert (one["stop"], one["acceptance_rate"], one["beta"]) == (["END"], None, None)
    two = traced_by(weighting="constant", acceptance_rate=0.25)
    assert (two["stop"], two["acceptance_rate"], two["beta"]) == (None, 0.25, None)
    assert traced_by(weighting="logistic", beta=3.0)["beta"] == 3.0


@pytest.mark.parametrize("mode", ["invoke", "astream"])
def test_the_tree_of_one_model_alone(smith: Any, pipe: Any, mode: str) -> None:
    collector, client = smith
    for threshold, step in (
        (0.0, ("rsd.step", [("rsd.draft", [])])),
        (2.0, ("rsd.step", [("rsd.target", [])])),
    ):
        MODES[mode](ChatRSD.from_pipeline(pipe, threshold=threshold), [LangChainTracer(client=client)])
        client.flush()
        assert collector.tree(model_run(collector)) == ("ChatRSD", [step] * 3)
        assert_whole(collector)
        collector.runs.clear()


@pytest.mark.parametrize("mode", ["invoke", "astream"])
def test_a_timeout_leaves_no_run_open(smith: Any, mode: str) -> None:
    collector, client = smith
    with scripted_pipeline(lambda *_: "again\n\n", delay=0.001) as pipe:
        llm = ChatRSD.from_pipeline(pipe, timeout=0.05, max_steps=10**6)
        with pytest.raises(TimedOutError) as raised:
            MODES[mode](llm, [LangChainTracer(client=client)])
    client.flush()
    assert_whole(collector)
    assert "TimedOutError" in model_run(collector)["error"]
    *done, last = collector.children(model_run(collector)["id"])
    assert not any(step.get("error") for step in done)
    for cut_off in (last, *collector.children(last["id"])[-1:]):
        assert "TimedOutError" in cut_off["error"], "it did not end well"
    told = raised.value.generation
    assert told is not None
    assert (told.text, told.finish_reason) == ("again\n\n" * len(done), "cancelled")
    assert told.usage.draft.generated > 0
    assert pickle.loads(pickle.dumps(raised.value)).generation == told


def test_a_failure_leaves_no_run_open(smith: Any, failing: RSDPipeline) -> None:
    collector, client = smith
    llm = ChatRSD.from_pipeline(failing)
    for mode in ("invoke", "astream"):
        with pytest.raises(OSError, match="it broke"):
            MODES[mode](llm, [LangChainTracer(client=client)])
    client.flush()
    assert {run["name"] for run in collector.runs.values()} == {
        "ChatRSD",
        "rsd.step",
        "rsd.draft",
        "rsd.score",
    }
    assert all(run["end_time"] for run in collector.runs.values())
    failed = [run for run in collector.runs.values() if run.get("error")]
    assert sorted({run["name"] for run in failed}) == ["ChatRSD", "rsd.draft", "rsd.step"]


@pytest.fixture
def failing() -> Iterator[RSDPipeline]:
    """Its second step cannot be written."""

    def script(prompt: Any, index: int, text: str) -> str | Exception:
        return OSError("it broke") if index else "one\n\n"

    with scripted_pipeline(script) as made:
        yield made


def test_a_stream_that_is_left_early_leaves_no_run_open(smith: Any, llm: Any) -> None:
    collector, client = smith
    stream = llm.stream(QUESTION, {"callbacks": [LangChainTracer(client=client)]})
    next(stream)
    stream.close()

    async def leave() -> None:
        chunks = llm.astream(QUESTION, {"callbacks": [LangChainTracer(client=client)]})
        await anext(chunks)
        await chunks.aclose()

    asyncio.run(leave())
    client.flush()
    assert sum(run["name"] == "ChatRSD" for run in collector.runs.values()) == 2
    assert all(run.get("end_time") for run in collector.runs.values())


@pytest.mark.parametrize("how", ["ainvoke", "agenerate", "abatch", "chain", "astream", "streaming"])
def test_a_call_that_is_cancelled_leaves_no_run_open(
    smith: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor in the tracer's memory; and none is ended twice, of which the tracer would warn."""
    collector, client = smith
    tracer = LangChainTracer(client=client)
    config: Any = {"callbacks": [tracer]}
    with scripted_pipeline(lambda *_: "again\n\n", delay=0.001) as pipe:
        llm = ChatRSD.from_pipeline(pipe, max_steps=10**6, streaming=True if how == "streaming" else None)

        async def ask() -> None:
            match how:
                case "ainvoke" | "streaming":
                    await llm.ainvoke(QUESTION, config)
                case "agenerate":
                    await llm.agenerate([[HumanMessage(QUESTION)]] * 2, callbacks=[tracer])
                case "abatch":
                    await llm.abatch([QUESTION] * 2, config)
                case "chain":
                    await (llm | (lambda message: message)).ainvoke(QUESTION, config)
                case "astream":
                    _ = [chunk async for chunk in llm.astream(QUESTION, config)]

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(ask(), 0.1))
    client.flush()
    models = [run for run in collector.runs.values() if run["run_type"] == "llm"]
    assert len(models) == (2 if how in ("agenerate", "abatch") else 1)
    for run in collector.runs.values():
        assert run.get("end_time"), run["name"]
    assert all("CancelledError" in run["error"] for run in models)
    assert not tracer.run_map
    assert not [record for record in caplog.records if record.name.startswith("langchain")]


def test_below_a_traceable_function(smith: Any, llm: Any) -> None:
    collector, client = smith

    @traceable(name="mine")
    def mine() -> str:
        return "".join(chunk.text for chunk in llm.stream(QUESTION))

    with tracing_context(enabled=True, client=client, project_name="tests"):
        assert mine(langsmith_extra={"client": client}) == ANSWER
    client.flush()
    (root,) = collector.children(None)
    assert collector.tree(root) == ("mine", [TREE])
    assert_whole(collector)


def test_a_judge_runs_in_the_trace_of_who_asks(smith: Any) -> None:
    collector, client = smith
    judge = FakeListChatModel(responses=["0.9"])

    def score(prompt: Any, steps: tuple[str, ...]) -> float:
        return float(judge.invoke(steps[-1]).text)

    writers = ScriptedWriter(["one"]), ScriptedWriter(["ONE"])
    with RSDPipeline(Backend(*writers, FunctionScorer(RewardFunction(score)))) as pipe:
        chain = RunnableLambda(lambda question: ChatRSD.from_pipeline(pipe).invoke(question))
        with tracing_context(enabled=True, client=client):
            chain.invoke(QUESTION)
    client.flush()
    names = sorted(run["name"] for run in collector.runs.values() if not run["name"].startswith("rsd."))
    assert names == ["ChatRSD", "FakeListChatModel", "RunnableLambda"]
    assert_whole(collector)


def test_a_reward_stands_beside_the_candidate_that_got_it(smith: Any) -> None:
    collector, client = smith
    pieces = iter(["bad\n\n", "good\n\n"])
    writers: Any = ScriptedWriter(lambda *_: next(pieces)), ScriptedWriter(["TARGET"])
    scorer = FunctionScorer(RewardFunction(lambda prompt, steps: 0.9 if steps[-1] == "good" else 0.1))
    with RSDPipeline(Backend(*writers, scorer)) as pipe:
        llm = ChatRSD.from_pipeline(pipe, draft_candidates=2, temperature=1.0, max_steps=1)
        llm.invoke(QUESTION, {"callbacks": [LangChainTracer(client=client)]})
    client.flush()
    (step,) = collector.children(model_run(collector)["id"])
    draft, score = collector.children(step["id"])
    assert [one["text"] for one in draft["outputs"]["candidates"]] == ["bad\n\n", "good\n\n"]
    assert "text" not in draft["outputs"]
    assert score["inputs"] == {"candidates": draft["outputs"]["candidates"]}
    assert (score["outputs"]["text"], score["outputs"]["reward"]) == ("good\n\n", 0.9)
    assert [one["reward"] for one in score["outputs"]["candidates"]] == [0.1, 0.9]


def test_trace_steps(smith: Any, llm: Any) -> None:
    for level, steps in (("steps", [("rsd.step", [])] * 3), ("off", [])):
        collector = traced(smith, llm.model_copy(update={"trace_steps": level}), "invoke")
        assert collector.tree(model_run(collector)) == ("ChatRSD", steps)
        collector.runs.clear()


SCRIPT = """
    import asyncio
    from rsd_integrations.langchain import ChatRSD
    from tests.counting import counting_pipeline
    from tests.langchain.modes import MODES
    from langchain_core.tracers.langchain import wait_for_all_tracers
    with counting_pipeline() as pipe:
        llm = ChatRSD.from_pipeline(pipe, threshold=0.7)
        MODES["stream"](llm, None)
        MODES["ainvoke"](llm, None)
    wait_for_all_tracers()
"""


def test_by_environment_alone(smith: Any) -> None:
    """Nothing but LANGSMITH_TRACING, as users do it."""
    collector, _ = smith
    run_script(SCRIPT, LANGSMITH_TRACING="true", LANGSMITH_ENDPOINT=collector.url, LANGSMITH_API_KEY="none")
    roots = collector.children(None)
    assert [collector.tree(root) for root in roots] == [TREE, TREE]


OTEL = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    from rsd_integrations.langchain import ChatRSD
    from tests.counting import counting_pipeline
    from tests.langchain.modes import MODES
    from langchain_core.tracers.langchain import wait_for_all_tracers
    with counting_pipeline() as pipe:
        llm = ChatRSD.from_pipeline(pipe, threshold=0.7)
        for mode in MODES:
            MODES[mode](llm, None)
            wait_for_all_tracers()
            done = spans.get_finished_spans()
            ids = {span.context.span_id: span for span in done}
            def path(span):
                above = ids.get(span.parent.span_id) if span.parent else None
                assert above or not span.parent, f"orphan {span.name}"
                return (path(above) if above else "") + "/" + span.name
            paths = sorted({path(span) for span in done})
            assert len({span.context.trace_id for span in done}) == 1, mode
            print(*[p[p.index("/ChatRSD"):] for p in paths if "/ChatRSD" in p], sep=" ")
            spans.clear()
"""


def test_as_opentelemetry_spans() -> None:
    lines = run_script(
        OTEL, LANGSMITH_TRACING="true", LANGSMITH_OTEL_ENABLED="true", LANGSMITH_OTEL_ONLY="true"
    )
    step = "/ChatRSD/rsd.step"
    expected = f"/ChatRSD {step} {step}/rsd.draft {step}/rsd.score {step}/rsd.target"
    assert lines.split("\n") == [expected] * len(MODES)


def run_script(script: str, **environment: str) -> str:
    """Its output; the environment is read once a process."""
    import os

    clean = {name: value for name, value in os.environ.items() if not name.startswith("LANG")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=clean | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
