"""What comes back: text, stops, limits, reasoning, usage, metadata."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk

from rsd_integrations.errors import ConfigError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.text.thoughts import ReasoningTags
from tests.counting import ANSWER, QUESTION
from tests.langchain.modes import MODES, Recorder

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")

THINKING = ["<think>\nHm, 2 + 2.\n\n", "So 4.\n</think>\n\n", "It is 4.\n\n", "Yes."]


def final(llm: Any, mode: str) -> Any:
    """The message that LangChain ends the run with."""
    handler = Recorder()
    MODES[mode](llm, [handler])
    (message,) = handler.ended
    return message


@pytest.mark.parametrize("mode", MODES)
def test_usage_and_metadata(llm: Any, mode: str) -> None:
    message = final(llm, mode)
    assert message.usage_metadata["output_tokens"] == len(ANSWER) + 1
    assert message.usage_metadata["input_tokens"] >= len(QUESTION)
    metadata = message.response_metadata
    assert metadata["model_name"] == "scripted-target"
    assert metadata["finish_reason"] == "stop"
    rsd = metadata["rsd"]
    assert (rsd["acceptance_rate"], rsd["threshold"], rsd["steps"]) == (2 / 3, 0.7, 3)
    assert rsd["rewards"] == [0.9, 0.1, 0.8]
    assert rsd["accepted"] == [True, False, True]
    assert rsd["flops_ratio"]["paper"] > 0
    assert isinstance(rsd["seed"], int)


@pytest.mark.parametrize("mode", MODES)
def test_stop_strings_are_never_shown(llm: Any, mode: str) -> None:
    for stop, answer in ((["WO"], "one\n\nT"), (["e\n\nTW"], "on"), (["nothing", "ree"], "one\n\nTWO\n\nth")):
        assert MODES[mode](llm.model_copy(update={"stop": tuple(stop)}), []) == answer
        handler = Recorder()
        assert llm.invoke(QUESTION, {"callbacks": [handler]}, stop=stop).content == answer
        assert handler.ended[0].response_metadata["finish_reason"] == "stop"


def test_stop_of_the_call_comes_first(llm: Any) -> None:
    bound = llm.model_copy(update={"stop": ("WO",)})
    assert bound.invoke(QUESTION, stop=["ree"]).content == "one\n\nTWO\n\nth"
    assert bound.invoke(QUESTION, stop=[]).content == ANSWER
    assert llm.bind(stop=["WO"]).invoke(QUESTION).content == "one\n\nT"
    assert "".join(chunk.content for chunk in llm.stream(QUESTION, stop=["e\n\nTW"])) == "on"


@pytest.mark.parametrize("mode", MODES)
def test_max_tokens_ends_as_length(llm: Any, mode: str) -> None:
    message = final(llm.model_copy(update={"max_tokens": 7}), mode)
    assert message.text == "one\n\nTW"
    assert message.response_metadata["finish_reason"] == "length"
    assert message.usage_metadata["output_tokens"] == 7


def test_a_stream_goes_step_by_step_with_usage_last(llm: Any) -> None:
    chunks = list(llm.stream(QUESTION))
    assert [chunk.content for chunk in chunks] == ["one\n\n", "TWO\n\n", "three", ""]
    assert [chunk.chunk_position for chunk in chunks] == [None, None, None, "last"]
    assert [bool(chunk.usage_metadata) for chunk in chunks] == [False, False, False, True]
    names, *none, end = [chunk.response_metadata.keys() for chunk in chunks]
    assert (names, none, end) == (
        {"model_name", "model_provider"},
        [set(), set()],
        {"finish_reason", "rsd"},
    )
    assert len({chunk.id for chunk in chunks}) == 1
    whole = reduce(add, chunks)
    assert whole.content == ANSWER
    # Merging with more chunks must not stumble over the summary.
    told = chunks[0].response_metadata | chunks[-1].response_metadata
    assert (whole + AIMessageChunk("")).response_metadata == told


def test_streamed_and_whole_answers_are_the_same(llm: Any) -> None:
    whole = llm.invoke(QUESTION, seed=3)
    streamed = reduce(add, llm.stream(QUESTION, seed=3))
    assert streamed.content == whole.content
    assert streamed.usage_metadata == whole.usage_metadata
    assert streamed.response_metadata == whole.response_metadata


@pytest.mark.parametrize("mode", MODES)
def test_reasoning_is_not_answer_text(mode: str) -> None:
    with scripted_pipeline(THINKING, tags=ReasoningTags()) as pipe:
        message = final(ChatRSD.from_pipeline(pipe), mode)
    assert message.text == "It is 4.\n\nYes."
    blocks = [
        (block["type"], block.get("reasoning") or block.get("text")) for block in message.content_blocks
    ]
    assert blocks == [("reasoning", "Hm, 2 + 2.\n\nSo 4."), ("text", "It is 4.\n\nYes.")]


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_thought_is_none(mode: str) -> None:
    with scripted_pipeline(["<think>\n</think>\n\n", "Yes."], tags=ReasoningTags()) as pipe:
        message = final(ChatRSD.from_pipeline(pipe), mode)
    assert (message.text, message.additional_kwargs) == ("Yes.", {})


def test_reasoning_streams_apart() -> None:
    with scripted_pipeline(THINKING, tags=ReasoningTags()) as pipe:
        chunks = list(ChatRSD.from_pipeline(pipe).stream(QUESTION))
        blocks = list(ChatRSD.from_pipeline(pipe, output_version="v1").stream(QUESTION))
    thoughts = [chunk.additional_kwargs.get("reasoning_content", "") for chunk in chunks]
    assert "".join(thoughts) == "Hm, 2 + 2.\n\nSo 4."
    assert "".join(chunk.content for chunk in chunks) == "It is 4.\n\nYes."
    assert not any(chunk.content and thought for chunk, thought in zip(chunks, thoughts, strict=True))
    merged = reduce(add, blocks).content
    assert [(block["type"], block.get("reasoning") or block.get("text")) for block in merged] == [
        ("reasoning", "Hm, 2 + 2.\n\nSo 4."),
        ("text", "It is 4.\n\nYes."),
    ]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
def test_output_version_v1(pipe: Any, mode: str) -> None:
    message = final(ChatRSD.from_pipeline(pipe, output_version="v1"), mode)
    assert [block["type"] for block in message.content] == ["text"]
    assert message.content[0]["text"] == ANSWER


def test_an_empty_answer_is_an_answer() -> None:
    with scripted_pipeline([]) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        assert llm.invoke(QUESTION).content == ""
        (chunk,) = llm.stream(QUESTION)
        assert (chunk.content, chunk.chunk_position) == ("", "last")


def test_seeds_reproduce(llm: Any) -> None:
    seed = llm.invoke(QUESTION, weighting="constant").response_metadata["rsd"]["seed"]
    runs = [llm.invoke(QUESTION, weighting="constant", seed=seed) for _ in range(3)]
    assert len({run.content for run in runs}) == 1


def test_no_call_chooses_another_model(llm: Any) -> None:
    """Elsewhere ``model`` does: a label alone would say that another model wrote the answer."""
    for ask in (llm.bind(model="Qwen/Qwen2.5-72B").invoke, lambda text: list(llm.stream(text, model="b"))):
        with pytest.raises(ConfigError, match=r"'model' is fixed .* chosen by draft, target and prm"):
            ask(QUESTION)


def test_model_names_what_traces_show(llm: Any) -> None:
    named = llm.model_copy(update={"model": "ours"})
    assert named.invoke(QUESTION).response_metadata["model_name"] == "ours"
    assert named._get_ls_params()["ls_model_name"] == "ours"
    # What was asked for, as LangChain has it, though such a call is refused.
    assert named._get_ls_params(model="mine")["ls_model_name"] == "mine"
    params = llm._get_ls_params(stop=["x"], temperature=0.5, max_tokens=3)
    assert params == {
        "ls_provider": "rsd",
        "ls_model_name": "scripted-target",
        "ls_model_type": "chat",
        "ls_temperature": 0.5,
        "ls_max_tokens": 3,
        "ls_stop": ["x"],
    }
    warm = llm.model_copy(update={"temperature": 0.7, "stop": ("y",)})
    assert warm._get_ls_params(temperature=None)["ls_temperature"] == 0.7, "as the call reads it"
    assert (warm._get_ls_params()["ls_stop"], warm._get_ls_params(stop=["x"])["ls_stop"]) == (["y"], ["x"])


def test_a_lone_stop_string_is_one_everywhere(llm: Any) -> None:
    started: list[Any] = []

    class Handler(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, metadata: Any = None, **kwargs: Any) -> None:
            started.append(metadata)

    answer = llm.invoke(QUESTION, {"callbacks": [Handler()]}, stop="TWO")
    assert answer.content == "one\n\n"
    assert started[0]["ls_stop"] == ["TWO"]
    for wrong in (5, [None], [""]):
        with pytest.raises(ConfigError, match="stop"):
            llm.invoke(QUESTION, stop=wrong)
        with pytest.raises(ConfigError, match="stop"):
            list(llm.stream(QUESTION, stop=wrong))
