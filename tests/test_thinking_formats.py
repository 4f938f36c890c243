"""Thoughts as today's models mark them are reasoning, before words, calls and documents."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rsd_integrations.backends.shared.describe import hidden_ids
from rsd_integrations.backends.shared.headers import CALLS
from rsd_integrations.backends.shared.reasoning import reasoning_tags
from rsd_integrations.backends.shared.tooling import Calls, Tooling, call_format, call_reader
from rsd_integrations.encoding import render_chat
from rsd_integrations.output import Output
from rsd_integrations.text.segment import Unbroken
from rsd_integrations.text.thoughts import ReasoningTags
from rsd_integrations.types import Generation, ToolCall
from tests.parrots import COHERE, GPT_OSS, GRANITE, MISTRAL, SPEAKERS, Speaker
from tests.small_tokenizers import byte_level

THOUGHT = "First, add.\n\nThen END it."
ANSWER = "It is 4.\n\nDone."
DOCUMENT = '{"sum": 4, "why": "2\\n\\n2"}'
SCHEMA = {
    "properties": {"sum": {"type": "integer"}, "why": {"type": "string"}},
    "required": ["sum", "why"],
    "type": "object",
}
FORM = Output.of(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}})
FINAL = "<|channel|>final<|message|>"
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}


def generated(speaker: Speaker, script: str, *, output: Output | None = None, **more: Any) -> Generation:
    with speaker.pipeline(script, tools=list(output.tools) if output else None, **speaker.variables) as pipe:
        return pipe.generate(
            "2 + 2?",
            **{"temperature": 0, "threshold": 0.0, "max_tokens": 150, **more},
            output=output or Output(),
            chat_template_kwargs=speaker.variables,
        )


@pytest.mark.parametrize("threshold", [0.0, 1.1])
@pytest.mark.parametrize("name", SPEAKERS)
def test_thoughts_are_reasoning(name: str, threshold: float) -> None:
    """Whoever of the models writes them; stop strings do not count in them."""
    speaker = SPEAKERS[name]
    out = generated(speaker, speaker.written(ANSWER, THOUGHT), threshold=threshold, stop="END")
    assert (out.reasoning, out.text, out.finish_reason) == (THOUGHT, ANSWER, "stop")


@pytest.mark.parametrize("name", SPEAKERS)
def test_steps_of_thoughts_are_steps(name: str) -> None:
    speaker = SPEAKERS[name]
    out = generated(speaker, speaker.written(ANSWER, THOUGHT))
    assert out.steps[0].text.endswith("First, add.\n\n")
    assert out.steps[1].text.startswith("Then END it.")
    assert out.steps[-1].text.startswith("Done.")


@pytest.mark.parametrize("name", SPEAKERS)
def test_an_answer_without_thoughts(name: str) -> None:
    speaker = SPEAKERS[name]
    out = generated(speaker, speaker.written(ANSWER, None))
    assert (out.reasoning, out.text) == (None, ANSWER)


@pytest.mark.parametrize(
    ("threshold", "thought"),
    [
        (0.0, THOUGHT),
        (1.1, None),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in ((0.0, None), (1.1, THOUGHT))),
    ],
)
@pytest.mark.parametrize("name", SPEAKERS)
def test_documents(name: str, threshold: float, thought: str | None) -> None:
    """Behind thoughts, which are steps, and without; what marks an answer is no part of one."""
    speaker = SPEAKERS[name]
    script = speaker.written(DOCUMENT, thought)
    out = generated(speaker, script, output=FORM, threshold=threshold, step_delimiter=["\n\n", "2\\n"])
    assert (out.reasoning, out.text, out.finish_reason) == (thought, DOCUMENT, "stop")
    assert len(out.steps) == (2 if thought else 1)


@pytest.mark.parametrize("thought", [THOUGHT, None])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_of_gpt_oss(choice: str, thought: str | None) -> None:
    """In a message of their own, which a token of its own ends."""
    script = GPT_OSS.called("add", DOCUMENT, thought)
    out = generated(GPT_OSS, script, output=Output.of(tools=[TOOL], tool_choice=choice))
    assert [(call.name, call.arguments) for call in out.tool_calls] == [("add", json.loads(DOCUMENT))]
    assert (out.reasoning, out.text, out.finish_reason) == (thought, "", "tool_calls")
    assert len(out.steps) == (2 if thought else 1)  # A call is one, and thoughts before it are not.


def test_words_or_strict_calls_of_gpt_oss() -> None:
    """A grammar has both in messages of their own."""
    strict = Output.of(tools=[{**TOOL, "function": {**TOOL["function"], "strict": True}}])
    said = generated(GPT_OSS, GPT_OSS.written(ANSWER, THOUGHT), output=strict, max_tokens=140)
    assert (said.reasoning, said.text, said.tool_calls) == (THOUGHT, ANSWER, ())
    called = generated(GPT_OSS, GPT_OSS.called("add", DOCUMENT, THOUGHT), output=strict, max_tokens=140)
    assert (called.reasoning, called.text) == (THOUGHT, "")
    assert [call.name for call in called.tool_calls] == ["add"]


def test_what_gpt_oss_thought_before_a_call_is_there_behind_it() -> None:
    """Its template calls it by another name."""
    function = {"name": "add", "arguments": {}}
    calling = {"role": "assistant", "tool_calls": [{"type": "function", "id": "1", "function": function}]}
    chat: list[Any] = [
        {"role": "user", "content": "2 + 2?"},
        {**calling, "reasoning_content": "Hm."},
        {"role": "tool", "content": "4"},
        {**calling, "reasoning_content": "So.", "content": "I look."},
    ]
    tok = GPT_OSS.tokenizer()
    text = tok.decode(render_chat(tok, chat))
    assert (
        "<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.add"
        in text
    )
    assert "So." not in text  # Its template refuses thoughts and words before one call.


def test_of_tokens_alone_no_thoughts_come() -> None:
    """All of Mistral's vocabularies have them."""
    tok = MISTRAL.tokenizer()
    assert reasoning_tags(tok) == ReasoningTags("[THINK]", "[/THINK]")
    marks = {tok.convert_tokens_to_ids(mark) for mark in ("[THINK]", "[/THINK]")}
    assert not marks & hidden_ids(tok)
    tok.chat_template = "{{- '[INST]' + messages[0].content + '[/INST]' -}}"
    assert reasoning_tags(tok) is None
    assert marks <= hidden_ids(tok)


@pytest.mark.parametrize(
    ("more", "opened"),
    [({}, False), ({"reasoning": True}, True), ({"reasoning": False}, False)],
)
def test_a_prompt_that_opens_the_thinking_or_closes_it(more: dict[str, Any], opened: bool) -> None:
    tok = COHERE.tokenizer()
    tags = reasoning_tags(tok, render_chat(tok, [{"role": "user", "content": "hi"}], **more))
    assert tags is not None
    assert tags.open_in_prompt is opened


def test_a_prompt_that_opens_the_answer() -> None:
    """A template that turns gpt-oss's thinking off: documents begin at once."""
    off = replace(GPT_OSS, template=GPT_OSS.template.replace("assistant' -}}{%- endif -%}", "X"))
    assert off.template != GPT_OSS.template
    off = replace(off, template=off.template.replace("X", f"assistant{FINAL}' -}}}}{{%- endif -%}}"))
    out = generated(off, DOCUMENT, output=FORM)
    assert (out.reasoning, out.text) == (None, DOCUMENT)


def test_what_marks_an_answer_is_text_where_no_template_tells_of_it() -> None:
    other = COHERE.template.replace("_RESPONSE|", "_TEXT|")
    assert reasoning_tags(replace(COHERE, template=other).tokenizer()) == ReasoningTags(
        "<|START_THINKING|>", "<|END_THINKING|>"
    )
    template = GRANITE.template.replace("<response></response>", "<response> and </response>")
    assert reasoning_tags(replace(GRANITE, template=template).tokenizer()) == ReasoningTags()


@pytest.mark.parametrize(
    ("thinking", "content", "expected"),
    [
        ({"open_pattern": r"(?:^|<think>\s*)", "close": "</think>"}, {}, ReasoningTags()),
        ({"open": "<think>", "close_pattern": r"\s*</think>\n*"}, {}, ReasoningTags()),
        (
            {"open_pattern": r"\[THINK\]", "close_pattern": r"\[/THINK\]"},
            {},
            ReasoningTags("[THINK]", "[/THINK]"),
        ),
        ({"close": "</think>"}, {}, ReasoningTags()),
        (
            {"open": "<a>", "close": "</a>"},
            {"open": "<b>\n", "close_pattern": r"\n?</b>"},
            ReasoningTags("<a>", "</a>", answer="<b>", end="</b>"),
        ),
        ({"open": "<a>", "close": "</a>"}, {"close": "<|im_end|>"}, ReasoningTags("<a>", "</a>")),
        ({"open": "<a>", "close": "</a>"}, {"open": "<b>"}, ReasoningTags("<a>", "</a>", answer="<b>")),
        # Without its tokens.
        (
            {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
            {"open": FINAL, "close": "<|end|>"},
            ReasoningTags("<|channel|>analysis<|message|>", "<|end|>", answer=FINAL, end="<|end|>"),
        ),
        # No text: who knows what it finds.
        ({"open_pattern": r"<think\d*>", "close": "</a>"}, {}, None),
        ({"open": "<a>", "close_pattern": r"</a>|</b>"}, {}, None),
        ({"open": "<a>"}, {}, None),
    ],
)
def test_tags_of_response_templates(thinking: Any, content: Any, expected: ReasoningTags | None) -> None:
    tok = byte_level()
    tok.response_template = {"fields": {"thinking": thinking, "content": content}}
    assert reasoning_tags(tok) == expected


def test_special_tags_in_the_text_of_another_vocabulary() -> None:
    """They are the tokens that they are for the model whose they are; what else is special stays text."""
    tok = MISTRAL.tokenizer()
    tooling = Tooling(tok, "x", frozenset(), Calls.of(tok))
    ids = tooling.encode("[THINK]Hm.[/THINK][INST]4", calls=False)
    special = [token.content for index in ids if (token := tok.added_tokens_decoder.get(index))]
    assert special == ["[THINK]", "[/THINK]"]
    assert tok.decode(ids) == "[THINK]Hm.[/THINK][INST]4"


def test_calls_of_gpt_oss_by_a_response_template() -> None:
    tok = GPT_OSS.tokenizer()
    tok.response_template = {
        "start_anchor": "<|start|>assistant",
        "fields": {
            "thinking": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
            "content": {"open": FINAL, "close": "<|end|>"},
            "tool_calls": {
                "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>\w+).*?<\|message\|>",
                "close": "<|call|>",
                "content": "json",
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
        },
    }
    tags, reader = reasoning_tags(tok), call_reader(tok, call_format(tok))
    assert tags is not None
    assert tags.lead == "<|start|>assistant"
    assert reader.unbroken == Unbroken(CALLS.before)
    (call,) = reader.read(f"{CALLS.before}add{CALLS.between}{DOCUMENT}") or ()
    assert isinstance(call, ToolCall)
    assert (call.name, call.arguments) == ("add", json.loads(DOCUMENT))
