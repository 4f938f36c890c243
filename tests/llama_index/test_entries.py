"""The eight entry points, over scripted models: one behaviour, however it is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ThinkingBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler

from rsd_integrations.errors import ConfigError, PromptError, TimedOutError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.text.thoughts import ReasoningTags
from tests.counting import ANSWER, NAMES, QUESTION
from tests.llama_index.entries import ENTRIES, STREAMS, text_of

pytestmark = pytest.mark.parametrize("entry", ENTRIES)


def test_the_answer_and_its_facts(llm: Any, entry: str) -> None:
    responses = ENTRIES[entry](llm)
    last = responses[-1]
    assert text_of(last) == ANSWER
    assert last.raw["finish_reason"] == "stop"
    assert last.raw["usage"] == {"prompt_tokens": 16, "completion_tokens": 16, "total_tokens": 32}
    assert last.raw["rsd"]["accepted"] == [True, False, True]
    assert last.raw["model"] == "scripted-target"
    assert json.loads(json.dumps(last.raw)) == last.raw
    assert all(response.raw is None for response in responses[:-1])


def test_a_stream_grows_and_is_never_taken_back(llm: Any, entry: str) -> None:
    responses = ENTRIES[entry](llm)
    texts = [text_of(response) for response in responses]
    assert texts == (["one\n\n", "one\n\nTWO\n\n", ANSWER, ANSWER] if entry in STREAMS else [ANSWER])
    if entry in STREAMS:
        assert "".join(response.delta for response in responses) == ANSWER


def test_prompts_are_equal_on_all_paths(entry: str) -> None:
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str) -> str | None:
        if index:
            return None
        seen.append(prompt)
        return "so"

    with scripted_pipeline(script) as pipe:
        ENTRIES[entry](RSDLLM.from_pipeline(pipe))
        ENTRIES[entry](RSDLLM.from_pipeline(pipe, system_prompt="Be brief."))
        ENTRIES[entry](RSDLLM.from_pipeline(pipe, completion_to_prompt=lambda text: text.upper()))
        RSDLLM.from_pipeline(pipe, completion_to_prompt=lambda text: text.upper()).complete(QUESTION, True)
    user = {"role": "user", "content": QUESTION}
    assert seen[0] == seen[3] == [user]  # What is formatted already is left as it is.
    assert seen[1] == [{"role": "system", "content": "Be brief."}, user]
    assert seen[2][0]["content"] == (QUESTION.upper() if "complete" in entry else QUESTION)


def test_parameters_hold_for_the_call(llm: Any, entry: str) -> None:
    """The matrix: what each parameter does, not that it was passed."""
    ask = ENTRIES[entry]
    assert text_of(ask(llm, threshold=0.0)[-1]) == "one\n\ntwo\n\nthree"
    assert text_of(ask(llm, threshold=2.0)[-1]) == "ONE\n\nTWO\n\nTHREE"
    assert text_of(ask(llm, weighting="constant", acceptance_rate=0.0)[-1]) == "ONE\n\nTWO\n\nTHREE"
    assert text_of(ask(llm, max_steps=1)[-1]) == "one\n\n"
    short = ask(llm, max_tokens=4)[-1]
    assert (text_of(short), short.raw["finish_reason"]) == ("one\n", "length")
    assert text_of(ask(llm, stop="W")[-1]) == "one\n\nT"
    assert text_of(ask(llm, stop=["\n\nTW", "zzz"])[-1]) == "one"
    assert text_of(ask(llm, step_delimiter="e", max_step_tokens=5)[-1]) == "oneTWO\n\nthre"
    assert ask(llm, seed=7)[-1].raw["rsd"]["seed"] == 7
    with pytest.raises(ConfigError, match=r"'model' is fixed .* chosen by draft, target and prm"):
        ask(llm, model="mine")
    assert text_of(ask(llm)[-1]) == ANSWER


def test_stop_strings_are_never_shown(llm: Any, entry: str) -> None:
    for response in ENTRIES[entry](llm, stop=["\n\nTWO"]):
        assert "\n\n" not in text_of(response)
        assert "\n\n" not in (response.delta or "")


def test_a_typo_raises_at_once(llm: Any, pipe: Any, entry: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'treshold'\. Did you mean 'threshold'\?"):
        ENTRIES[entry](llm, treshold=0.5)
    with pytest.raises(ConfigError, match="'max_batch_size' is fixed"):
        ENTRIES[entry](llm, max_batch_size=2)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        ENTRIES[entry](llm, threshold=-1)
    if entry == "stream_chat":
        with pytest.raises(ConfigError):  # Not when it is first read.
            llm.stream_chat([ChatMessage(QUESTION)], treshold=0.5)
    assert pipe.backend.draft.batches == []


def test_bad_prompts(llm: Any, entry: str) -> None:
    for wrong in ("", "  \n"):
        with pytest.raises(PromptError, match="empty"):
            ENTRIES[entry](llm, wrong)
    with pytest.raises((PromptError, TypeError, ValueError)):
        ENTRIES[entry](llm, 5)
    with pytest.raises(PromptError, match="empty"):
        llm.chat([])
    assert text_of(ENTRIES[entry](llm)[-1]) == ANSWER


def test_a_prompt_too_long_fails_alone(entry: str) -> None:
    with scripted_pipeline(["so"], window=50) as pipe:
        llm = RSDLLM.from_pipeline(pipe)
        with pytest.raises(PromptError, match="60 prompt tokens do not fit"):
            ENTRIES[entry](llm, "x" * 60)
        assert text_of(ENTRIES[entry](llm, "x" * 10)[-1]) == "so"


def test_thoughts_are_no_answer_text(entry: str) -> None:
    tags = ReasoningTags("<think>", "</think>", open_in_prompt=False)
    with scripted_pipeline(["<think>Hm.\n\n", "Well.</think>So it is."], tags=tags) as pipe:
        responses = ENTRIES[entry](RSDLLM.from_pipeline(pipe))
    last = responses[-1]
    assert text_of(last) == "So it is."
    assert all("<" not in text_of(response) for response in responses)
    assert last.raw["reasoning"] == "Hm.\n\nWell."
    if "chat" in entry:
        assert last.message.blocks == [ThinkingBlock(content="Hm.\n\nWell."), TextBlock(text="So it is.")]
    if entry in ("stream_chat", "astream_chat"):
        thoughts = [response.additional_kwargs.get("thinking_delta") or "" for response in responses]
        assert "".join(thoughts) == "Hm.\n\nWell."
        assert responses[0].message.blocks[0] == ThinkingBlock(content="Hm.")


def test_usage_is_counted_once(pipe: Any, entry: str) -> None:
    counter = TokenCountingHandler(tokenizer=list)
    llm = RSDLLM.from_pipeline(pipe, callback_manager=CallbackManager([counter]))
    ENTRIES[entry](llm)
    assert len(counter.llm_token_counts) == 1
    assert (counter.prompt_llm_token_count, counter.completion_llm_token_count) == (16, 16)


def test_on_step(llm: Any, entry: str, caplog: Any) -> None:
    told: list[Any] = []
    ENTRIES[entry](llm, on_step=told.append)
    assert [step.accepted for step in told] == [True, False, True]

    def broken(step: Any) -> None:
        raise OSError("the callback broke")

    assert text_of(ENTRIES[entry](llm, on_step=broken)[-1]) == ANSWER
    assert "the callback broke" in caplog.text
    assert len(NAMES) == len(told)


def test_a_timeout_raises(entry: str) -> None:
    with scripted_pipeline(lambda *_: "again\n\n", delay=0.001) as pipe:
        llm = RSDLLM.from_pipeline(pipe, max_steps=10**6)
        with pytest.raises(TimedOutError, match=r"timeout=0\.05"):
            ENTRIES[entry](llm, timeout=0.05)


def test_an_error_in_the_engine_reaches_the_caller(entry: str) -> None:
    def script(prompt: Any, index: int, text: str) -> str | Exception:
        return OSError("it broke") if index else "one\n\n"

    with scripted_pipeline(script) as pipe:
        with pytest.raises(OSError, match="it broke"):
            ENTRIES[entry](RSDLLM.from_pipeline(pipe))
        assert pipe.backend.draft.open_sessions == 0


def test_an_empty_answer_is_an_answer(entry: str) -> None:
    with scripted_pipeline([]) as pipe:
        last = ENTRIES[entry](RSDLLM.from_pipeline(pipe))[-1]
    assert text_of(last) == ""
    assert last.raw["finish_reason"] == "stop"
