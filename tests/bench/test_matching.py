"""When an answer is right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.bench import matching
from rsd_integrations.bench.matching import final_answer, is_formula, matcher
from rsd_integrations.bench.numbers import boxed_number, halfwidth, number_in
from rsd_integrations.errors import ConfigError
from tests.systems import on_system


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{12}. Then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{7} and \\boxed{8", "7"),  # A box that an end of length cut open is none.
        ("work\n#### 1,234\n", "1,234"),
        ("The answer is 5.\nThe final answer is: 6 apples\nDone.", "6 apples"),
        ("Answer: B", "B"),
        ("**Answer**: 5 of 6", "5 of 6"),
        ("The answer is:\n$$\n42\n$$\nDone.", "42"),
        ("The answer is \\(42\\).", "42\\)."),
        ("The answer to the question is 5.", "5."),
        ("The answer isn't 5.", None),
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
        ("The answer is $5 + $3 = $8.", "8", True),
        ("#### 20 x 3 = 60", "60", True),
        ("#### 20x", "20", True),
        ("The answer is \\(20x\\).", "20", True),
        ("#### 20x (twenty times)", "20", True),
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
        ("\\boxed{1000001}", "1000000", False),  # Whole numbers are not rounded.
        ("The answer is " + "1" * 5000, "5", False),
        # Signs, currencies, thousands.
        ("The balance is -$5.", "-5", True),
        ("\\boxed{-\\$5}", "5", False),
        ("\\boxed{10\\,000}", "10000", True),
        ("\\boxed{1\u2009234}", "1234", True),
        ("The answer is 1'234.", "1234", True),
        ("\\boxed{1,00,000}", "100000", True),
        ("\\boxed{1,2}", "12", False),
        # Mixed numbers, fractions, powers of ten.
        ("\\boxed{3\\frac12}", "3.5", True),
        ("\\boxed{\\frac{7}{2}}", "3\\frac{1}{2}", True),
        ("The answer is 3 1/2 cups.", "7/2", True),
        ("\\boxed{\\frac{1}{-2}}", "-0.5", True),
        ("\\boxed{\\frac{12.5}{2}}", "6.25", True),
        ("\\boxed{1.5 \\times 10^3}", "1500", True),
        ("\\boxed{1.5 \\times 10^{-3}}", "1.5", False),
        ("The answer is 1.5e3.", "1500", True),
        ("\\boxed{10^{6}}", "1000000", True),
        # A part of an answer is none.
        ("\\boxed{5\\sqrt{2}}", "5", False),
        ("\\boxed{2\\pi}", "2", False),
        ("\\boxed{2^{10}}", "2", False),
        ("\\boxed{x^2 + 1}", "2", False),
        ("\\boxed{10-15}", "10", False),
        ("Answer: 12:30", "12", False),
        ("\\boxed{90^\\circ}", "90", True),
        ("\\boxed{12\\text{ cm}^2}", "12", True),
        # What is behind an equals sign, unless the answer is before it.
        ("#### 5 - 5 = 0", "0", True),
        ("\\boxed{2^{10} = 1024}", "1024", True),
        ("\\boxed{f(2) = 5}", "5", True),
        ("The answer is 18 = 2*9.", "18", True),
        ("The answer is 12, since x = 3 gives 4 * 3.", "12", True),
        # The last that is given out, a line or not; of a sentence the first.
        ("The answer is 41. Wait, I forgot one. So the answer is 42.", "42", True),
        ("The answer is 42, because the question's answer is not 41.", "42", True),
        ("The answer is 42. The other answer is wrong.", "42", True),
        ("The answer is 5 or 6.", "5", False),
        ("#### 5 or 6", "5", False),
        ("The answer is 3.14 to 2 decimal places.", "3.14", True),
        ("The answer is 5. I checked that the answer is less than 10.", "5", True),
        ("The answer is 18. The answer is in dollars for 1 day.", "18", True),
        ("The answer is 5 \\pm 1.", "5", False),
    ],
)
def test_numbers(text: str, known: str, right: bool) -> None:
    name, match = matcher("number", [known])
    assert (name, match(text, known)) == ("number", right)


@pytest.mark.parametrize(
    ("held", "number"),
    [
        ("- 5", -5),
        ("x = -\\,5", -5),
        ("1 000", 1000),
        ("12 345 678", 12345678),
        (".5", 0.5),
        ("5 \\%", 5),
        ("\\$5.00/hour", 5),
        ("\\text{Ava has } 5 \\text{ marbles.}", 5),
        ("(B) 5", 5),
        ("\\textbf{(B)}\\ 5", 5),
        ("{\\boxed{5}}", 5),
        ("14 \\,\\mathrm{kg \\cdot m^2}", 14),
        ("14 \\text{ km/h}", 14),
        ("90^{\\circ}\\text{C}", 90),
        ("9_{10}", 9),
        ("5 (five)", 5),
        ("5个", 5),
        ("BC = \\frac{10}{2} = 5", 5),
        ("1,234 + 1 = 1,235", 1235),
        ("f(2,3) = 5", 5),
        ("18 = 2*9", 18),
        ("3 \\text{ times a week}", 3),
        ("\\text{a total of } 42", 42),
        ("\\$5 \\text{ a day}", 5),
        ("\\text{Tom's age is } 5", 5),
        ("C) 5", 5),
        ("C. 5", 5),
        ("x \\approx 3.5", 3.5),
        ("3.5\\ldots", 3.5),
        ("5^{\\text{th}}", 5),
        ("4 \\, \\text{m} / \\text{s}", 4),
        ("42 \\text{ pieces, in total}", 42),
        ("\\boldsymbol{42}", 42),
        ("C\\$500", 500),
        ("\\text{negative } 5", -5),
        ("minus 5", -5),
        ("x = \\text{Minus } \\frac{1}{2}", -0.5),
    ],
)
def test_a_box_may_hold_more_than_the_number(held: str, number: float) -> None:
    assert boxed_number(held) == Fraction(number)


@pytest.mark.parametrize(
    "held",
    [
        *("5 \\text{ or } 6", "5, 6", "5; 6", "5 \\text{ and } -5", "\\pm 5", "5 \\pm 1"),
        *("x=4 \\text{ or } x=5", "x=4, y=5", "4, x=5", "\\{5, 6\\}", "(5, 6)", "[5, 6]", "\\{5\\}"),
        *("x > 5", "x \\ge 5", "5 \\le x \\le 6", "5 \\text{ to } 6", "5 : 6", "5 \\text{ or more}"),
        *(
            "5x",
            "5i",
            "5!",
            "n = 5k",
            "\\binom{5}{2}",
            "\\log 5",
            "\\sin 5",
            "5 \\mod 7",
            "5 pi",
            "5/ab",
            "5 - ab",
        ),
        *("5 \\text{ remainder } 2", "5 \\text{ hours } 30 \\text{ minutes}", "11_2", "5^2", "5" * 5000),
        *("\\frac{1}{2} \\text{ or } \\frac{1}{3}", "0.\\overline{3}", "", "x"),
        *(
            "sqrt(5)",
            "log 5",
            "12 \\text{ minus } 5",
            "5√2",
            "x=5 \\quad y=3",
            "\\text{ times } x",
            "times 5 x",
        ),
    ],
)
def test_a_box_with_another_answer_is_not_the_number_in_it(held: str) -> None:
    """Whichever model hedges more would gain by it."""
    assert boxed_number(held) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"\\boxed{{{part * 250}}}"
            for part in ("5 ", " ", "ab ", "(", "5(", "=,", "1 000 ", "a", "$", "=a,", "=和x", "负")
        ),
        *("The answer is 5. " * 50_000, "answer is " * 100_000, "5 " * 100_000, "\\boxed{" * 50_000),
        *("答案是5。" * 50_000, "答案是" * 100_000, "5亿" * 50_000, "大于" * 50_000, "负" * 100_000),
        *("negative" + " " * 100_000, "is minus " * 50_000, "5" + " " * 100_000, "5 million " * 50_000),
        *("#### 5" + ", 6" * 50_000, "#### 5" + " " * 100_000 + "x", "#### x=5" + " ,y=5" * 50_000),
        *(
            "\\boxed{A" + " or A" * 25_000 + "}",
            "\\boxed{A, " + "( " * 25_000 + "}",
            "A. " + "x A. " * 25_000,
        ),
    ],
)
def test_answers_that_repeat_themselves_take_no_time(text: str) -> None:
    """Not by the clock: what is not linear here never ends."""
    matcher("number", ["5"])[1](text, "7")
    matcher("text", ["A"])[1](text, "A")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        *(
            (text, "-5")
            for text in ("The answer is negative 5.", "The answer is minus 5", "Minus 5", "It's minus 5°C.")
        ),
        *(
            (text, "-5")
            for text in ("The answer is negative $5.", "The answer is negative \\(5\\).", "negative **5**")
        ),
        *((text, "-5") for text in ("The answer is: minus 5.", "#### minus 5", "#### \\text{negative }5")),
        ("The answer is \\text{negative } \\frac{1}{2}.", "-1/2"),
    ],
)
def test_a_sign_in_words(text: str, known: str) -> None:
    match = matcher("number", [known])[1]
    assert match(text, known)
    assert not match(text, known[1:])


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("7 minus 5 is 2", "2"),
        ("12 minus 5", "5"),  # As ever: the last number, where no answer is marked.
        ("7 apples minus 5 apples", "5"),
        ("The answer is 12 minus 5 = 7.", "7"),
        ("The only non-negative 5", "5"),
    ],
)
def test_minus_may_take_one_number_from_another(text: str, known: str) -> None:
    assert matcher("number", [known])[1](text, known)


@pytest.mark.parametrize(
    "said",
    [
        *(
            "5√2",
            "5π",
            "5²",
            "5, 6",
            "5, 6.",
            "5; 6",
            "5, 6, 7",
            "5, 6 and 7.",
            "5, 1/2",
            "$5, $6.",
            "$5$, $6$.",
        ),
        *("\\(5\\), \\(6\\).", "**5**, **6**", "**5** or **6**", "5\\text{ and }6", "5 minus 6", "5 times 6"),
        *("x = 6, y = 5.", "x = 6 or x = 5", "$x = 6$, $y = 5$", "x = 6 and y = 5"),
    ],
)
def test_a_part_of_what_is_said_is_no_answer_as_in_a_box(said: str) -> None:
    match = matcher("number", ["5"])[1]
    assert not match(f"The answer is {said}", "5")
    assert not match(f"#### {said}", "5")


@pytest.mark.parametrize(
    ("said", "known"),
    [
        *(("5,600", "5600"), ("5,600.", "5600"), ("5, as shown", "5"), ("5, 2 of them red.", "5")),
        *(
            ("42, 6 * 7.", "42"),
            ("18, 6 more than 12.", "18"),
            ("**5**, because 2 + 3 = 5", "5"),
            ("5 m²", "5"),
        ),
        *(
            ("x = 2 + 3 = 5", "5"),
            ("3 times a week", "3"),
            ("if a = 3 then b = 5", "5"),
            ("$5$, and 6 is not.", "5"),
        ),
    ],
)
def test_what_follows_an_answer_does_not_hide_it(said: str, known: str) -> None:
    assert matcher("number", [known])[1](f"The answer is {said}", known)


@pytest.mark.parametrize(
    ("text", "times"),
    [
        *(
            ("1.5 million", 10**6),
            ("\\boxed{1.5 \\text{ million}}", 10**6),
            ("The answer is $1.5 Million.", 10**6),
        ),
        *(
            ("\\boxed{\\$1.5\\,\\text{billion dollars}}", 10**9),
            ("The answer is 1.5 thousand people.", 10**3),
        ),
    ],
)
def test_a_number_with_its_scale_in_words(text: str, times: int) -> None:
    """It may be asked for in millions, too."""
    known = ["1.5", str(int(1.5 * times))]
    match = matcher("number", known)[1]
    assert [match(text, one) for one in known] == [True, True]
    assert not match(text, "-1.5")
    assert not match(text, str(int(15 * times)))


@pytest.mark.parametrize("said", ["\\text{1.5 millionaires}", "1 million 500 thousand", "1.5"])
def test_what_is_no_scale(said: str) -> None:
    assert not matcher("number", ["1500000"])[1](f"\\boxed{{{said}}}", "1500000")
    assert not matcher("number", ["1000000"])[1](f"\\boxed{{{said}}}", "1000000")


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
        ("\\boxed{5}", "-5", False),
        ("\\boxed{-5}", "-5", True),
        ("\\boxed{1000}", "1,000", True),
        ("\\boxed{[1,2)}", "(1,2]", False),
        ("C++", "C", False),
        ("The answer is (B) 5 apples.", "B", True),
        ("\\boxed{\\textbf{(B)}\\ 5}", "B", True),
        ("**Answer**: B. Paris", "(B)", True),
        ("The answer is b.", "B", True),
        ("The answer is Bob.", "B", False),
        ("The answer is (A) 5 apples.", "B", False),
        ("B)", "B", True),
    ],
)
def test_texts(text: str, known: str, right: bool) -> None:
    assert matcher("text", [known])[1](text, known) is right


@pytest.mark.parametrize("match", ["text", "math"])
@pytest.mark.parametrize(
    "text",
    [
        *("The answer is A or B.", "Answer: A, B, D", "\\boxed{A, C}", "\\boxed{\\text{A, C}}", "A or B"),
        *("The answer is (A) and (C).", "(A) and (C)", "A) or B)", "A. or B.", "The answer is A (or B)."),
        *("The answer is A & B.", "The answer is A/B.", "Answer: A; B", "Answer: A | B", "Answer: A C"),
        *("**Answer**: **A** and **B**", "\\boxed{A \\text{ or } B}", "The answer is A or possibly B."),
        *("The answer is Option A or Option B.", "The correct choice is A or B.", "The answer is (A), (I)."),
        *("答案是A、C", "答案是A和C。", "答案是A或者C。", "故选A，C。"),
        *("A. Paris or B. Rome", "A. Paris B. Rome C. Oslo", "The answer is A, B, or I."),
    ],
)
def test_several_letters_are_none_of_them(text: str, match: str) -> None:
    """Whichever model hedges more would gain by it."""
    assert not matcher(match, ["A"])[1](text, "A")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "A. Paris",
            "(A) Paris",
            "So it is this one.\n\nA) 42",
            "**A.** Paris",
            "A: no\nB: yes\n\nA. Paris",
        ),
        *("The answer is Option A.", "The answer is option (A).", "The correct choice is A."),
        *("The correct option is **(A)** Paris.", "The best choice is: A", "The answer is A, I think."),
        *("The answer is A, because B is wrong.", "The answer is A, B is wrong.", "The answer is A, not B."),
        *("The answer is A, C is too large.", "The answer is A, B and C are false.", "答案是A，B、C均错误。"),
        *("The answer is A, B can't be right.", "The answer is A, F = ma.", "The answer is A, A is correct."),
        *(
            "The answer is A and not B.",
            "The answer is A. B and C fail.",
            "The answer is A, as B and C fail.",
        ),
        *(
            "The answer is (A) B and C only.",
            "The answer is (A) B cells.",
            "答案是A，因为B不对。",
            "答案是A，B错。",
        ),
    ],
)
def test_one_letter_with_what_is_said_about_it(text: str) -> None:
    match = matcher("text", ["A"])[1]
    assert match(text, "A")
    assert not match(text, "B")


@pytest.mark.parametrize("text", ["The answer is A, C.", "\\boxed{\\text{A, C}}", "A, C", "答案是A，C。"])
def test_a_known_answer_of_several_letters(text: str) -> None:
    match = matcher("text", ["A, C"])[1]
    assert match(text, "A, C")
    assert not match(text, "A, B")
    assert not match(text, "A")


@pytest.mark.parametrize("text", ["A) Paris\nB) Rome", "(A) Paris\n\n(B) Rome"])
def test_the_end_of_a_list_of_options_is_no_choice(text: str) -> None:
    assert not matcher("text", ["B"])[1](text, "B")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("E. coli is a bacterium.", "E"),
        ("A) one\n   (first)\nB) two", "B"),
        ("C: x\nD. y", "D"),
    ],
)
def test_what_looks_like_a_choice(text: str, known: str) -> None:
    assert not matcher("text", ["A"])[1](text, known)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("6 * 7 = 42, so the correct option is B.", "42"),
        ("Answer: Paris\nThus the correct choice is B.", "Paris"),
        ("The product is negative\n4", "4"),
        ("The answer is: when x = 2, y = 5.", "5"),
    ],
)
def test_what_comes_beside_hides_no_answer(text: str, known: str) -> None:
    assert matcher("text", [known])[1](text, known)


def test_the_best_choice_may_be_no_letter() -> None:
    assert final_answer("The best choice is to add 3 and 5: 8.") is None


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
        # Letters alone do not make formulas equal.
        ("\\boxed{\\sqrt{2}}", "-\\sqrt{2}", False),
        ("\\boxed{4}", "-4", False),
        ("\\boxed{-\\frac{1}{2}}", "\\frac{1}{2}", False),
        ("\\boxed{x^2}", "-x^2", False),
        ("\\boxed{x}", "-x", False),
        ("\\boxed{-x}", "x", False),
        ("\\boxed{[1,2)}", "(1,2]", False),
        ("\\boxed{(1,2)}", "[1,2]", False),
        ("\\boxed{\\text{8:00 AM}}", "\\text{8:00 AM}", True),
    ],
)
def test_formulas(text: str, known: str, right: bool) -> None:
    assert matcher("math", [known])[1](text, known) is right


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("\\boxed{－5}", "-5"),
        ("\\boxed{负5}", "-5"),
        ("答案是负\\frac{1}{2}。", "-1/2"),
        ("\\boxed{零下5℃}", "-5"),
        ("\\boxed{３．５}", "3.5"),
        ("\\boxed{50％}", "50"),
        ("\\boxed{5（元）}", "5"),
        ("\\boxed{5。}", "5"),
        ("\\boxed{￥5}", "5"),
        ("\\boxed{5℃}", "5"),
        ("\\boxed{5㎡}", "5"),
        ("\\boxed{1，234}", "1234"),
        ("\\boxed{2万}", "20000"),
        ("答案为1.5亿元。", "150000000"),
        ("共有3千万人", "30000000"),
        ("\\boxed{20000}", "2万"),
        ("答案是1／2", "0.5"),
        ("答案是36个，因为一共有3行。", "36"),
        ("答案：36元。验算：3×12=36，共3次", "36"),
        ("因此答案应该是：36。答案是否正确？3行12个。", "36"),
        ("\\boxed{面积=长和宽的积=6}", "6"),
        ("\\boxed{x=f(2,3)=5}", "5"),
        ("\\boxed{z=f(a,b)=5}", "5"),
        ("答案是否。\n答案是否正确？", "否"),
        ("故答案选B，答案为什么不是A？", "B"),
        ("答案：B", "B"),
        ("**答案：B**", "B"),
        ("因此答案是B。", "B"),
        ("故选：B。", "B"),
        ("分析如下。\n\nＢ", "B"),
        ("The answer is B。", "B"),
        ("因此答案是北京。", "北京"),
        ("答案是\n“北京”。", "北京"),
        ("The answer is 北京。", "北京"),
        ("北京。", "北京"),
        ("The answer is cafe\u0301.", "café"),
        ("\\boxed{（1，2）}", "(1,2)"),
        ("\\boxed{x=5，y=6}", "x=5,y=6"),
        ("\\boxed{(1,2)}", "（1，2）"),
    ],
)
def test_answers_in_chinese(text: str, known: str) -> None:
    assert matcher("auto", [known])[1](text, known)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        *((f"\\boxed{{{held}}}", "6") for held in ("x=5或x=6", "x=5，x=6", "x=5、x=6", "x=5且y=6", "5或x=6")),
        *((f"\\boxed{{{held}}}", "6") for held in ("x=5,y=6", "f(1)=5,f(2)=6", "x=5和y=6", "x=1，y=2或z=6")),
        *(
            (f"\\boxed{{{held}}}", "5")
            for held in ("负5", "大于5", "x小于5", "不是5", "不等于5", "正负5", "＞5")
        ),
        *((f"\\boxed{{{held}}}", "2") for held in ("2万", "2万5千", "2万5")),
        *((f"答案是{said}。", "5") for said in ("5或6", "5～6", "5到6", "5万", "5万6千", "5" + "亿" * 9)),
        ("答案是A。", "B"),
        ("答案是上海。", "北京"),
        ("\\boxed{（1，2）}", "(2,1)"),
    ],
)
def test_other_answers_in_chinese(text: str, known: str) -> None:
    assert not matcher("auto", [known])[1](text, known)


@given(
    st.decimals(-(10**5), 10**5, places=2),
    st.sampled_from(["答案是{}。", "答案：{}个，共3行", "故答案为{}．", "\\boxed{{{}。}}", "#### {}（元）"]),
)
def test_a_number_in_wide_signs_is_that_number(number: Decimal, form: str) -> None:
    wide = "".join(chr(ord(sign) + 0xFEE0) for sign in str(number))
    match = matcher("number", [str(number)])[1]
    assert match(form.format(wide), str(number))
    assert not match(form.format(wide), str(number + 1))


@given(st.text(st.characters(max_codepoint=0x2FF)))
def test_what_has_no_wide_signs_is_read_as_it_stands(text: str) -> None:
    assert halfwidth(text) == text


@pytest.mark.parametrize(
    "known",
    ["x=5，y=6", "２＋x", "p - q", "x/2", "2(k+1)", "(1, 2)", "x^2", "\\pi", "sqrt(2)", "x = 3", "2x"],
)
def test_formulas_are_told_from_words(known: str) -> None:
    assert is_formula(known)


@pytest.mark.parametrize(
    "known",
    [
        *(
            "B",
            "(B)",
            "N/A",
            "y/n",
            "3 m",
            "3D",
            "10-12",
            "3/4/2020",
            "New York (USA)",
            "well-being",
            "12 apples",
        ),
        *("A, B", "C++", "odd"),
    ],
)
def test_words_are_told_from_formulas(known: str) -> None:
    assert not is_formula(known)


def test_formulas_are_read_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """To keep a limit of time math-verify starts processes there, with what cannot be sent to them."""

    def refuse(*given: Any, **named: Any) -> None:
        raise AttributeError("Can't pickle local object")

    from math_verify import utils

    on_system(monkeypatch, utils, "nt")
    monkeypatch.setattr("multiprocessing.Process", refuse)
    monkeypatch.setattr(matching, "signal", SimpleNamespace(), raising=False)
    known = r"\frac{1}{2}x^2"
    assert matcher("math", [known])[1](r"\boxed{\frac{x^2}{2}}", known)


def test_auto_takes_what_suits_all_known_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert matcher("auto", ["1", "#### 2"])[0] == "number"
    assert matcher("auto", ["1", "odd", "\\sqrt{2}"])[0] == "math"
    assert matcher("auto", ["1", "Paris is nice", "B"])[0] == "text"
    assert matcher("auto", ["1", "p - q"])[0] == "math"
    monkeypatch.setattr("rsd_integrations.bench.matching._has_math_verify", lambda: False)
    assert matcher("auto", ["1", "\\sqrt{2}"])[0] == "text"
    with pytest.raises(ConfigError, match=r"needs math-verify.*rsd-integrations\[math\]"):
        matcher("math", ["1"])


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "rsd_test_judging.py").write_text(
        "def longer(text, known): return len(text) > len(known)\ndef lone(text): pass\nthing = 3\n"
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
        ("rsd_test_judging:lone", "7", r"failed on '7', .* TypeError: lone\(\) takes 1 .*Name a function of"),
    ],
)
def test_what_cannot_tell_is_refused(name: str, known: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        matcher(name, [known])
