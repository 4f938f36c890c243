"""Thoughts of a whole model that marks them in its own way, through RSDLLM."""

from __future__ import annotations

import json

from llama_index.core.base.llms.types import ChatMessage, TextBlock, ThinkingBlock
from llama_index.core.tools import FunctionTool

from rsd_integrations.llama_index import RSDLLM
from tests.parrots import GEMMA, GPT_OSS
from tests.test_thinking_formats import ANSWER, DOCUMENT, THOUGHT


def add(sum: int, why: str) -> str:
    """Add."""
    return f"{sum} {why}"


def test_thoughts_of_gemma() -> None:
    with GEMMA.pipeline(GEMMA.written(ANSWER, THOUGHT), **GEMMA.variables) as pipe:
        llm = RSDLLM.from_pipeline(
            pipe, temperature=0, max_tokens=120, threshold=0.5, chat_template_kwargs=GEMMA.variables
        )
        message = llm.chat([ChatMessage("2 + 2?")]).message
    assert message.blocks == [ThinkingBlock(content=THOUGHT), TextBlock(text=ANSWER)]


def test_calls_of_gpt_oss() -> None:
    tool = FunctionTool.from_defaults(add)
    shown = tool.metadata.to_openai_tool(skip_length_check=True)
    with GPT_OSS.pipeline(GPT_OSS.called("add", DOCUMENT, THOUGHT), tools=[shown]) as pipe:
        llm = RSDLLM.from_pipeline(pipe, temperature=0, max_tokens=100, threshold=0.5)
        response = llm.chat_with_tools([tool], "2 + 2?")
        calls = llm.get_tool_calls_from_response(response)
    assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("add", json.loads(DOCUMENT))]
