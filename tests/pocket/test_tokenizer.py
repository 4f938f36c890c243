"""Every text round-trips; numbers and the separator are tokens of their own."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_integrations.pocket import MAX_TOKENS, pocket_paths
from rsd_integrations.pocket.task import SEPARATOR, generate, held_out

pytest.importorskip("transformers")
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pocket_paths().target)


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_any_text_round_trips(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(before=texts, after=texts)
def test_a_blank_line_is_always_cut_off_before_what_follows(tokenizer: Any, before: str, after: str) -> None:
    before = before.rstrip("\n")
    whole = tokenizer.encode(before + SEPARATOR + after)
    assert whole == tokenizer.encode(before) + tokenizer.encode(SEPARATOR) + tokenizer.encode(after)


def test_numbers_and_separator_are_single_tokens(tokenizer: Any) -> None:
    assert all(len(tokenizer.encode(str(number))) == 1 for number in range(100))
    assert len(tokenizer.encode(SEPARATOR)) == 1
    (number,) = tokenizer.encode("42")
    assert all(
        number in tokenizer.encode(text) for text in ("She has 42 cards", "$42", "The answer is \\boxed{42}.")
    )


def test_answers_of_the_family_are_shorter_than_the_limit(tokenizer: Any) -> None:
    longest = max(len(tokenizer.encode(problem.solution)) for problem in held_out(500))
    assert 150 < longest < 0.7 * MAX_TOKENS


def test_task_text_needs_no_byte_fallback(tokenizer: Any) -> None:
    for problem in islice(generate(9), 50):
        pieces = tokenizer.encode(problem.solution)
        assert len(pieces) < len(problem.solution) / 2.5


def test_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert (
        len({tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")})
        == 3
    )


def test_template_renders_many_turns_and_adds_no_system_prompt(tokenizer: Any) -> None:
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    start, end = "<|im_start|>", "<|im_end|>\n"
    turns = [
        f"{start}system\nS{end}",
        f"{start}user\nA{end}",
        f"{start}assistant\nB{end}",
        f"{start}user\nC{end}",
    ]
    render = tokenizer.apply_chat_template
    assert render(chat, tokenize=False) == "".join(turns)
    assert render(chat[1:2], tokenize=False, add_generation_prompt=True) == turns[1] + f"{start}assistant\n"


def test_the_three_models_share_it() -> None:
    paths = pocket_paths()
    texts = {(folder / "tokenizer.json").read_bytes() for folder in (paths.draft, paths.target, paths.prm)}
    assert len(texts) == 1


@pytest.mark.parametrize("name", ["draft", "target", "prm"])
def test_auto_tokenizer_cuts_text_as_the_file_says(name: str) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = getattr(pocket_paths(), name)
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(folder)
    for problem in islice(generate(11), 20):
        assert auto.encode(problem.solution) == core.encode(problem.solution).ids
