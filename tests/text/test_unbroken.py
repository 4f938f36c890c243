"""What delimiters do not cut, and calls split from text, however the text comes in pieces."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.text.segment import CallSplitter, StepBoundary, Unbroken

CALL = Unbroken("<c>", "</c>")
LEADING = Unbroken("{", "", leading=True)
PIECES = st.lists(st.sampled_from(["<c>", "</c>", "<", "c>", "a", " ", "\n\n", "{", "}"]), max_size=12)


def split(unbroken: Unbroken, pieces: list[str]) -> tuple[str, list[str]]:
    splitter = CallSplitter(unbroken)
    shown, calls = "", []
    for piece in [*pieces, None]:
        more, found = splitter.push(piece or "", final=piece is None)
        shown += more
        calls += found
    return shown, calls


@given(PIECES, st.sampled_from([CALL, LEADING]))
def test_pieces_make_no_difference(pieces: list[str], unbroken: Unbroken) -> None:
    whole = split(unbroken, ["".join(pieces)])
    assert split(unbroken, pieces) == whole
    assert split(unbroken, list("".join(pieces))) == whole


@given(PIECES)
def test_calls_are_what_a_regular_expression_finds(pieces: list[str]) -> None:
    text = "".join(pieces)
    shown, calls = split(CALL, [text])
    assert calls == re.findall(r"<c>(?:.|\n)*?(?:</c>|\Z)", text)
    rest = re.split(r"\s*<c>(?:.|\n)*?(?:</c>\s*|\Z)", text)
    spoken = "\n".join(part for part in rest if part.strip())
    assert shown == spoken or shown.split() == spoken.split()


@given(PIECES)
def test_text_without_calls_is_unchanged(pieces: list[str]) -> None:
    text = "".join(pieces).replace("<", "(")
    assert split(CALL, pieces if "<" not in "".join(pieces) else [text]) == (
        "".join(pieces) if "<" not in "".join(pieces) else text,
        [],
    )


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        ('{"a": 1}', "", ['{"a": 1}']),
        (' \n{"a"', "", ['{"a"']),
        ('so {"a": 1}', 'so {"a": 1}', []),
        ("", "", []),
    ],
)
def test_bare_calls_lead(text: str, shown: str, calls: list[str]) -> None:
    assert split(LEADING, list(text)) == (shown, calls)


def steps(text: str, unbroken: Unbroken | None, size: int = 1, most: int = 10**6) -> list[str]:
    """The text cut into steps as a writer and the algorithm do it, of so many characters at most."""
    done: list[str] = []
    inside = False
    while text:
        committed = "".join(done)
        boundary = StepBoundary(("\n\n",), (), committed[-8:], unbroken, inside, blank=not committed.strip())
        end, checked = size, 0
        while end < min(most, len(text)) and boundary.find(text[:end], checked) is None:
            checked, end = end, end + size
        done.append(text[:end])
        inside = boundary.ends_inside(text[:end])
        text = text[end:]
    return done


@pytest.mark.parametrize("size", [1, 2, 5])
def test_calls_are_steps(size: int) -> None:
    text = "Look.\n\nNow <c>a\n\nb</c>\n\n<c>\n\nc</c>So.\n\nDone."
    found = steps(text, CALL, size)
    assert "".join(found) == text
    if size == 1:
        assert found == ["Look.\n\n", "Now <c>a\n\nb</c>", "\n\n<c>\n\nc</c>", "So.\n\n", "Done."]
    for call in ("<c>a\n\nb</c>", "<c>\n\nc</c>"):
        assert sum(call in step for step in found) == 1 or size > 1


@given(PIECES, st.integers(1, 4))
def test_no_call_is_cut(pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    found = steps(text, CALL, size)
    assert "".join(found) == text
    ends = [len("".join(found[: index + 1])) for index in range(len(found) - 1)]
    for call in re.finditer(r"<c>(?:.|\n)*?(?:</c>|\Z)", text):
        # A token may carry on behind the text that completed a step, so a cut may fall into a marker.
        inner = range(call.start() + 3, call.end())
        assert not [end for end in ends if end in inner and text[: call.end()].endswith("</c>") and size == 1]


@given(PIECES, st.integers(1, 9))
def test_a_call_that_a_limit_cut_goes_on_to_its_end(pieces: list[str], most: int) -> None:
    text = "".join(pieces)
    found = steps(text, CALL, most=most)
    assert "".join(found) == text
    ends = {len("".join(found[: index + 1])): len(step) for index, step in enumerate(found)}
    for call in re.finditer(r"<c>(?:.|\n)*?</c>", text):
        assert call.end() in ends
        assert all(ends[end] == most for end in ends if call.start() + 3 <= end < call.end())


def test_a_document_is_one_step_from_where_it_starts() -> None:
    assert steps("{\n\na\n\n}\n\n", Unbroken()) == ["{\n\na\n\n}\n\n"]
    thinking = "so\n\nthus\n\n</t>{\n\n}\n\n"
    assert steps(thinking, Unbroken("</t>")) == ["so\n\n", "thus\n\n", "</t>{\n\n}\n\n"]
    assert steps('{\n\n"a"}', LEADING) == ['{\n\n"a"}']
    assert steps('So {\n\n"a"}', LEADING) == ["So {\n\n", '"a"}']


@given(st.text("<t/> \n{a", max_size=30), st.sampled_from(["", "\n\n ", " "]))
def test_a_document_begins_behind_thoughts_whoever_opened_them(text: str, blank: str) -> None:
    """The template or the model itself; without any it begins at once."""
    opened = steps(f"so{text}", Unbroken("</t>"))
    written = steps(f"{blank}<t>so{text}", Unbroken("</t>", behind="<t>"))
    assert [written[0].removeprefix(f"{blank}<t>"), *written[1:]] == opened
    if not text.lstrip().startswith("<t>"):
        assert steps(blank + text, Unbroken("</t>", behind="<t>")) == steps(blank + text, Unbroken())
