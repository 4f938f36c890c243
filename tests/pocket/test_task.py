"""The task is exactly checkable, its labels are strict, and its splits share nothing."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_integrations.pocket.grammar import DOMAINS
from rsd_integrations.pocket.task import (
    LARGEST,
    SEPARATOR,
    SPLITS,
    check_answer,
    corruptions,
    expected_step,
    extract_answer,
    generate,
    held_out,
    label_step,
    label_steps,
    split_of,
)

seeds = st.integers(0, 10_000)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(SPLITS))
def test_gold_solutions_are_right_in_every_step(seed: int, split: str) -> None:
    problem = next(generate(seed, split=split))
    assert check_answer(problem, problem.solution)
    assert all(label_steps(problem, problem.steps))
    assert problem.solution.split(SEPARATOR) == list(problem.steps)
    assert len(problem.steps) == problem.events + 1


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_sums_hold_and_stay_in_range(seed: int) -> None:
    problem = next(generate(seed))
    for step in problem.steps[:-1]:
        for a, op, b, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", step):
            assert eval(f"{a} {op} {b}") == int(result)
            assert 0 <= int(result) <= LARGEST


@settings(max_examples=60, deadline=None)
@given(seeds, st.data())
def test_every_corruption_is_labelled_wrong(seed: int, data: st.DataObject) -> None:
    problem = next(generate(seed))
    index = data.draw(st.integers(0, problem.events))
    wrong = corruptions(problem, index, random.Random(seed))
    assert wrong
    assert not any(label_step(problem, problem.steps[:index], step) for step in wrong)


def test_a_step_is_judged_by_what_stands_before_it() -> None:
    problem = held_out(1, events=(5,))[0]
    spoilt = re.sub(r"\d+\.$", "7.", problem.steps[0])
    right = expected_step(problem, [spoilt])
    assert right is not None and right != problem.steps[1]
    assert label_steps(problem, [spoilt, right, problem.steps[2]]) == [False, True, False]


def test_nothing_is_right_after_the_answer() -> None:
    problem = held_out(1)[0]
    assert expected_step(problem, problem.steps) is None
    assert label_steps(problem, [*problem.steps, problem.steps[-1]])[-1] is False


def test_an_early_answer_is_wrong() -> None:
    problem = held_out(1)[0]
    assert not label_step(problem, problem.steps[:2], problem.steps[-1])


@pytest.mark.parametrize(
    ("text", "answer"), [("\\boxed{ 12 }", 12), ("\\boxed{1} \\boxed{2}", 2), ("twelve", None)]
)
def test_answers_are_read_from_the_last_box(text: str, answer: int | None) -> None:
    assert extract_answer(text) == answer


def test_streams_repeat_with_the_seed_and_differ_between_seeds() -> None:
    first, again, other = ([p.question for p in islice(generate(seed), 20)] for seed in (3, 3, 4))
    assert first == again != other


def test_splits_share_no_question() -> None:
    asked = {split: {p.question for p in islice(generate(0, split=split), 400)} for split in SPLITS}
    for split, questions in asked.items():
        assert all(split_of(question) == split for question in questions)
    assert not asked["train"] & asked["held_out"]
    assert not asked["train"] & asked["validation"]
    assert not asked["validation"] & asked["held_out"]


def test_held_out_problems_differ_and_cover_the_lengths_evenly() -> None:
    problems = held_out(60)
    assert len({problem.question for problem in problems}) == 60
    assert sorted(problem.events for problem in problems) == sorted([3, 4, 5, 6, 7, 8] * 10)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        next(generate(0, split="test"))


@pytest.mark.parametrize("events", [(), (0,), (3, 25)])
def test_lengths_that_no_story_has_are_refused(events: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"events must be numbers from 1 to 8, not {events!r}")):
        next(generate(0, events=events))


def test_the_family_is_varied() -> None:
    assert sum(len(domain.events) for domain in DOMAINS) >= 60
    problems = list(islice(generate(1), 300))
    assert {problem.template.partition(":")[0] for problem in problems} == {domain.name for domain in DOMAINS}
    assert 60 < sum(bool(problem.distractors) for problem in problems) < 180
