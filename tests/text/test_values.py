"""Values that models write: read as they stand, in one pass, without a word in the log."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rsd_integrations.text import values
from rsd_integrations.text.values import read_literal, read_value

ANY: frozenset[str] = frozenset()
pieces = st.lists(
    st.sampled_from(
        [
            *('"', "'", "\\", "\\'", '\\"', "[", "]", "{", "}", "(", ")", ":", ",", " ", "\n", "."),
            *("a", "true", "null", "None", "1", "0x", "1e5", "1j", "400", "u", "b", "f", "r", "N{", "é"),
            *("if", "else", "for", "in", "is", "not", "or", "and", "#"),
        ]
    ),
    max_size=14,
).map("".join)


def read(text: str) -> tuple[Any, Any]:
    """What both readers make of a text."""
    try:
        literal = read_literal(text)
    except ValueError as error:
        literal = str(error)
    return read_value(text, ANY), literal


@given(pieces)
@example('["' + '\\"' * 5)
@example("['\\")
def test_each_quote_is_looked_at_once(text: str) -> None:
    """Where one is left, all behind it is searched for its end, and behind the next quote again."""
    for pattern in (values._BARE, re.compile(values._BEGUN, re.DOTALL)):
        assert not {*pattern.sub("", text)} & {*"\"'"}


@given(st.sampled_from("[{('\""), pieces)
@settings(max_examples=400)
def test_texts_that_are_not_closed_are_read_as_ever(opening: str, rest: str) -> None:
    """As by patterns that know only closed ones."""
    text, closed = opening + rest, values._QUOTED[:-1] + r"|#[^\n]*)"
    found = read(text)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_BARE", "_PYTHON"):
            pattern = getattr(values, name).pattern.replace(values._BEGUN, closed)
            patch.setattr(values, name, re.compile(pattern, re.DOTALL))
        assert read(text) == found


@given(st.sampled_from("[{('\""), pieces)
@settings(max_examples=400)
@example("[", "1if 2 else 3]")
@example("[", "0xfor x in 'a']")
@example("[", 'f"{1if 2 else 3}"]')
@example("[", 'b"\\u1234"]')
@example("[", '"\\400"]')
@example("[", '"\\d\\8"]')
def test_no_text_of_a_model_makes_python_warn(opening: str, rest: str) -> None:
    """A server's log would have a line for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(opening + rest)
    assert [str(one.message) for one in caught] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a', true, None, 1.5]", ["a", True, None, 1.5]),
        ("{'a': (1, -2)}", {"a": [1, -2]}),
        ("[u'a', r'b']", ["a", "b"]),
        ("['a' 'b']", ["ab"]),
        ('["""print("hi")""", 1]', ['print("hi")', 1]),
        ('["""say "hi" now""", "b", \'\'\'it\'s\'\'\']', ['say "hi" now', "b", "it's"]),
        ('["""a " begin " b"""]', ['a " begin " b']),
        ('["""true or null""", true, ""]', ["true or null", True, ""]),
        ("[1, # one for all\n 2]", [1, 2]),
        ("[1, # it's 1if 2\n true]", [1, True]),
        ("{'a': 1, # it's\n 'b': '#'}", {"a": 1, "b": "#"}),
        (r"['\400\101\d\\']", ["\u0100A\\d\\"]),
        ("[0x1F, 1_000, 1e5, .5]", [31, 1000, 1e5, 0.5]),
    ],
)
def test_literals_of_python(text: str, value: Any) -> None:
    assert read_value(text, ANY) == value
    assert read_literal(text) == value


def test_bare_keys_behind_a_comment() -> None:
    assert read_literal("{a: 1, # it's\n b: 2}") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "text",
    [
        "0x1F",
        "1_000",
        "[1if 2 else 3]",
        "[1or 2]",
        'f"{1}"',
        "[f'{1}']",
        "[b'a']",
        "[x for x in 'a']",
        "[set()]",
    ],
)
def test_what_is_no_literal_stays_text(text: str) -> None:
    assert read_value(text, ANY) == text
