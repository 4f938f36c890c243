"""When an answer is right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.bench.matching import final_answer, matcher, number_in
from rsd_integrations.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{12}. Then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{7} and \\boxed{8", "7"),  # A box that an end of length cut open is none.
        ("work\n#### 1,234\n", "1,234"),
        ("The answer is 5.\nThe final answer is: 6 apples\nDone.", "6 apples"),
        ("Answer: B", "B"),
        ("It is 5.", None),
        ("", None),
    ],
)
def test_what_a_text_gives_as_its_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "known", "right"),
    [
        ("She has 3 + 4 = 7 apples.", "7", True),
        ("She has 7 apples, not 8.", "7", False),  # The last number counts where none is given out.
        ("The answer is 7 apples, not 8.", "7", True),
        ("\\boxed{x = 1,234}", "1234", True),
        ("\\boxed{\\dfrac{3}{4}}", "0.75", True),
        ("\\boxed{3/4}", "\\frac34", True),
        ("#### \\$18", "so 9 * 2 = 18\n#### 18", True),
        ("\\boxed{50\\%}", "50", True),
        ("\\boxed{-5}", "5", False),
        ("\\boxed{\u22125}", "-5", True),
        ("10-3 leaves 7", "7", True),
        ("\\boxed{0.333333333}", "1/3", True),
        ("\\boxed{0.33}", "1/3", False),
        ("\\boxed{1/0}", "5", False),
        ("nothing", "5", False),
    ],
)
def test_numbers(text: str, known: str, right: bool) -> None:
    name, match = matcher("number", [known])
    assert (name, match(text, known)) == ("number", right)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "\\boxed{{{}}}", "The answer is {}."]))
def test_any_whole_number_is_read_as_written(number: int, form: str) -> None:
    assert number_in(form.format(number)) == number


@pytest.mark.parametrize(
    ("text", "known", "right"),
    [
        ("The answer is (B).", "B", True),
        ("\\boxed{\\text{Evelyn}}", "evelyn", True),
        ("Thinking.\n\n**New  York**\n", "New York", True),
        ("Paris or Rome", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_texts(text: str, known: str, right: bool) -> None:
    assert matcher("text", [known])[1](text, known) is right


@pytest.mark.parametrize(
    ("text", "known", "right"),
    [
        ("\\boxed{\\frac{\\sqrt{3}}{3}}", "\\frac{1}{\\sqrt{3}}", True),
        ("so $x^2 + 2x + 1$", "(x+1)^2", True),
        ("\\boxed{(3, \\frac{\\pi}{2})}", "\\left( 3, \\frac{\\pi}{2} \\right)", True),
        ("\\boxed{\\sqrt{2}}", "\\sqrt{3}", False),
        ("no formula at all", "\\sqrt{3}", False),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", True),
        ("So it is odd.\nThe answer is odd.", "odd", True),
        ("The answer is odd.", "even", False),
    ],
)
def test_formulas(text: str, known: str, right: bool) -> None:
    assert matcher("math", [known])[1](text, known) is right


def test_auto_takes_what_suits_all_known_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert matcher("auto", ["1", "#### 2"])[0] == "number"
    assert matcher("auto", ["1", "odd", "\\sqrt{2}"])[0] == "math"
    assert matcher("auto", ["1", "Paris is nice", "B"])[0] == "text"
    monkeypatch.setattr("rsd_integrations.bench.matching._has_math_verify", lambda: False)
    assert matcher("auto", ["1", "\\sqrt{2}"])[0] == "text"
    with pytest.raises(ConfigError, match=r"needs math-verify.*rsd-integrations\[math\]"):
        matcher("math", ["1"])


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "rsd_test_judging.py").write_text(
        "def longer(text, known): return len(text) > len(known)\nthing = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("rsd_test_judging", None)


@pytest.mark.usefixtures("module")
def test_a_function_of_ones_own() -> None:
    before = list(sys.path)
    name, match = matcher("rsd_test_judging:longer", ["abc"])
    assert (name, match("abcd", "abc"), match("ab", "abc")) == ("rsd_test_judging:longer", True, False)
    assert sys.path == before


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("numbers", "1", r"unknown match='numbers'"),
        ("number", "12 apples", r"match='number' cannot read the known answer '12 apples'"),
        ("text", "**", r"match='text' cannot read the known answer"),
        ("no_such_module:it", "1", r"match='no_such_module:it' cannot be loaded"),
        ("rsd_test_judging:shorter", "1", "cannot be loaded"),
        ("rsd_test_judging:thing", "1", "is no function but 3"),
    ],
)
def test_what_cannot_tell_is_refused(name: str, known: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        matcher(name, [known])
