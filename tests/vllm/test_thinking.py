"""Thoughts of today's models behind servers, whose text leaves special tokens out."""

from __future__ import annotations

from pathlib import Path

import pytest
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.shared.tooling import Calls
from rsd_integrations.backends.shared.writing import Language
from rsd_integrations.backends.vllm.writer import VLLMWriter
from rsd_integrations.encoding import encode_markup
from rsd_integrations.output import Output
from rsd_integrations.pocket import pocket_paths
from rsd_integrations.protocols import Kept, Written
from tests.parrots import GPT_OSS, SPEAKERS
from tests.test_thinking_formats import ANSWER, DOCUMENT, FINAL, FORM, THOUGHT, TOOL
from tests.tiny_models import tokenizer
from tests.vllm.double import double
from tests.vllm.test_sessions import INFO, SERVERS

OPENED = "<|channel|>analysis<|message|>"


def served(
    name: str, script: str, folder: Path, output: Output, threshold: float = 0.0
) -> tuple[object, ...]:
    speaker = SPEAKERS[name]
    model, tok = speaker.model(script, tools=list(output.tools), **speaker.variables)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    paths = pocket_paths()
    with (
        double(folder) as draft,
        double(folder) as target,
        double(paths.prm) as prm,
        RSDPipeline.from_vllm(draft.url, target.url, prm.url) as pipe,
    ):
        out = pipe.generate(
            "2 + 2?",
            temperature=0,
            threshold=threshold,
            max_tokens=150,
            stop="END",
            output=output,
            chat_template_kwargs=speaker.variables,
        )
        asked = [body for path, body in (*draft.asked, *target.asked) if path == "/v1/completions"]
    assert len(asked) < 12  # Held to grammars by the servers, not asked token by token.
    return out.reasoning, out.text, out.finish_reason, [call.name for call in out.tool_calls]


THOUGHTS = [THOUGHT, pytest.param(None, marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", SPEAKERS)
@pytest.mark.parametrize("thought", THOUGHTS)
def test_thoughts_are_reasoning(name: str, thought: str | None, tmp_path: Path) -> None:
    script = SPEAKERS[name].written(ANSWER, thought)
    assert served(name, script, tmp_path, Output(), 1.1) == (thought, ANSWER, "stop", [])


@pytest.mark.parametrize("name", SPEAKERS)
@pytest.mark.parametrize("thought", THOUGHTS)
def test_documents(name: str, thought: str | None, tmp_path: Path) -> None:
    script = SPEAKERS[name].written(DOCUMENT, thought)
    assert served(name, script, tmp_path, FORM) == (thought, DOCUMENT, "stop", [])


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_of_gpt_oss(choice: str, thought: str | None, tmp_path: Path) -> None:
    script = GPT_OSS.called("add", DOCUMENT, thought)
    output = Output.of(tools=[TOOL], tool_choice=choice)
    assert served("gpt-oss", script, tmp_path, output) == (thought, "", "tool_calls", ["add"])


@pytest.mark.parametrize(
    ("name", "written", "shown"),
    [
        ("gpt-oss", "", ""),
        ("gpt-oss", f"{OPENED}so", f"{OPENED}so"),
        ("gpt-oss", f"{OPENED}so<|end|><|start|>assistant{FINAL}", f"{OPENED}so<|end|>"),
        ("cohere", "", ""),
        ("cohere", "<|START_THINKING|>so", "<|START_THINKING|>so"),
        ("cohere", "<|START_THINKING|>so<|END_THINKING|>", "<|START_THINKING|>so<|END_THINKING|>"),
        ("granite", "<think>so", "<think>so"),
        ("granite", "<think>so</think>", "<think>so</think>"),
    ],
)
def test_a_grammar_from_the_middle_allows_what_the_whole_one_does(
    name: str, written: str, shown: str
) -> None:
    tok = SPEAKERS[name].tokenizer()
    language = Language.of(tok, "tiny", None, Calls.of(tok))
    session = VLLMWriter(SERVERS, "tiny", language, INFO).open("hi", FORM)
    form = session.form
    assert form is not None
    step = Written(shown, encode_markup(tok, written), "delimiter", None, language.vocabulary)
    session.commit(Kept("target", step, ""), own=False)
    grammar = form.grammar("")
    assert grammar is not None
    packed = bytearray(LLMatcher(from_tokenizer(tok), grammar).compute_bitmask())
    allowed = form.constraint.allowed(language.size).tolist()
    assert [bool(packed[one // 8] >> one % 8 & 1) for one in range(len(allowed))] == allowed


@pytest.mark.parametrize(
    ("output", "written", "given"),
    [
        (Output(tools=(TOOL,), strict=True), "Let me see.\n\n", True),
        (Output(tools=(TOOL,), strict=True), "Let me see.\n<tool_call>", False),
        (Output(tools=(TOOL,), choice="required"), "\n", True),
        (Output(tools=(TOOL,), choice="required"), "<tool_call>", False),
        (FORM, "\n", True),
        (FORM, "{", False),
    ],
)
def test_no_server_is_given_a_grammar_from_within_a_form(output: Output, written: str, given: bool) -> None:
    tok = tokenizer("tools")
    language = Language.of(tok, "tiny", None, Calls.of(tok))
    form = VLLMWriter(SERVERS, "tiny", language, INFO).open("hi", output).form
    assert form is not None
    assert (form.grammar(written) is not None) is given
    form.commit(written)
    assert (form.grammar("") is not None) is given
