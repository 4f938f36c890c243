"""Messages as the models get them."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from rsd_integrations.errors import ConfigError, PromptError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.llama_index.messages import is_react, to_chat
from rsd_integrations.testing import scripted_pipeline

CALL = ToolCallBlock(tool_call_id="a1", tool_name="add", tool_kwargs={"x": 1})


@pytest.mark.parametrize(
    ("messages", "chat"),
    [
        ([ChatMessage("Hi")], [{"role": "user", "content": "Hi"}]),
        (
            [ChatMessage("S", role="developer"), ChatMessage("Hi"), ChatMessage("Ho", role="chatbot")],
            [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho"},
            ],
        ),
        ([ChatMessage("a"), ChatMessage("b")], [{"role": "user", "content": "a\n\nb"}]),
        (
            [ChatMessage([TextBlock(text="a"), TextBlock(text="b")])],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [
                ChatMessage(
                    [
                        CitableBlock(title="t", source="s", content=[TextBlock(text="a")]),
                        CitationBlock(
                            cited_content=TextBlock(text="b"),
                            source="s",
                            title="t",
                            additional_location_info={},
                        ),
                        CachePoint(cache_control=CacheControl(type="ephemeral")),
                    ]
                )
            ],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [
                ChatMessage("Add"),
                ChatMessage([ThinkingBlock(content="Hm."), TextBlock(text="So:"), CALL], role="assistant"),
                ChatMessage("2", role="tool", additional_kwargs={"tool_call_id": "a1", "name": "add"}),
            ],
            [
                {"role": "user", "content": "Add"},
                {
                    "role": "assistant",
                    "content": "So:",
                    "reasoning_content": "Hm.",
                    "tool_calls": [
                        {
                            "type": "function",
                            "id": "a1",
                            "function": {"name": "add", "arguments": {"x": 1}},
                        }
                    ],
                },
                {"role": "tool", "content": "2", "tool_call_id": "a1", "name": "add"},
            ],
        ),
    ],
)
def test_rendering(messages: Any, chat: Any) -> None:
    before = [message.model_copy(deep=True) for message in messages]
    assert to_chat(messages) == chat
    assert messages == before


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        (ImageBlock(url="http://localhost/x.png"), "image"),
        (AudioBlock(audio=b"x", format="wav"), "audio"),
        (VideoBlock(video=b"x"), "video"),
        (DocumentBlock(data=b"x", title="d"), "document"),
        (CitableBlock(title="t", source="s", content=[DocumentBlock(data=b"x", title="d")]), "document"),
    ],
)
async def test_media_are_refused_by_name(llm: Any, block: Any, kind: str) -> None:
    for ask in (llm.chat, llm.stream_chat):
        with pytest.raises(PromptError, match=f"type '{kind}', which is not text"):
            ask([ChatMessage([TextBlock(text="See:"), block])])
    for aask in (llm.achat, llm.astream_chat):
        with pytest.raises(PromptError, match=f"type '{kind}', which is not text"):
            await aask([ChatMessage([block])])


def test_what_is_no_chat(llm: Any) -> None:
    for wrong in (["Hi"], [{"role": "user", "content": "Hi"}], [None]):
        with pytest.raises((PromptError, ValueError)):
            llm.chat(wrong)
    with pytest.raises(PromptError, match="must be a list of ChatMessage"):
        to_chat("Hi")


def test_the_system_prompt_comes_once() -> None:
    """Also where LlamaIndex puts messages together itself, and where it is there already."""
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str) -> str | None:
        if index:
            return None
        seen.append(prompt)
        return "so"

    with scripted_pipeline(script) as pipe:
        llm = RSDLLM.from_pipeline(pipe, system_prompt="Be brief.")
        llm.predict(PromptTemplate("{x}?"), x="What")
        "".join(llm.stream(PromptTemplate("{x}?"), x="What"))
        llm.complete("What?", formatted=True)
        llm.chat([ChatMessage("Be brief.", role="system"), ChatMessage("What?")])
        llm.chat([ChatMessage("Be kind.", role="system"), ChatMessage("What?")])
    user = {"role": "user", "content": "What?"}
    assert seen[:4] == [[{"role": "system", "content": "Be brief."}, user]] * 4
    assert seen[4:] == [[{"role": "system", "content": "Be brief.\n\nBe kind."}, user]]


def test_templates_of_ones_own_are_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"messages_to_prompt=.* would not be used"):
        RSDLLM.from_pipeline(pipe, messages_to_prompt=lambda messages: "x")
    with pytest.raises(ValueError, match=r"query_wrapper_prompt=.* would not be used"):
        RSDLLM.from_pipeline(pipe, query_wrapper_prompt=PromptTemplate("{query_str}"))
    llm = RSDLLM.from_pipeline(pipe)
    with pytest.raises((ConfigError, ValueError), match="would not be used"):
        llm.messages_to_prompt = lambda messages: "x"


def test_react_is_known_by_its_words() -> None:
    header = "Thought: ...\nAction: ...\nAction Input: ...\nObservation: ..."
    assert is_react([ChatMessage(header, role="system"), ChatMessage("x")])
    assert not is_react([ChatMessage(header), ChatMessage("x")])
    assert not is_react([ChatMessage("Thought: and Action:", role="system")])


def calling(**fields: Any) -> list[ChatMessage]:
    return [ChatMessage("Add"), ChatMessage(role="assistant", **fields)]


class OldCall(BaseModel):
    """As OpenAI's client has them."""

    id: str
    type: str
    function: dict[str, str]


OLD: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
NEW = {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "message",
    [
        {"blocks": [ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs='{"x": 1}')]},
        {"additional_kwargs": {"tool_calls": [OLD]}},
        {"additional_kwargs": {"tool_calls": [OldCall(**OLD)]}},
        {"additional_kwargs": {"tool_calls": [{"id": "1", "name": "add", "input": {"x": 1}}]}},
        {
            "blocks": [ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={"x": 1})],
            "additional_kwargs": {"tool_calls": [OLD]},
        },
    ],
)
def test_calls_of_other_llms(message: Any) -> None:
    """Their arguments are JSON text or data, in blocks or (older ones) beside them: told once, as data."""
    turn = to_chat(calling(**message))[1]
    assert turn["tool_calls"] == [NEW]
    assert turn["content"] == ""


@pytest.mark.parametrize(("given", "arguments"), [("", {}), ("{}", {}), (" ", {}), ({}, {})])
def test_calls_without_arguments(given: Any, arguments: Any) -> None:
    turn: Any = to_chat(calling(blocks=[ToolCallBlock(tool_name="now", tool_kwargs=given)]))[1]
    assert turn["tool_calls"][0]["function"] == {"name": "now", "arguments": arguments}


@pytest.mark.parametrize(
    "given", ['{"x": ', "[1]", "1", '{"x": NaN}', pytest.param('{"x": ' + "[" * 100_000, id="deep")]
)
def test_calls_that_cannot_be_read_are_seen_as_text(given: str) -> None:
    turn = to_chat(calling(blocks=[ToolCallBlock(tool_name="add", tool_kwargs=given)]))[1]
    assert "tool_calls" not in turn
    assert turn["content"] == f'{{"name": "add", "arguments": {given}}}'


@pytest.mark.parametrize("call", ["add", {"function": "add"}])
def test_calls_of_unknown_form_are_refused(call: Any) -> None:
    with pytest.raises(PromptError, match=r"a message has a call of unknown form: .*add"):
        to_chat(calling(additional_kwargs={"tool_calls": [call]}))


def test_a_system_message_that_only_begins_like_the_system_prompt() -> None:
    chat = [ChatMessage("Be briefly kind.", role="system"), ChatMessage("Hi")]
    assert to_chat(chat, "Be brief")[0] == {"role": "system", "content": "Be brief\n\nBe briefly kind."}
    assert to_chat(chat, "Be briefly kind.")[0] == {"role": "system", "content": "Be briefly kind."}


def test_a_generator_is_no_chat(llm: Any) -> None:
    with pytest.raises(PromptError, match=r"a chat must be a list of ChatMessage, not <generator"):
        llm.chat(message for message in [ChatMessage("Hi")])
    with pytest.raises(PromptError, match="a chat must be a list of ChatMessage, not 5"):
        to_chat(5)  # type: ignore[arg-type]
