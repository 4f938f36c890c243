from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.report.answer import answer_of, boxed, chance_text, reward_text, step_text, writable
from rsd_integrations.text.printable import printable
from tests.report.conftest import generate


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("so \\boxed{4}.", "4"),
        ("\\boxed{3} no, \\boxed{ 4 }", "4"),
        ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{3} and \\boxed{4", "3"),
        ("\\boxed{a \\boxed{b}}", "b"),
        ("no box", None),
        ("\\boxed{", None),
        ("", None),
    ],
)
def test_boxed(text: str, held: str | None) -> None:
    assert boxed(text) == held


def test_the_answer_is_the_box_or_the_text_unless_the_steps_show_it() -> None:
    assert answer_of(generate("One.\n\n", "\\boxed{7}")) == "7"
    assert answer_of(generate("An empty \\boxed{}.")) == "An empty \\boxed{}."
    assert answer_of(generate("Paris.\n\n")) == "Paris."
    for shown in (["One.\n\n", "Two."], ["One.\nTwo."], ["word " * 30]):
        assert answer_of(generate(*shown)) is None
    thought = generate("One.\n\n", "Two.").model_copy(update={"text": "Two.", "reasoning": "One."})
    assert answer_of(thought) == "Two."
    assert answer_of(thought.model_copy(update={"text": ""})) == ""


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_no_chance_looks_certain_or_impossible(chance: float) -> None:
    shown = chance_text(chance)
    assert shown not in ("0.00", "1.00")
    assert shown == "<0.01" if chance < 0.01 else abs(float(shown) - chance) <= 0.01 + 1e-9


def test_nothing_can_steer_the_terminal() -> None:
    shown = printable("a\x1b[2Jb\x9b31mc\rd\x07\u202ee\x00\tf\n")
    assert shown == "a\ufffd[2Jb\ufffd31mc\ufffdd\ufffd\ufffde\ufffd\tf\n"


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\n\r\n", "\r\n"])
def test_the_blank_line_that_ends_a_step_is_not_shown(end: str) -> None:
    assert step_text(f"{end}One.\r\nTwo.{end}") == "One.\nTwo."
    assert step_text(end) == "(end of the answer)"


@pytest.mark.parametrize(
    ("reward", "shown"), [(0.9996, "0.999"), (1.0, "1.000"), (0.29, "0.290"), (0.0, "0.000")]
)
def test_a_reward_never_looks_higher_than_it_is(reward: float, shown: str) -> None:
    assert reward_text(reward) == shown


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_can_be_made_one_for_files(text: str) -> None:
    made = writable(text).encode().decode()
    assert all(one == other or "\ud800" <= one <= "\udfff" for one, other in zip(text, made, strict=True))
