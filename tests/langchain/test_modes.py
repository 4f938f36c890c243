"""The same answer and the same events in every mode."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    BaseCallbackHandler,
    FileCallbackHandler,
    StdOutCallbackHandler,
)
from langchain_core.language_models import FakeListChatModel

from rsd_integrations import RSDPipeline, Step
from rsd_integrations.functions import FunctionScorer, RewardFunction
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.protocols import Backend
from rsd_integrations.testing import ScriptedWriter
from tests.counting import ANSWER, NAMES, QUESTION, counting_pipeline
from tests.langchain.modes import BARE, MODES, AsyncRecorder, Recorder, graph

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Recorder, AsyncRecorder])
def test_steps_reach_handlers_with_the_models_run_id(llm: Any, mode: str, kind: Any) -> None:
    handler = kind()
    assert MODES[mode](llm, [handler]) == ANSWER
    assert [name for name, _, _ in handler.custom] == NAMES
    assert len(handler.models) == 1
    assert {run_id for _, _, run_id in handler.custom} == set(handler.models)


@pytest.mark.parametrize("mode", MODES)
def test_handlers_of_the_constructor_are_told_too(pipe: Any, mode: str) -> None:
    local, given = Recorder(), Recorder()
    assert MODES[mode](ChatRSD.from_pipeline(pipe, callbacks=[local]), [given]) == ANSWER
    assert [name for name, _, _ in local.custom] == [name for name, _, _ in given.custom] == NAMES
    assert local.models == given.models
    assert "rsd.step" in given.chains
    assert "rsd.step" not in local.chains, "handlers of one model alone are no tracers of its children"


def test_handlers_that_print_chains_print_no_steps(
    llm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileCallbackHandler(str(tmp_path / "log")) as written:
        MODES["chain invoke"](llm, [StdOutCallbackHandler(), written])
    for shown in (capsys.readouterr().out, (tmp_path / "log").read_text()):
        assert "Entering new" in shown and "rsd." not in shown


@pytest.mark.parametrize("mode", MODES)
def test_a_step_tells_all_about_itself(llm: Any, mode: str) -> None:
    handler = Recorder()
    steps: list[Step] = []
    MODES[mode](llm.model_copy(update={"on_step": steps.append}), [handler])
    assert [step.text for step in steps] == ["one\n\n", "TWO\n\n", "three"]
    rejected = handler.custom[1][1]
    assert {key: rejected[key] for key in rejected if not key.endswith("_ms")} == {
        "index": 1,
        "source": "target",
        "reward": 0.1,
        "threshold": 0.7,
        "acceptance_probability": 0.0,
        "text": "TWO\n\n",
        "rejected_text": "two\n\n",
        "candidates": [],
        "draft_tokens": 5,
        "target_tokens": 5,
        "scored_tokens": 3,
    }
    assert all(rejected[f"{role}_ms"] > 0 for role in ("draft", "score", "target"))


@pytest.mark.parametrize("mode", MODES)
def test_a_broken_handler_breaks_nothing(llm: Any, mode: str, caplog: Any) -> None:
    class Broken(BaseCallbackHandler):
        def on_custom_event(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("the handler broke")

    class AsyncBroken(AsyncCallbackHandler):
        async def on_custom_event(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("the handler broke")

    def on_step(step: Step) -> None:
        raise OSError("the callback broke")

    seen = Recorder()
    with caplog.at_level(logging.WARNING):
        broken = llm.model_copy(update={"on_step": on_step})
        assert MODES[mode](broken, [Broken(), AsyncBroken(), seen]) == ANSWER
    assert [name for name, _, _ in seen.custom] == NAMES
    assert "the handler broke" in caplog.text
    assert "the callback broke" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_a_handler_that_insists_on_its_errors_ends_the_generation(pipe: Any, llm: Any, mode: str) -> None:
    class Strict(BaseCallbackHandler):
        raise_error = True

        def on_custom_event(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("stop here")

    with pytest.raises(OSError, match="stop here"):
        MODES[mode](llm, [Strict()])
    assert MODES[mode](llm, []) == ANSWER
    assert pipe.backend.draft.open_sessions == 0


def test_a_target_alone_and_a_draft_alone_have_their_events(llm: Any) -> None:
    for threshold, name, source in ((0.0, NAMES[0], "draft"), (2.0, NAMES[1], "target")):
        handler = Recorder()
        llm.invoke(QUESTION, {"callbacks": [handler]}, threshold=threshold)
        assert {event for event, _, _ in handler.custom} == {name}
        assert {data["source"] for _, data, _ in handler.custom} == {source}
        assert {data["reward"] for _, data, _ in handler.custom} == {None}


def test_no_threshold_is_told_where_rewards_meet_none(pipe: Any) -> None:
    handler, llm = Recorder(), ChatRSD.from_pipeline(pipe, weighting="clip", threshold=0.4)
    answer = llm.invoke(QUESTION, {"callbacks": [handler]})
    assert {data["threshold"] for _, data, _ in handler.custom} == {None}
    assert answer.response_metadata["rsd"]["threshold"] is None
    assert llm._identifying_params["threshold"] is None
    assert {event.threshold for event in pipe.stream(QUESTION, weighting="clip")} == {None}
    unset = Recorder()
    ChatRSD.from_pipeline(pipe).invoke(QUESTION, {"callbacks": [unset]})
    assert {data["threshold"] for _, data, _ in unset.custom} == {pipe.recommended_threshold}


async def test_async_handlers_run_on_the_callers_loop(llm: Any) -> None:
    handler = AsyncRecorder()
    config = {"callbacks": [handler]}
    await llm.ainvoke(QUESTION, config)
    await llm.abatch([QUESTION] * 3, config)
    async for _ in llm.astream(QUESTION, config):
        pass
    assert handler.loops == {id(asyncio.get_running_loop())}


async def test_astream_events_v2_shows_the_steps_before_their_text(llm: Any) -> None:
    events = [event async for event in llm.astream_events(QUESTION, version="v2")]
    kinds = [event["event"] for event in events]
    assert kinds.count("on_custom_event") == 3
    assert kinds[:3] == ["on_chat_model_start", "on_custom_event", "on_chat_model_stream"]
    assert "on_chain_start" not in kinds, "steps are events here, not chains"
    assert len({event["run_id"] for event in events}) == 1
    custom = [event for event in events if event["event"] == "on_custom_event"]
    assert [event["name"] for event in custom] == NAMES


@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_langgraph_custom_streams_show_the_steps(llm: Any, how: str) -> None:
    state = {"messages": [("human", QUESTION)]}
    written = list(graph(llm, how).stream(state, stream_mode="custom"))
    assert [item["event"] for item in written] == NAMES
    assert [item["data"]["index"] for item in written] == [0, 1, 2]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="langgraph's async context needs Python 3.11")
@pytest.mark.parametrize("how", ["ainvoke", "astream"])
async def test_langgraph_custom_streams_show_the_steps_async(llm: Any, how: str) -> None:
    state = {"messages": [("human", QUESTION)]}
    written = [item async for item in graph(llm, how).astream(state, stream_mode="custom")]
    assert [item["event"] for item in written] == NAMES


@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_langgraph_message_streams_show_the_text(llm: Any, how: str) -> None:
    state = {"messages": [("human", QUESTION)]}
    chunks = [chunk for chunk, _ in graph(llm, how).stream(state, stream_mode="messages")]
    assert "".join(chunk.text for chunk in chunks if type(chunk).__name__ == "AIMessageChunk") == ANSWER


@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_langgraph_message_streams_show_nothing_that_a_judge_writes(how: str) -> None:
    """It runs in the caller's context, so that its run is traced below the caller's."""
    recorder, judge = Recorder(), FakeListChatModel(responses=["0.9"])

    def judged(prompt: Any, steps: tuple[str, ...]) -> float:
        return float(judge.invoke(steps[-1]).text)

    writers = ScriptedWriter(["one\n\n", "two"]), ScriptedWriter([])
    with RSDPipeline(Backend(*writers, FunctionScorer(RewardFunction(judged)), 2)) as pipe:
        state = {"messages": [("human", QUESTION)]}
        running = graph(ChatRSD.from_pipeline(pipe), how).stream(
            state, {"callbacks": [recorder]}, stream_mode="messages"
        )
        chunks = [chunk for chunk, _ in running]
    assert "".join(chunk.text for chunk in chunks if type(chunk).__name__ == "AIMessageChunk") == "one\n\ntwo"
    assert len(recorder.models) == 3


@pytest.mark.parametrize("mode", BARE)
def test_nested_calls_keep_their_own_runs(pipe: Any, mode: str) -> None:
    """A handler that itself calls another model, in the middle of a step."""
    inner_handler = Recorder()
    with counting_pipeline() as other:
        inner = ChatRSD.from_pipeline(other, threshold=0.7)

        class Nesting(Recorder):
            def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
                super().on_custom_event(name, data, **kwargs)
                assert "".join(c.text for c in inner.stream("?", {"callbacks": [inner_handler]})) == ANSWER

        outer = Nesting()
        assert MODES[mode](ChatRSD.from_pipeline(pipe, threshold=0.7), [outer]) == ANSWER
    assert {run_id for _, _, run_id in outer.custom} == set(outer.models)
    assert len(outer.custom) == 3
    assert len(inner_handler.custom) == 9
    assert set(inner_handler.models).isdisjoint(outer.models)


@pytest.mark.parametrize("mode", MODES)
def test_trace_steps_chooses_the_child_runs(llm: Any, mode: str) -> None:
    inner = {"rsd.draft", "rsd.score", "rsd.target"}
    for level, shown, hidden in (
        ("full", {"rsd.step", *inner}, set()),
        ("steps", {"rsd.step"}, inner),
        ("off", set(), {"rsd.step", *inner}),
    ):
        handler = Recorder()
        MODES[mode](llm.model_copy(update={"trace_steps": level}), [handler])
        assert shown <= set(handler.chains)
        assert hidden.isdisjoint(handler.chains)
        assert len(handler.custom) == 3
