"""Token counts of chats and of their parts, as trimming asks for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)

from rsd_integrations.errors import PromptError
from rsd_integrations.langchain import ChatRSD
from tests.small_tokenizers import MISTRAL
from tests.tiny_models import tokenizer, trio

CALL = {"name": "f", "args": {"a": 1}, "id": "1", "type": "tool_call"}
CHAT = [HumanMessage("Hello there"), AIMessage("Hi you"), HumanMessage("Now what?"), AIMessage("Well.")]


@pytest.fixture(scope="module")
def strict() -> Iterator[ChatRSD]:
    """Over a template that wants the user first, and turns that alternate."""
    words = copy.deepcopy(tokenizer("ascii"))
    words.chat_template = MISTRAL.replace("bos_token", "''")
    models = {role: (model, words) for role, (model, _) in trio("Llama").items()}
    with ChatRSD(**models, device="cpu") as llm:
        yield llm


@pytest.mark.parametrize(
    "part",
    [
        [],
        [HumanMessage("")],
        [AIMessage("Hi")],
        CHAT[::-1],
        CHAT[1:],
        [SystemMessage("")],
        [AIMessage("", tool_calls=[CALL])],
        [ToolMessage("5", tool_call_id="1")],
        [ToolMessage("", tool_call_id="1"), HumanMessage("x")],
    ],
)
def test_any_part_is_counted(strict: ChatRSD, llm: Any, part: list[BaseMessage]) -> None:
    for model in (strict, llm):
        assert model.get_num_tokens_from_messages(part) >= sum(
            model.get_num_tokens(str(message.content)) for message in part
        )
    assert strict.get_num_tokens_from_messages([]) == llm.get_num_tokens_from_messages([]) == 0


def test_parts_that_no_template_renders_are_counted_as_in_a_chat(strict: ChatRSD) -> None:
    with pytest.raises(PromptError, match="refuses"):
        strict.invoke(CHAT[1:])
    frame = strict.get_num_tokens_from_messages([HumanMessage("x")]) - strict.get_num_tokens("x")
    whole = strict.get_num_tokens_from_messages(CHAT)
    assert abs(strict.get_num_tokens_from_messages(CHAT[::-1]) - whole) <= frame
    rest = strict.get_num_tokens_from_messages(CHAT[1:])
    assert whole - rest >= strict.get_num_tokens("Hello there")


def test_calls_are_counted_by_their_letters(strict: ChatRSD) -> None:
    """As the models' templates write them, not as the escapes that JSON could have in their place."""
    none, some = (
        strict.get_num_tokens_from_messages([AIMessage("", tool_calls=[CALL | {"args": {"a": text}}])])
        for text in ("", "é" * 40)
    )
    assert some - none == strict.get_num_tokens("é" * 40)
    with pytest.raises(PromptError, match="half a character"):
        strict.get_num_tokens_from_messages([AIMessage("", tool_calls=[CALL | {"args": {"a": "\ud800"}}])])


@pytest.mark.parametrize("strategy", ["first", "last"])
def test_trimming(strict: ChatRSD, strategy: Any) -> None:
    whole = strict.get_num_tokens_from_messages(CHAT)
    room = whole + strict.get_num_tokens_from_messages([HumanMessage("")])
    assert trim_messages(CHAT, max_tokens=room, token_counter=strict, strategy=strategy) == CHAT
    half = trim_messages(
        CHAT,
        max_tokens=whole - 1,
        token_counter=strict,
        strategy=strategy,
        start_on="human" if strategy == "last" else None,
        end_on="ai",
    )
    assert half == (CHAT[:2] if strategy == "first" else CHAT[2:])
    assert trim_messages([], max_tokens=9, token_counter=strict) == []


def test_media_are_refused_by_name(llm: Any) -> None:
    with pytest.raises(PromptError, match="'image', which is not text"):
        llm.get_num_tokens_from_messages([HumanMessage([{"type": "image", "url": "x"}])])
