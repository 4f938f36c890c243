"""Text token by token is the text of all tokens, in both great families of tokenizers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rsd_integrations.backends.shared.detokenize import Detokenizer
from tests.small_tokenizers import CJK, across_characters, byte_level, sentencepiece_like

TOKENIZERS = {
    "byte level": byte_level(),
    "prefixed bytes": byte_level(add_prefix_space=True),
    "sentencepiece": sentencepiece_like(),
    "metaspace": sentencepiece_like(prepend=False),
    "across characters": across_characters(),
}
PIECES = ["Janet", " has", " 16", "\n\n", " ", "漢", "字", "😀", "é", "ки", "<", "|", "\t", "…"]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def whole(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def detokenizer(tokenizer: Any) -> Detokenizer:
    return Detokenizer(tokenizer, frozenset(tokenizer.all_special_ids))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_pieces_join_to_the_whole(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = detokenizer(tokenizer)
    pushed = [pieces.push([token]) for token in ids]
    assert "".join(pushed) + pieces.rest() == whole(tokenizer, ids)
    assert "\ufffd" not in "".join(pushed)
    assert pieces.rest() == ""
    assert detokenizer(tokenizer).push(ids) == whole(tokenizer, ids)


ACROSS = TOKENIZERS["across characters"]
known = st.sampled_from("".join(CJK))
foreign = st.text(known, max_size=24) | st.text(
    known | st.sampled_from("\ufffd \n") | st.characters(codec="utf-8")
)


def test_a_token_may_end_one_character_and_begin_the_next() -> None:
    ids = ACROSS.encode("去公园", add_special_tokens=False)
    assert all(ACROSS.decode([token]).endswith("\ufffd") for token in ids)
    pieces = detokenizer(ACROSS)
    assert [pieces.push([token]) for token in ids] == ["", "", "去", "", "公", "", "园"]


@settings(max_examples=200, deadline=None)
@given(text=foreign, cuts=st.lists(st.integers(1, 5), max_size=20))
def test_valid_text_stays_as_it_is(text: str, cuts: list[int]) -> None:
    """Also the mark itself, where a model writes it; with all that is certain shown at once."""
    ids = ACROSS.encode(text, add_special_tokens=False)
    pieces = detokenizer(ACROSS)
    shown, place = "", 0
    for count in [*cuts, len(ids)]:
        shown += pieces.push(ids[place : place + count])
        place += count
        so_far = bytes(_bytes(ACROSS, ids[:place])).decode(errors="ignore")
        assert so_far.startswith(shown) and so_far.removeprefix(shown).strip("\ufffd") == ""
    assert shown + pieces.rest() == text


@settings(max_examples=400, deadline=None)
@given(ids=st.lists(st.integers(3, 299), max_size=14))
@example(ids=[129, 281, 97, 97])
def test_characters_among_bytes_that_are_no_text_are_not_lost(ids: list[int]) -> None:
    pieces = detokenizer(ACROSS)
    text = "".join(pieces.push([token]) for token in ids) + pieces.rest()
    assert re.sub("\ufffd+", "\ufffd", text) == re.sub("\ufffd+", "\ufffd", whole(ACROSS, ids))


@settings(max_examples=50, deadline=None)
@given(tokens=st.lists(st.integers(3, 299), min_size=100, max_size=100))
def test_no_token_is_looked_at_for_long(tokens: list[int]) -> None:
    longest = 0
    pieces = detokenizer(ACROSS)
    decode = pieces._decode

    def counted(tokens: Any) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode(tokens)

    pieces._decode = counted
    pieces.push(tokens)
    assert longest <= 8


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(texts, min_size=1, max_size=4), data=st.data())
def test_special_tokens_are_silent(name: str, texts: list[str], data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    special = sorted(tokenizer.all_special_ids)
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text, add_special_tokens=False)
        ids.append(data.draw(st.sampled_from(special)))
    pieces = detokenizer(tokenizer)
    assert "".join(pieces.push([token]) for token in ids) == whole(tokenizer, ids)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=16))
def test_bytes_that_are_no_text_lose_nothing(data: bytes) -> None:
    """Random weights write such bytes all the time."""
    tokenizer = TOKENIZERS["byte level"]
    ids = [_byte_token(tokenizer, value) for value in data]
    pieces = detokenizer(tokenizer)
    text = "".join(pieces.push([token]) for token in ids) + pieces.rest()
    assert whole(tokenizer, ids) == data.decode(errors="replace")
    # How many marks stand for a run of such bytes is a matter of taste.
    assert re.sub("\ufffd+", "\ufffd", text) == re.sub("\ufffd+", "\ufffd", whole(tokenizer, ids))


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_LETTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(_OTHERS)}
"""Bytes as GPT-2's table spells them."""


def _byte_token(tokenizer: Any, value: int) -> int:
    """The id of a single byte."""
    found: int = tokenizer.convert_tokens_to_ids(_LETTERS[value])
    assert found is not None
    return found


def _bytes(tokenizer: Any, ids: list[int]) -> list[int]:
    values = {letter: byte for byte, letter in _LETTERS.items()}
    return [values[letter] for token in tokenizer.convert_ids_to_tokens(ids) for letter in token]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(kept=texts, rejected=texts, rewritten=texts, cut=st.integers(0, 3))
def test_going_back_forgets_a_rejected_step(
    name: str, kept: str, rejected: str, rewritten: str, cut: int
) -> None:
    tokenizer = TOKENIZERS[name]
    first, wrong = (tokenizer.encode(text, add_special_tokens=False) for text in (kept, rejected))
    right = tokenizer.encode("a" + kept + rewritten, add_special_tokens=False)[: len(first) + 5]
    # Steps may end in the middle of a character.
    first, rest = right[: max(0, len(first) - cut)], right[max(0, len(first) - cut) :]
    pieces = detokenizer(tokenizer)
    text = pieces.push(first)
    pieces.mark()
    pieces.push(wrong)
    pieces.back()
    text += pieces.push(rest) + pieces.rest()
    straight = detokenizer(tokenizer)
    assert text == straight.push(right) + straight.rest()


def test_half_a_character_is_shown_only_when_nothing_follows() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("漢", add_special_tokens=False)
    assert len(ids) == 3
    pieces = detokenizer(tokenizer)
    assert pieces.push(ids[:2]) == ""
    assert pieces.rest() == "\ufffd"
    assert pieces.push(ids[2:]) == "漢"
    assert pieces.rest() == ""


def test_tokens_since_a_whole_character_are_counted_anew_behind_one() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("😀", add_special_tokens=False)
    assert len(ids) == 4
    pieces = detokenizer(tokenizer)
    pieces.push(ids[:2])
    pieces.mark()
    assert pieces.ragged == (2, "")
    pieces.push(ids[2:3])
    pieces.back(to_whole=True)
    pieces.push(ids[:3])
    pieces.mark()
    assert pieces.ragged == (3, "")
    assert pieces.push(ids[3:]) == "😀"
