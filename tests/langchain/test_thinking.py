"""Thoughts of a whole model that marks them in its own way, through ChatRSD."""

from __future__ import annotations

import json
from functools import reduce
from operator import add
from typing import Any

from rsd_integrations.langchain import ChatRSD
from tests.parrots import GPT_OSS
from tests.test_thinking_formats import ANSWER, DOCUMENT, SCHEMA, THOUGHT, TOOL

SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 120, "threshold": 0.5}


def test_thoughts_of_gpt_oss() -> None:
    with GPT_OSS.pipeline(GPT_OSS.written(ANSWER, THOUGHT)) as pipe:
        llm = ChatRSD.from_pipeline(pipe, **SETTINGS)
        for message in (llm.invoke("2 + 2?"), reduce(add, llm.stream("2 + 2?"))):
            assert (message.text, message.additional_kwargs) == (ANSWER, {"reasoning_content": THOUGHT})


def test_calls_and_documents_of_gpt_oss() -> None:
    with GPT_OSS.pipeline(GPT_OSS.called("add", DOCUMENT, THOUGHT), tools=[TOOL]) as pipe:
        model = ChatRSD.from_pipeline(pipe, **SETTINGS).bind_tools([TOOL])
        chunk = reduce(add, model.stream("2 + 2?"))
    assert [call["args"] for call in chunk.tool_calls] == [json.loads(DOCUMENT)]
    assert (chunk.content, chunk.additional_kwargs) == ("", {"reasoning_content": THOUGHT})
    with GPT_OSS.pipeline(GPT_OSS.written(DOCUMENT, THOUGHT)) as pipe:
        llm = ChatRSD.from_pipeline(pipe, **SETTINGS)
        schema = {"title": "Sum", **SCHEMA}
        assert llm.with_structured_output(schema, method="json_schema").invoke("2 + 2?") == json.loads(
            DOCUMENT
        )
