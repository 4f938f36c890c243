"""The eight ways to call an LLM of LlamaIndex: each gives the list of its responses, the last one whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from llama_index.core.llms import ChatMessage

from tests.counting import QUESTION

Entry = Callable[..., list[Any]]


def chat_of(text: str) -> list[ChatMessage]:
    """One user turn."""
    return [ChatMessage(text)]


async def _gathered(stream: Any) -> list[Any]:
    return [state async for state in await stream]


async def _alone(answer: Any) -> list[Any]:
    return [await answer]


ENTRIES: dict[str, Entry] = {
    "complete": lambda llm, text=QUESTION, **given: [llm.complete(text, **given)],
    "stream_complete": lambda llm, text=QUESTION, **given: list(llm.stream_complete(text, **given)),
    "acomplete": lambda llm, text=QUESTION, **given: asyncio.run(_alone(llm.acomplete(text, **given))),
    "astream_complete": lambda llm, text=QUESTION, **given: asyncio.run(
        _gathered(llm.astream_complete(text, **given))
    ),
    "chat": lambda llm, text=QUESTION, **given: [llm.chat(chat_of(text), **given)],
    "stream_chat": lambda llm, text=QUESTION, **given: list(llm.stream_chat(chat_of(text), **given)),
    "achat": lambda llm, text=QUESTION, **given: asyncio.run(_alone(llm.achat(chat_of(text), **given))),
    "astream_chat": lambda llm, text=QUESTION, **given: asyncio.run(
        _gathered(llm.astream_chat(chat_of(text), **given))
    ),
}
STREAMS = [name for name in ENTRIES if "stream" in name]


def text_of(response: Any) -> str:
    """The answer's text."""
    return str(response.text if hasattr(response, "text") else response.message.content or "")
