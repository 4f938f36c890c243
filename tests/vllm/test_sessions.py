"""Sessions by themselves: no server is asked."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from rsd_integrations.backends.shared.tooling import Calls
from rsd_integrations.backends.shared.writing import Language
from rsd_integrations.backends.vllm.address import Address
from rsd_integrations.backends.vllm.asking import Pooling
from rsd_integrations.backends.vllm.client import Servers
from rsd_integrations.backends.vllm.scorer import VLLMScorer
from rsd_integrations.backends.vllm.sessions import VLLMWriterSession
from rsd_integrations.backends.vllm.writer import VLLMWriter
from rsd_integrations.encoding import encode_markup
from rsd_integrations.output import Output
from rsd_integrations.prm.base import Feed
from rsd_integrations.prm.trl import TRLFormat
from rsd_integrations.protocols import DraftStep, Kept, ModelInfo, Sampling, WindowFull, Written
from rsd_integrations.text.segment import StepBoundary
from tests.small_tokenizers import CJK, across_characters
from tests.tiny_models import tokenizer

INFO = ModelInfo("tiny", parameters=10, pair_flops=1, window=60)
SERVERS = Servers(Address.of("draft", "http://127.0.0.1:9", {}))


def opened(flavour: str = "a", prompt: str = "hi") -> VLLMWriterSession:
    tok = tokenizer(flavour)
    language = Language.of(tok, "tiny", None, Calls.of(tok))
    return VLLMWriter(SERVERS, "tiny", language, INFO).open(prompt)


def step(max_tokens: int = 20, **boundary: Any) -> DraftStep:
    sampling = Sampling(0.0, 1.0, None, random.Random(0).random)
    return DraftStep(StepBoundary(("\n\n",), **boundary), max_tokens, sampling)


def rejected(session: VLLMWriterSession, text: str) -> None:
    session.commit(Kept("target", Written(text, (), "delimiter", None, "another"), text), own=False)


def test_half_a_character_of_a_rejected_step_is_gone() -> None:
    session = opened()
    half, whole = tokenizer("a").encode("\u00e9", add_special_tokens=False)[:1], tokenizer("a").encode("x")
    session.begin(step())
    assert session.push(half[0]) is None
    assert session.text == ""
    rejected(session, "Right.\n\n")
    session.begin(step())
    session.push(whole[0])
    assert session.text == "x"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_cut_character_makes_way_for_another_model_s_text(data: st.DataObject) -> None:
    """Whatever a limit cuts: the tokens are those of the text, and its character is written anew."""
    tok = across_characters()
    language = Language.of(tok, "tiny", None, Calls.of(tok))
    session = VLLMWriter(SERVERS, "tiny", language, replace(INFO, window=2000)).open("hi")
    text, going = "", list[int]()
    for own in data.draw(st.lists(st.booleans(), max_size=8)):
        said = data.draw(st.text(st.sampled_from("".join(CJK).replace("\n", "")), min_size=1, max_size=6))
        going += tok.encode(said, add_special_tokens=False)
        count = data.draw(st.integers(1, len(going)))
        session.begin(step(count))
        written = [session.push(token) for token in going[:count]][-1]
        assert written is not None and written.end == "limit"
        if own:
            session.commit(Kept("draft", written, written.text), own=True)
            text, going = text + written.text, going[count:]
        else:
            rejected(session, said)
            text, going = text + said, []
        told = tok.decode(session.tokens[session.prompt_tokens :])
        assert told.removesuffix("\ufffd" * bool(going)) == text


def test_a_session_counts_what_a_server_does_not_tell() -> None:
    session = opened()
    prompt = session.prompt_tokens
    tokens = tokenizer("a").encode("abcdefgh", add_special_tokens=False)
    session.begin(step())
    for token in tokens[:3]:
        session.push(token)
    session.count(None, prompt + 2)  # The last token was written, not read.
    assert session.tally.forwarded == prompt + 2
    session.commit(Kept("draft", session.written("limit"), "abc"), own=True)
    session.begin(step())
    session.push(tokens[3])
    session.count(None, len(session.tokens) - 1)
    assert session.tally.forwarded == prompt + 3
    rejected(session, "other")
    session.begin(step())
    session.push(tokens[4])
    session.count(None, len(session.tokens) - 1)
    # What was rejected is read anew in the other's words.
    assert session.tally.forwarded == prompt + 3 + (len(session.tokens) - 1 - (prompt + 3))
    session.count(prompt, len(session.tokens) - 1)  # It tells: all but the prompt was forgotten.
    assert session.tally.forwarded == 2 * (len(session.tokens) - 1) - prompt


def test_what_a_server_wrote_in_vain_is_not_known_text() -> None:
    session = opened()
    session.begin(step())
    session.push(tokenizer("a").encode("x")[0])
    session.count(None, len(session.tokens) + 5)
    session.forget()
    session.commit(Kept("draft", session.written("limit"), "x"), own=True)
    read, length = session.tally.forwarded, len(session.tokens)
    session.count(None, length + 3)
    assert session.tally.forwarded == read + 3


def test_the_window_ends_a_step() -> None:
    session = opened()
    session.begin(step(max_tokens=500))
    letters = tokenizer("a").encode("z" * 100, add_special_tokens=False)
    written = None
    for token in letters:
        written = session.push(token)
        if written is not None:
            break
    assert written is not None
    assert written.end == "limit"
    assert len(session.tokens) == INFO.window


def test_a_step_that_the_prm_has_no_room_for() -> None:
    scorer = VLLMScorer(SERVERS, "prm", TRLFormat(tokenizer("ascii")), INFO, Pooling())
    session = scorer.open("hi")
    tokens, count = session.lay_out("1 + 1 = 2.")
    assert tokens[session.prompt_tokens :] == list(scorer.format.step("1 + 1 = 2.", 0).ids)
    assert count == len(tokens) - session.prompt_tokens
    with pytest.raises(WindowFull):
        session.lay_out("1 + 1 = 2. " * 9)


def test_a_prm_s_steps_are_numbered() -> None:
    class Numbered(TRLFormat):
        def step(self, body: str, index: int) -> Feed:
            return super().step(f"{index} {body}", index)

    form = Numbered(tokenizer("ascii"))
    session = VLLMScorer(SERVERS, "prm", form, INFO, Pooling()).open("hi")
    prompt = session.tokens[:]
    for body, own in (("One.", True), ("", True), ("Two.", False)):
        session.commit(Kept("draft", Written(body, (), "delimiter"), body), own=own)
    tokens, _ = session.lay_out("Three.")
    fed = [form.step(body, index).ids for index, body in enumerate(["One.", "Two.", "Three."])]
    assert tokens == [*prompt, *fed[0], *fed[1], *fed[2]]
    again, count = session.lay_out("")
    assert (again, count) == ([*prompt, *fed[0], *fed[1]], 0)


def thinking(output: Output) -> VLLMWriterSession:
    tok = copy.deepcopy(tokenizer("tools"))
    tok.add_tokens(["<think>", "</think>"])
    language = Language.of(tok, "tiny", None, Calls.of(tok))
    return VLLMWriter(SERVERS, "tiny", language, INFO).open("hi", output)


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
OUTPUTS = {
    "document": Output.of(
        response_format={"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2]}}}
    ),
    "call": Output.of(tools=[TOOL], tool_choice="required"),
    "words or strict calls": Output.of(
        tools=[{**TOOL, "function": {**TOOL["function"], "strict": True}}]  # type: ignore[dict-item]
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize(
    "committed",
    ["", "<think>", "<think>so", "<think>so\n\n", "<think>so</think>", "<think>so</think>\n\n"],
    ids=repr,
)
def test_a_grammar_from_the_middle_allows_what_the_whole_one_does(kind: str, committed: str) -> None:
    """Before the thinking, within it and behind it."""
    session = thinking(OUTPUTS[kind])
    form, tok = session.form, session._writer.tokenizer
    assert form is not None
    tokens = encode_markup(tok, committed)
    session.commit(
        Kept("target", Written(committed, tokens, "delimiter", None, session._writer.vocabulary), ""),
        own=False,
    )
    grammar = form.grammar("")
    assert grammar is not None
    rest = LLMatcher(from_tokenizer(tok), grammar)
    packed = torch.frombuffer(bytearray(rest.compute_bitmask()), dtype=torch.uint8)
    bits = ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten().bool()[: len(tok)]
    assert bits.tolist() == form.constraint.allowed(len(tok)).tolist()
    assert form.thinks("") is ("</think>" not in committed)
