"""Which chat the models see."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import invalid_tool_call

from rsd_integrations.errors import PromptError, PromptLengthError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.langchain.messages import to_chat
from rsd_integrations.testing import scripted_pipeline
from tests.counting import QUESTION
from tests.langchain.modes import MODES

CALL = {"name": "add", "args": {"a": 1, "b": [2]}, "id": "call-1", "type": "tool_call"}


@pytest.mark.parametrize(
    ("messages", "chat"),
    [
        ([HumanMessage("hi")], [{"role": "user", "content": "hi"}]),
        (
            [SystemMessage("be brief"), HumanMessage("hi"), AIMessage("hello"), HumanMessage("bye")],
            [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
                {"role": "user", "content": "bye"},
            ],
        ),
        (
            [SystemMessage("a"), SystemMessage("b"), HumanMessage("c"), HumanMessage("d"), AIMessage("e")],
            [
                {"role": "system", "content": "a\n\nb"},
                {"role": "user", "content": "c\n\nd"},
                {"role": "assistant", "content": "e"},
            ],
        ),
        (
            [HumanMessage("c", name="Ann"), HumanMessage("d", name="Bob"), HumanMessage("e", name="Bob")],
            [
                {"role": "user", "content": "c", "name": "Ann"},
                {"role": "user", "content": "d\n\ne", "name": "Bob"},
            ],
        ),
        (
            [HumanMessage(["a", {"type": "text", "text": "b"}, {"type": "input_text", "text": "c"}])],
            [{"role": "user", "content": "a\nb\nc"}],
        ),
        (
            [SystemMessage(["a", "b"]), AIMessage(["c", "d"]), ToolMessage(["12", "5"], tool_call_id="1")],
            [
                {"role": "system", "content": "a\nb"},
                {"role": "assistant", "content": "cd"},
                {"role": "tool", "content": "12\n5", "tool_call_id": "1"},
            ],
        ),
        (
            [
                ChatMessage("x", role="human"),
                ChatMessage("y", role="critic"),
                FunctionMessage("z", name="f"),
                ChatMessage("a", role="ai"),
            ],
            [
                {"role": "user", "content": "x"},
                {"role": "critic", "content": "y"},
                {"role": "tool", "content": "z", "name": "f"},
                {"role": "assistant", "content": "a"},
            ],
        ),
        (
            [
                HumanMessage("1+2?"),
                AIMessage("", tool_calls=[CALL]),
                ToolMessage("3", tool_call_id="call-1", name="add"),
                ToolMessage([{"type": "text", "text": "4"}], tool_call_id="call-2", status="error"),
            ],
            [
                {"role": "user", "content": "1+2?"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {
                            "type": "function",
                            "id": "call-1",
                            "function": {"name": "add", "arguments": {"a": 1, "b": [2]}},
                        }
                    ],
                },
                {"role": "tool", "content": "3", "tool_call_id": "call-1", "name": "add"},
                {"role": "tool", "content": "4", "tool_call_id": "call-2"},
            ],
        ),
        (
            [
                AIMessage(
                    [
                        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
                        {"type": "text", "text": "ok"},
                    ],
                    additional_kwargs={"reasoning_content": "hm"},
                )
            ],
            [{"role": "assistant", "content": "ok", "reasoning_content": "hm"}],
        ),
        (
            [
                AIMessage(
                    "Let me see.",
                    invalid_tool_calls=[
                        {"name": "f", "args": "{bad", "id": "1", "error": "e", "type": "invalid_tool_call"},
                        {
                            "name": "f",
                            "args": '<tool_call>{"name": "f"',
                            "id": "2",
                            "error": "e",
                            "type": "invalid_tool_call",
                        },
                    ],
                ),
                ToolMessage("Error: mend the arguments.", tool_call_id="1"),
            ],
            [
                {
                    "role": "assistant",
                    "content": 'Let me see.\n{"name": "f", "arguments": {bad}\n<tool_call>{"name": "f"',
                },
                {"role": "tool", "content": "Error: mend the arguments.", "tool_call_id": "1"},
            ],
        ),
        (
            [AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "ok"}])],
            [{"role": "assistant", "content": "ok", "reasoning_content": "hm"}],
        ),
        (
            [
                AIMessage(
                    [
                        {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}},
                        {"type": "file_search_call", "id": "2"},
                        {"type": "refusal", "refusal": "Not that. "},
                        {"type": "output_text", "text": "This."},
                    ]
                )
            ],
            [{"role": "assistant", "content": "Not that. This."}],
        ),
    ],
)
def test_rendering(messages: Any, chat: Any) -> None:
    assert to_chat(messages) == chat


@pytest.mark.parametrize("kind", ["image_url", "image", "audio", "file", "video", "input_audio"])
async def test_media_are_refused_by_name(llm: Any, kind: str) -> None:
    message = HumanMessage(
        [{"type": "text", "text": "what?"}, {"type": kind, kind: {"url": "https://x.test"}}]
    )
    with pytest.raises(PromptError, match=f"'{kind}', which is not text"):
        llm.invoke([message])
    with pytest.raises(PromptError, match=f"'{kind}', which is not text"):
        await llm.ainvoke([message])
    with pytest.raises(PromptError, match=f"type 'ai' has a part of type '{kind}'"):
        llm.invoke([AIMessage(message.content), HumanMessage("?")])


NOTHING_SEEN = {
    "files": [{"type": "file", "name": "a.txt", "size": 3}, {"type": "file", "file": "é.txt", "data": {}}],
    "a repository": [{"type": "file", "name": "a.py", "url": "https://x.test/a.py", "source": None}],
    "a data base": [{"type": "document", "id": 7, "title": "Invoice"}, {"type": "image", "id": 8}],
    "search": [{"type": "document", "source": {"url": "https://x.test", "page": 3}, "text": "So."}],
    "Anthropic's text": [{"type": "document", "source": {"type": "text", "data": "hello"}}],
    "other types": [{"type": "json", "json": {"a": [1]}}, {"type": "search_result", "title": "T"}],
    "fields of a form": [{"type": "text", "label": "Name"}, {"type": None}, {"type": ["text"]}, {}],
}


@pytest.mark.parametrize("name", NOTHING_SEEN)
def test_a_tools_list_of_dicts_is_json_whatever_their_types(name: str) -> None:
    """LangChain gives lists of dicts as parts if all types are of a few, else as JSON: a thread that has one
    in it must go on, and a folder without folders in it reads like others.
    """
    content: Any = NOTHING_SEEN[name]
    (turn,) = to_chat([ToolMessage(content, tool_call_id="1")])
    assert turn["content"] == json.dumps(content, ensure_ascii=False)
    mixed = ToolMessage(["Look:", *content, {"type": "text", "text": "End."}], tool_call_id="1")
    assert to_chat([mixed])[0]["content"] == f"Look:\n{turn['content']}\nEnd."


def test_a_tools_dicts_that_are_no_json_are_shown_all_the_same() -> None:
    content: Any = [{"type": "file", "made": date(2020, 1, 1)}]
    assert to_chat([ToolMessage(content, tool_call_id="1")])[0]["content"] == str(content)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "base64": "aGk=", "mime_type": "image/png", "title": "A cat"},
        {"type": "image", "url": "https://x.test/a.png"},
        {"type": "image", "source_type": "id", "id": "img-1"},
        {"type": "file", "file_id": "file-1", "extras": {}},
        {"type": "audio", "source_type": "base64", "data": "aGk=", "mime_type": "audio/wav"},
        {"type": "media", "mime_type": "image/png", "data": b"hi"},
        {"type": "image_url", "image_url": "https://x.test/a.png"},
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
        {"type": "file", "file": {"file_data": "aGk=", "filename": "a.pdf"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "document", "source": {"type": "url", "url": "https://x.test/a.pdf"}, "title": "A"},
        {"type": "input_file", "file_url": "https://x.test/a.pdf", "filename": "a.pdf"},
        {"type": "media", "file_uri": "gs://x/a.png", "media_type": "image/png"},
    ],
)
def test_media_that_a_tool_gives_are_refused(part: Any) -> None:
    message = ToolMessage([{"type": "text", "text": "See:"}, part], tool_call_id="1")
    with pytest.raises(PromptError, match=f"type 'tool' has a part of type '{part['type']}', which is not"):
        to_chat([message])


@pytest.mark.parametrize("kind", ["server_tool_use", "refused", None])
def test_other_parts_of_what_people_say_are_refused(llm: Any, kind: str | None) -> None:
    with pytest.raises(PromptError, match=f"type {kind!r}, which is not text"):
        llm.invoke([HumanMessage([{"type": kind, "x": "y"}])])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "list of messages is empty"),
        ("", "the chat is empty"),
        ([HumanMessage("  ")], "the chat is empty"),
        ([RemoveMessage(id="1")], "RemoveMessage has no place"),
    ],
)
async def test_bad_prompts(llm: Any, wrong: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        llm.invoke(wrong)
    with pytest.raises(PromptError, match=message):
        list(llm.stream(wrong))
    with pytest.raises(PromptError, match=message):
        await llm.ainvoke(wrong)
    with pytest.raises(PromptError, match=message):
        async for _ in llm.astream(wrong):
            pass
    assert llm.invoke("ok").content


@pytest.mark.parametrize("wrong", [3, None, {"text": "hi"}, [object()]])
def test_inputs_of_a_wrong_type(llm: Any, wrong: Any) -> None:
    with pytest.raises((ValueError, NotImplementedError)):
        llm.invoke(wrong)


async def test_a_prompt_too_long_fails_alone() -> None:
    with scripted_pipeline(["fine"], window=50) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        results = await llm.abatch(["short", "x" * 60, "short"], return_exceptions=True)
        assert [getattr(result, "content", "") for result in results] == ["fine", "", "fine"]
        assert isinstance(results[1], PromptLengthError)
        with pytest.raises(PromptError, match="do not fit the window"):
            llm.invoke("x" * 60)


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("mode", MODES)
def test_the_prompt_is_not_echoed(mode: str) -> None:
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str) -> str | None:
        seen.append(prompt)
        return None if index else "answer"

    with scripted_pipeline(script) as pipe:
        assert MODES[mode](ChatRSD.from_pipeline(pipe), []) == "answer"
    assert seen[0][-1] == {"role": "user", "content": QUESTION}


@pytest.mark.parametrize("kind", [HumanMessage, AIMessage])
def test_a_text_part_without_text_is_called_that(kind: Any) -> None:
    with pytest.raises(PromptError, match=r"text part whose text is None\. Give a string"):
        to_chat([kind([{"type": "text", "text": None}])])


def test_a_models_own_invalid_calls_come_back_to_it() -> None:
    """In streams and whole answers alike, whatever else is lost of their markup."""
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str) -> str | None:
        if index == 0:
            seen.append(prompt)
        return '<tool_call>\n{"name": "add", "arguments": {oops}\n</tool_call>' if index == 0 else None

    def add(a: int) -> int:
        """Add."""
        return a

    with scripted_pipeline(script) as pipe:
        llm = ChatRSD.from_pipeline(pipe).bind_tools([add])
        whole = llm.invoke("x")
        chunks = list(llm.stream("x"))
        streamed = chunks[0]
        for chunk in chunks[1:]:
            streamed += chunk
        for answer in (whole, streamed):
            llm.invoke([HumanMessage("x"), answer, HumanMessage("Again.")])
            assert "oops" in seen[-1][1]["content"] and "add" in seen[-1][1]["content"]
    bare = AIMessage("", invalid_tool_calls=[invalid_tool_call(name="add", args=None, id="1", error="x")])
    assert to_chat([bare])[0]["content"] == '{"name": "add", "arguments": }'
