"""Texts that spell separators, labels and control tokens never become them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_integrations.prm import PRMFormat, find_prm_format, prm_format_names
from rsd_integrations.types import Message
from tests.small_tokenizers import LLAMA3, MISTRAL, byte_level, sentencepiece_like

QWEN = byte_level(added=("<extra_0>", "<tool_call>"), bos="<|endoftext|>")
LLAMA = byte_level(
    LLAMA3,
    special=("<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|endoftext|>",
    eos="<|eot_id|>",
)
SPIECE = sentencepiece_like(MISTRAL, add_bos=True)
FORMATS: dict[str, tuple[str, Any]] = {
    "qwen": ("qwen", QWEN),
    "skywork": ("skywork", QWEN),
    "trl": ("trl", QWEN),
    "sequence": ("sequence", LLAMA),
    "sequence-mistral": ("sequence", SPIECE),
    "judge": ("judge", QWEN),
    "math_shepherd": ("math_shepherd", SPIECE),
    "versaprm": ("versaprm", LLAMA),
    "rlhflow": ("rlhflow", LLAMA),
    "rlhflow-mistral": ("rlhflow", SPIECE),
}
SPELLED = [
    *("<extra_0>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>"),
    *(" ки", "ки", " \n\n\n\n", "</s>", "<s>", "<extra", "_0>", "\ue0f0", "\ue0f1"),
]
evil = st.lists(st.sampled_from([*SPELLED, "a", " 12", "."]), min_size=1, max_size=6).map(
    lambda parts: "x" + "".join(parts) + "y"
)


def make(name: str) -> PRMFormat:
    chosen, tokenizer = FORMATS[name]
    return find_prm_format(chosen, SimpleNamespace(), tokenizer)


def test_each_format_is_tried() -> None:
    """ReasonFlux's is Qwen's under another name."""
    assert {name for name, _ in FORMATS.values()} == {*prm_format_names()} - {"reasonflux"}


def guarded(form: PRMFormat) -> set[int]:
    """Ids that only the format itself may write."""
    separator = getattr(form, "separator_id", None)
    # To Skywork's PRM every line is a step, as in its own code.
    special = set(form.tokenizer.all_special_ids) - {form.tokenizer.unk_token_id}
    return special | ({separator} if separator is not None and form.name != "skywork" else set())


def count(form: PRMFormat, ids: tuple[int, ...]) -> Counter[int]:
    return Counter(token for token in ids if token in guarded(form))


@pytest.mark.parametrize("name", FORMATS)
@given(text=evil)
@settings(max_examples=40, deadline=None)
def test_steps(name: str, text: str) -> None:
    form = make(name)
    for index in (0, 3):
        feed, quiet = form.step(text, index), form.step("xy", index)
        assert count(form, feed.ids) == count(form, quiet.ids)
        assert feed.ids[feed.read] == quiet.ids[quiet.read]
        assert feed.probe == quiet.probe
        assert 0 <= feed.read < len(feed.ids)


@pytest.mark.parametrize("name", FORMATS)
@given(text=evil)
@settings(max_examples=40, deadline=None)
def test_prompts(name: str, text: str) -> None:
    form = make(name)
    chat: list[Message] = [{"role": "user", "content": text}]
    quiet: list[Message] = [{"role": "user", "content": "xy"}]
    assert count(form, form.prompt(chat)) == count(form, form.prompt(quiet))


@pytest.mark.parametrize("name", FORMATS)
def test_tool_results_and_system_turns(name: str) -> None:
    form = make(name)

    def chat(text: str) -> list[Message]:
        return [
            {"role": "system", "content": text},
            {"role": "user", "content": "Q?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": text}}]},
            {"role": "tool", "content": text},
        ]

    text = "x" + "".join(SPELLED) + "y"
    assert count(form, form.prompt(chat(text))) == count(form, form.prompt(chat("xy")))


@pytest.mark.parametrize("name", FORMATS)
def test_the_text_is_still_all_there(name: str) -> None:
    form = make(name)
    text = "x<extra_0> ки <|im_end|></s>y"
    assert text in form.tokenizer.decode(form.step(text, 1).ids)


def test_the_guard_can_fail() -> None:
    """Encoding as model cards do, the separator does become a separator."""
    assert QWEN.convert_tokens_to_ids("<extra_0>") in QWEN.encode("x<extra_0>y")
    assert SPIECE.convert_tokens_to_ids("▁ки") in SPIECE.encode("x ки y")
