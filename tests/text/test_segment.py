"""Where steps and answers end, whatever the chunks they arrive in."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_integrations.text.segment import Cut, HoldBack, StepBoundary, step_body
from rsd_integrations.text.thoughts import ReasoningSplitter, ReasoningTags

NEWLINES = ("\n\n",)
texts = st.text(alphabet="ab. \n", max_size=30)
strings = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)
chunked = st.lists(st.text(alphabet="ab. \n", min_size=1, max_size=4), max_size=12)


def write(boundary: StepBoundary, chunks: list[str]) -> tuple[str, Cut | None]:
    """Let a text grow token by token as a writer does; the text at the cut, and the cut."""
    text = ""
    for chunk in chunks:
        checked, text = len(text), text + chunk
        if cut := boundary.find(text, checked):
            return text, cut
    return text, None


def ends_a_step(text: str, delimiters: tuple[str, ...]) -> bool:
    """The definition, read literally: a delimiter, and for white space one behind some ink."""
    ink = len(text) - len(text.lstrip())
    return any(text.find(d, ink if d.isspace() else 0) >= 0 for d in delimiters)


@given(chunked, strings)
def test_a_step_ends_with_the_first_token_that_completes_a_delimiter(
    chunks: list[str], delimiters: tuple[str, ...]
) -> None:
    grown = ["".join(chunks[: count + 1]) for count in range(len(chunks))]
    expected = next((text for text in grown if ends_a_step(text, delimiters)), None)
    text, cut = write(StepBoundary(delimiters), chunks)
    assert (text if cut else None) == expected
    if cut:
        assert cut == Cut("delimiter", len(text))


@given(chunked, strings, texts)
def test_the_first_stop_string_ends_the_answer_wherever_it_began(
    chunks: list[str], stop: tuple[str, ...], committed: str
) -> None:
    committed = cut_at_stop(committed, stop)
    longest = max(map(len, stop)) - 1
    tail = committed[len(committed) - longest :] if longest < len(committed) else committed
    text, cut = write(StepBoundary(("\0",), stop, tail), chunks)
    # A token may bring several stops at once; the earliest one of the whole text counts.
    joined = committed + text
    starts = [joined.find(string) for string in stop if string in joined]
    assert (cut is None) == (not starts)
    if cut:
        assert cut == Cut("stop", min(starts) - len(committed))


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """Everything before the stop string that is completed first, character by character."""
    for end in range(len(text) + 1):
        found = [text[:end].find(string) for string in stop if text[:end].endswith(string)]
        if found:
            return text[: min(found)]
    return text


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (["So", ".\n", "\nNext"], "So.\n\nNext"),  # a delimiter across two tokens, text fused behind it
        (["So", ".\n\n"], "So.\n\n"),  # inside one merged token
        (["So.\n\n\n\n", "x"], "So.\n\n\n\n"),  # more line breaks than it takes
        (["\n\n", "So", "\n", "\n"], "\n\nSo\n\n"),  # leading line breaks belong to the step they precede
        (["\n\n\n\nSo\n", "\n"], "\n\n\n\nSo\n\n"),
    ],
)
def test_delimiters_in_every_position_of_a_token(chunks: list[str], expected: str) -> None:
    assert write(StepBoundary(NEWLINES), chunks) == (expected, Cut("delimiter", len(expected)))


@pytest.mark.parametrize("chunks", [[], ["\n\n", "\n\n", "  \n\n"], ["So\n", " \n"], ["never"]])
def test_no_delimiter_no_cut(chunks: list[str]) -> None:
    assert write(StepBoundary(NEWLINES), chunks)[1] is None


def test_a_stop_beats_a_delimiter_in_the_same_token() -> None:
    assert StepBoundary(NEWLINES, ("END",)).find("So\n\nEND") == Cut("stop", 4)
    assert StepBoundary(NEWLINES, ("\n\n",)).find("So\n\n") == Cut("stop", 2)


def test_a_stop_that_began_in_an_earlier_step_has_a_negative_offset() -> None:
    assert StepBoundary(NEWLINES, ("\n\nQ:",), "a.\n\n").find("Q: more") == Cut("stop", -2)


@given(chunked, strings)
def test_hold_back_shows_no_stop_and_loses_nothing_without_one(
    chunks: list[str], stop: tuple[str, ...]
) -> None:
    hold, shown, given_in = HoldBack(stop), "", ""
    for chunk in chunks:
        if any(string in given_in + chunk for string in stop):
            break
        given_in += chunk
        shown += hold.push(chunk)
        assert given_in == shown + hold._held
        # Whatever may yet begin a stop is held; nothing else is.
        starts = [i for i in range(len(given_in)) if any(s.startswith(given_in[i:]) for s in stop)]
        assert len(shown) == min(starts, default=len(given_in))
    assert shown + hold.finish() == given_in


@settings(max_examples=300)
@given(st.text(alphabet="ab\n", max_size=30), strings, st.data())
def test_deltas_of_any_chunking_join_to_the_text_before_the_stop(
    text: str, stop: tuple[str, ...], data: st.DataObject
) -> None:
    """Tokens of any length, committed as steps of any length."""
    expected, hold, shown, committed, step = cut_by_tokens(text, stop, data), HoldBack(stop), "", "", ""
    chunks, keeps = expected[1], expected[2]
    longest = max(map(len, stop)) - 1
    for chunk, commit in zip(chunks, keeps, strict=True):
        tail = committed[max(0, len(committed) - longest) :]
        checked, step = len(step), step + chunk
        if cut := StepBoundary(("\0",), stop, tail).find(step, checked):
            shown += hold.finish(step, cut.end)
            break
        if commit:
            shown += hold.push(step)
            assert expected[0].startswith(shown)
            committed, step = committed + step, ""
    else:
        shown += hold.finish(step)
    assert shown == expected[0]


def cut_by_tokens(text: str, stop: tuple[str, ...], data: st.DataObject) -> tuple[str, list[str], list[bool]]:
    """A random chunking, random step ends, and the text before the earliest stop at the first hit."""
    chunks, rest = [], text
    while rest:
        size = data.draw(st.integers(1, 4))
        chunks.append(rest[:size])
        rest = rest[size:]
    keeps = [data.draw(st.booleans()) for _ in chunks]
    grown = ""
    for chunk in chunks:
        grown += chunk
        if starts := [grown.find(string) for string in stop if string in grown]:
            return grown[: min(starts)], chunks, keeps
    return text, chunks, keeps


THINK = ReasoningTags("<t>", "</t>")
OPEN = ReasoningTags("<t>", "</t>", open_in_prompt=True)
MARKED = replace(THINK, answer="<r>", end="</r>")
PARTS = ["<t>", "</t>", "<r>", "</r>", "<", "</", "t>", "r>", "a", "b ", "\n", " "]
marked = st.lists(st.sampled_from(PARTS), max_size=10)


def split(tags: ReasoningTags | None, chunks: list[str]) -> tuple[str, str, bool]:
    """All that a splitter gives for these chunks."""
    splitter, answer, reasoning = ReasoningSplitter(tags), "", ""
    for index, chunk in enumerate([*chunks, ""]):
        more = splitter.push(chunk, final=index == len(chunks))
        answer, reasoning = answer + more[0], reasoning + more[1]
    return answer, reasoning, splitter.seen_reasoning


@pytest.mark.parametrize("tags", [THINK, OPEN, None, MARKED, replace(OPEN, answer="<r>")])
@settings(max_examples=300)
@given(pieces=marked, data=st.data())
def test_splitting_off_reasoning_does_not_depend_on_chunks(
    tags: ReasoningTags | None, pieces: list[str], data: st.DataObject
) -> None:
    text = "".join(pieces)
    edges = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert split(tags, chunks) == split(tags, [text])


@pytest.mark.parametrize(
    ("tags", "text", "answer", "reasoning"),
    [
        (THINK, "<t>\nwhy\n</t>\n\nso", "so", "why"),
        (THINK, "so", "so", ""),
        (THINK, "so <t>no</t>", "so <t>no</t>", ""),
        (THINK, "<t>cut", "", "cut"),
        (OPEN, "why</t>so", "so", "why"),
        (OPEN, "cut", "", "cut"),
        (None, "<t>why</t>so", "<t>why</t>so", ""),
        (THINK, "<t>a</t>b<t>c</t>", "b<t>c</t>", "a"),
        (MARKED, "<t>a</t>\n<r>\nb\n\nc\n</r>\n", "b\n\nc", "a"),
        (MARKED, "<t>a</t><r>b<r>c", "b<r>c", "a"),
        (MARKED, "<t>a</t>b<r>c</r>", "b<r>c</r>", "a"),
        (MARKED, "<t>a</t><r", "<r", "a"),
        (MARKED, "<t>a</t><r>b</r>c", "bc", "a"),
        # Not told to think it marks no answer.
        (MARKED, "<r>b</r>", "<r>b</r>", ""),
    ],
)
def test_one_block_of_thinking_at_the_start_is_reasoning(
    tags: ReasoningTags | None, text: str, answer: str, reasoning: str
) -> None:
    assert split(tags, list(text))[:2] == (answer, reasoning)
    for place in range(len(text) + 1):
        assert split(tags, [text[:place], text[place:]])[:2] == (answer, reasoning)


@pytest.mark.parametrize(
    ("text", "delimiters", "body"),
    [
        ("So.\n\n", NEWLINES, "So."),
        ("\n\n So. \n\n\n", NEWLINES, "So."),
        ("\n \n", NEWLINES, ""),
        ("So###", ("###",), "So"),
        ("###", ("###",), ""),
        ("So ### ", ("###",), "So"),
        ("So###\n\n", ("###", "\n\n"), "So"),
        ("So e", ("e",), "So"),
    ],
)
def test_the_body_is_the_text_without_delimiter_and_white_space(
    text: str, delimiters: tuple[str, ...], body: str
) -> None:
    assert step_body(text, delimiters) == body


def first_stop(text: str, stop: str, tags: ReasoningTags) -> int | None:
    """The definition, read literally: the first one that does not lie within the thinking."""
    opened = re.match("" if tags.open_in_prompt else r"\s*<t>", text)
    start = opened.end() if opened else len(text)
    end = text.find("</t>", start) if "</t>" in text[start:] else len(text)
    places = [match.start() for match in re.finditer(f"(?={re.escape(stop)})", text)]
    behind = end + len("</t>")
    counted = (place < start or place >= behind or (place == end and stop == "</t>") for place in places)
    return next((place for place, counts in zip(places, counted, strict=True) if counts), None)


@pytest.mark.parametrize(
    ("stop", "more", "found"),
    [("><", "<t>", None), ("t>b", "b", None), (">b", "b>b", 6), ("</t>\n\n", "\n\n", 1)],
)
def test_no_stop_string_begins_within_the_closing_markup_of_the_step_before(
    stop: str, more: str, found: int | None
) -> None:
    """But one may begin with all of it."""
    step = "a</t>"
    before = StepBoundary(("\0",), (stop,), thoughts=OPEN)
    assert before.find(step) is None
    tail, thoughts = before.tail_behind(step, len(stop) - 1), before.thoughts_behind(step)
    cut = StepBoundary(("\0",), (stop,), tail, thoughts=thoughts).find(more)
    assert (cut and len(step) + cut.end) == found


@settings(max_examples=300)
@given(marked, st.text("</t>ab \n", min_size=1, max_size=4), st.sampled_from([THINK, OPEN]), st.data())
def test_stop_strings_do_not_count_within_the_thinking(
    chunks: list[str], stop: str, tags: ReasoningTags, data: st.DataObject
) -> None:
    """Tokens of any length, committed as steps of any length."""
    found, committed, tail, step, thoughts = None, "", "", "", tags
    for chunk in chunks:
        boundary = StepBoundary(("\0",), (stop,), tail, thoughts=thoughts)
        checked, step = len(step), step + chunk
        if cut := boundary.find(step, checked):
            found = len(committed) + cut.end
            break
        if data.draw(st.booleans()):
            tail = boundary.tail_behind(step, 3)
            thoughts, committed, step = boundary.thoughts_behind(step), committed + step, ""
    assert found == first_stop("".join(chunks), stop, tags)


class Watched(str):
    """Notes how many characters are searched."""

    looked_at = 0

    def __radd__(self, before: str) -> Watched:
        return Watched(str.__add__(before, self))

    def find(self, part: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        found = super().find(part, start, len(self) if end is None else end)
        searched = (len(self) if end is None else min(end, len(self))) if found < 0 else found + len(part)
        Watched.looked_at += max(0, searched - start)
        return found


def test_what_is_behind_the_thinking_is_searched_once() -> None:
    """Steps of reasoning models are long, and there may be many stop strings."""
    stop = tuple(f"Stop {number}:" for number in range(16))
    boundary = StepBoundary(("\n\n",), stop, thoughts=THINK)
    counts = []
    for words in (200, 400):
        text, Watched.looked_at = THINK.opening + "a" + THINK.closing, 0
        for _ in range(words):
            checked, text = len(text), text + "word "
            assert boundary.find(Watched(text), checked) is None
        counts.append(Watched.looked_at)
    assert counts[1] < 2.2 * counts[0]
    assert boundary.find(text + "Stop 3:", len(text)) == Cut("stop", len(text))
    assert boundary.find(text + "Stop 3:", len(text) + 5) == Cut("stop", len(text))
