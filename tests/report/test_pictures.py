from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dev.pictures import draw, telling
from rsd_integrations.pocket.task import Problem, held_out
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import Generation

PROBLEMS = held_out(3, events=(4,))
BY_QUESTION = {problem.question: problem for problem in PROBLEMS}


def gold(prompt: object, index: int, text: str) -> str | None:
    steps = BY_QUESTION[str(prompt)].steps
    return None if index >= len(steps) else steps[index] + ("\n\n" if index + 1 < len(steps) else "")


def test_it_shows_a_step_that_the_target_put_right() -> None:
    """The first problem is right without the target, the second wrong in spite of it."""

    def draft(prompt: object, index: int, text: str) -> str | None:
        number = PROBLEMS.index(BY_QUESTION[str(prompt)])
        if number and index == 4:
            return "The answer is \\boxed{-1}."
        return gold(prompt, index, text)

    def reward(prompt: object, index: int, step: str) -> float:
        return 0.0 if "-1" in step and PROBLEMS.index(BY_QUESTION[str(prompt)]) == 2 else 1.0

    with scripted_pipeline(draft, gold, reward) as pipe:
        problem, generation, seconds = telling(pipe, PROBLEMS)
        assert problem == PROBLEMS[2]
        assert seconds > 0
        assert [step.source for step in generation.steps] == [*["draft"] * 4, "target"]
        with pytest.raises(LookupError):
            telling(pipe, PROBLEMS[:2])


def test_the_picture_is_an_svg_that_loads_nothing(generation: Generation) -> None:
    svg = draw("How <many>?", generation, 0.5)
    shown = "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")
    assert "kept     0.900" in shown
    assert "How <many>?" in shown
    assert "url(" not in svg.replace("url(#", "")
    assert isinstance(PROBLEMS[0], Problem)


def test_all_text_of_the_picture_can_be_read(generation: Generation) -> None:
    """As much contrast as WCAG's level AA asks for."""
    svg = draw("How many?", generation, 0.5)
    assert "line-through" not in svg
    (ground,) = set(re.findall(r'<rect fill="(#\w{6})" stroke', svg))
    colours = re.findall(r"rsd-ask-r\d+ { fill: (#\w{6})", svg)
    assert len(colours) >= 5
    assert min(contrast(colour, ground) for colour in colours) >= 4.5


def contrast(one: str, other: str) -> float:
    high, low = sorted(map(luminance, (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
