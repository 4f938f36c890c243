"""``rsd tune``: a sweep on questions of one's own, with scripted models."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from rsd_integrations.bench.matching import matcher
from rsd_integrations.bench.questions import Question, drawn
from rsd_integrations.bench.results import AccuracyReport, Point, TuneReport
from rsd_integrations.bench.runner import run_all
from rsd_integrations.bench.saved import SavedAnswers
from rsd_integrations.bench.stats import paired_difference, wilson
from rsd_integrations.bench.sweep import Watch
from rsd_integrations.bench.tune import advice, cheapest, tune
from rsd_integrations.cli import main
from rsd_integrations.cli.models import ModelChoice
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError, PromptLengthError, RewardError
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket.task import Problem, held_out
from rsd_integrations.report.whole import print_text
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import FLOPs, Generation
from tests.bench.scripts import trio

PROBLEMS = held_out(30)
WRONG = range(0, 30, 3)
BLIND = (0, 3)
CONFIG = RSDConfig(max_tokens=2048, seed=0)


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the scripted models that stand in for the pocket trio: each character is a token of theirs."""
    monkeypatch.setattr(importlib.import_module("rsd_integrations.cli.tune"), "POCKET_MAX_TOKENS", 900)


def questions(problems: Sequence[Problem] = PROBLEMS) -> list[Question]:
    name, match = matcher("auto", [str(problem.answer) for problem in problems])
    assert name == "number"
    return [Question(problem.question, str(problem.answer), match) for problem in problems]


def write(path: Path, problems: Sequence[Problem] = PROBLEMS) -> str:
    lines = [json.dumps({"question": one.question, "answer": one.answer}) for one in problems]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "questions.jsonl")


def run(*arguments: str, **script: Any) -> tuple[int, list[ModelChoice]]:
    choices: list[ModelChoice] = []

    def opener(choice: ModelChoice) -> object:
        choices.append(choice)
        return trio(PROBLEMS, **{"wrong": WRONG, "blind": BLIND, **script})

    return main(["tune", *arguments], open_pipeline=opener), choices  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"within": 1.0}, "within=1.0 is no share of the questions."),
        ({"within": 1.0}, "Give a number from 0 on and below 1: 0.01 is one point."),
        ({"within": -5}, "within=-5 is no share"),
        ({"within": float("nan")}, "within=nan is no share"),
        ({"within": "1"}, "within='1' is no share"),
        ({"within": True}, "within=True is no share"),
        ({"thresholds": 0.5}, "thresholds=0.5 are no numbers from 0 on."),
        ({"thresholds": "0.5"}, "thresholds='0.5' are no numbers"),
        ({"thresholds": [0.5, "high"]}, "'high'] are no numbers"),
        ({"thresholds": [float("nan")]}, "nan] are no numbers"),
        ({"thresholds": [-0.1]}, "-0.1] are no numbers"),
        ({"config": {"seed": 0}}, "config={'seed': 0} is no RSDConfig"),
        ({"tasks": []}, "tasks=[] are no questions."),
        ({"tasks": "1 + 1?"}, "tasks='1 + 1?' are no questions. "),
        ({"tasks": None}, "tasks=None are no questions"),
        ({"tasks": [{"question": "1 + 1?"}]}, "question 1 is no Question but {'question': '1 + 1?'}."),
        ({"tasks": {"1 + 1?": "2"}}, "question 1 is no Question but '1 + 1?'"),
        ({"tasks": [Question("x", 91, str.__eq__)]}, "known=91 of question 1 is no text. Write it"),  # type: ignore[arg-type]
        ({"tasks": [Question("x", "1", lambda text: True)]}, "of question 1 does not take what it is"),  # type: ignore[arg-type, misc]
        ({"tasks": [Question("x", "1", "number")]}, "match='number' of question 1 does not take"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(given: dict[str, Any], told: str) -> None:
    asked = {"tasks": questions(PROBLEMS[:2]), "thresholds": [0.5], "config": CONFIG, **given}
    with trio(PROBLEMS, WRONG) as pipe:
        with pytest.raises(ConfigError) as caught:
            tune(pipe, **asked)
        assert told in str(caught.value)
        assert pipe.backend.draft.batches == []  # type: ignore[union-attr]


def test_no_config_is_the_usual_one() -> None:
    asked = questions(PROBLEMS[:2])
    with trio(PROBLEMS, WRONG) as pipe:
        found = [tune(pipe, tuple(asked), iter((0.5, 0.6)), *more) for more in ((), (None,), (RSDConfig(),))]  # type: ignore[arg-type]
    assert [[point.threshold for point in one.points] for one in found] == [[0.0, 0.5, 0.6, 0.7, 1.1]] * 3


def test_a_single_threshold_is_confirmed_and_no_other_chosen() -> None:
    with trio(PROBLEMS, WRONG) as pipe:
        found = tune(pipe, questions(PROBLEMS[:2]), [0.9, 0.9], CONFIG)
    assert [point.threshold for point in found.points] == [0.0, 0.9, 1.1]


def test_points_prm_and_recommendation() -> None:
    with trio(PROBLEMS, WRONG, blind=BLIND) as pipe:
        found = tune(pipe, questions(), [0.5, 0.95], CONFIG)
        lenient = tune(pipe, questions(), [0.5, 0.95], CONFIG, within=0.1)
    assert [(one.kind, one.threshold) for one in found.points] == [
        ("draft", 0.0),
        ("rsd", 0.5),
        ("rsd", 0.7),
        ("rsd", 0.95),
        ("target", 1.1),
    ]
    assert [round(30 * one.accuracy.value) for one in found.points] == [20, 28, 28, 30, 30]
    assert [one.threshold for one in found.points if one.recommended] == [0.95]
    assert [one.threshold for one in lenient.points if one.recommended] == [0.5]
    assert all(one.seconds for one in found.points)
    assert all(one.by_length == () for one in found.points)
    assert (found.drafts, found.drafts_wrong) == (30, 10)
    # 8 of 10 wrong answers hold a reward below all of the right ones', 2 tie with them.
    assert found.auc is not None
    assert found.auc.value == pytest.approx((8 + 2 / 2) / 10)


def test_the_sweep_is_over_thresholds_whatever_the_config_weighs_by(tmp_path: Path) -> None:
    config = CONFIG.override(weighting="constant", acceptance_rate=0.0, threshold=0.2)
    thresholds = [0.5, 0.99999999, 0.999999999]  # The last two print alike.
    answers = SavedAnswers(tmp_path / "a", {})
    with trio(PROBLEMS[:4], [1]) as pipe:
        found = tune(pipe, questions(PROBLEMS[:4]), thresholds, config, answers=answers)
    answers.close()
    assert [one.target_idle for one in found.points] == [1.0, 0.75, 0.75, 0.0, 0.0, 0.0]
    runs = {json.loads(line)["run"] for line in (tmp_path / "a").read_text().splitlines()[1:]}
    assert len(runs) == 7


def test_the_draft_alone_writes_each_step_once(tmp_path: Path) -> None:
    """With candidates the PRM would choose: no draft is alone then."""
    config = CONFIG.override(draft_candidates=3, temperature=1.0)
    answers = SavedAnswers(tmp_path / "a", {})
    with trio(PROBLEMS[:4], [1]) as pipe:
        found = tune(pipe, questions(PROBLEMS[:4]), [0.5], config, answers=answers)
        plain = tune(pipe, questions(PROBLEMS[:4]), [0.5], CONFIG)
    assert found.points[0].flops.paper == plain.points[0].flops.paper
    assert found.points[1].flops.paper > plain.points[1].flops.paper
    for run, candidates in (("threshold 0.5", 3), ("rewards of the draft's steps", 0)):
        steps = [step for one in answers.of(run).values() for step in one.steps]
        assert {len(step.candidates) for step in steps if step.source == "draft"} == {candidates}
    answers.close()


def test_a_question_that_just_fits_is_answered() -> None:
    """Before times are taken models are warmed up, which takes no more room than an answer."""
    with scripted_pipeline(["5"], ["5"], [0.9], window=30) as pipe:
        asked = [Question("How many?", "5", lambda text, known: text == known)]
        assert tune(pipe, asked, [0.5], CONFIG.override(max_tokens=None)).points[-1].accuracy.value == 1.0


async def test_it_runs_where_a_loop_does() -> None:
    """As in notebooks."""
    with trio(PROBLEMS[:2], []) as pipe:
        assert tune(pipe, questions(PROBLEMS[:2]), [0.5], CONFIG).drafts == 2


def by_place(lines: Sequence[str]) -> dict[tuple[str, int], Any]:
    """Saved answers by run and question."""
    saved = map(json.loads, lines[1:])
    return {(one["run"], one["problem"]): one["generation"] for one in saved if "generation" in one}


def test_questions_are_sampled_with_seeds_of_their_own(tmp_path: Path) -> None:
    """Asked again, a question has another answer; a run that goes on takes the seeds of a whole one."""
    asked = [question for question in questions(PROBLEMS[:2]) for _ in range(3)]
    config = RSDConfig(max_tokens=30, seed=5, temperature=2.0)
    whole = SavedAnswers(tmp_path / "whole", {})
    with RSDPipeline.pocket() as pipe:
        tune(pipe, asked, [0.5], config, answers=whole)
        whole.close()
        lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
        (tmp_path / "part").write_text("".join(lines[:4]))
        part = SavedAnswers(tmp_path / "part", {})
        tune(pipe, asked, [0.5], config, answers=part)
        part.close()
    made = by_place(lines)
    seeds = {place: one["seed"] for (_, place), one in made.items()}
    assert {(place, one["seed"]) for (_, place), one in made.items()} == set(seeds.items())
    assert len(set(seeds.values())) == 6
    assert len({made["target only", place]["text"] for place in range(3)}) > 1
    again = by_place((tmp_path / "part").read_text().splitlines())
    assert {place: one["text"] for place, one in again.items()} == {
        place: one["text"] for place, one in made.items()
    }


def test_answers_that_an_editor_saved_with_other_ends_of_lines_are_taken(tmp_path: Path) -> None:
    path, settings = tmp_path / "answers.jsonl", {"models": "m"}
    first = SavedAnswers(path, settings)
    first.ended("run", 2.0)
    first.close()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    again = SavedAnswers(path, settings)
    again.ended("another", 3.0)
    again.close()
    last = SavedAnswers(path, settings)
    last.close()
    assert (last.seconds("run"), last.seconds("another")) == (2.0, 3.0)


def test_one_that_fails_cancels_the_others() -> None:
    def script(prompt: object, index: int, text: str) -> Any:
        return RuntimeError("broken") if prompt == "first" else "x" * 10_000

    asked = [Question(name, "1", lambda text, known: True) for name in ("first", *"abcdefgh")]
    with scripted_pipeline(script, script, [0.5], max_batch_size=16) as pipe:
        with pytest.raises(RuntimeError, match="broken"):
            tune(pipe, asked, [0.5], RSDConfig(max_tokens=10_000, seed=0))
        pipe.generate("a", max_tokens=1)  # Those that were cancelled are gone by its end.
        assert pipe.backend.target.open_sessions == 0


def test_what_fails_a_question_names_it() -> None:
    with trio(PROBLEMS[:9], WRONG) as pipe:
        asked = questions(PROBLEMS[:9])
        prm: Any = pipe.backend.prm
        prm._script = lambda prompt, index, step: 7.0 if prompt == asked[4].prompt else 0.9
        with pytest.raises(RewardError, match=r"^question 5: the PRM gave reward 7\.0.*prm_format"):
            tune(pipe, asked, [0.5], CONFIG)


def test_answers_are_told_as_they_come() -> None:
    """Not behind a first one that takes long: it goes on until the others are told."""
    done: list[int] = []

    def script(prompt: object, index: int, text: str) -> str | None:
        if prompt == "slow":
            return "x" * 90 + "\n\n" if len(done) < 3 else None
        return None if index else "#### 1"

    with scripted_pipeline(script, script, [0.5], max_batch_size=3) as pipe:
        asked = {0: "slow", 1: "a", 2: "b", 3: "c"}
        config = RSDConfig(threshold=1.1, seed=0, max_tokens=50_000, max_steps=1_000)
        run_all(pipe, asked, config, lambda place, made: done.append(place))
    assert sorted(done) == [0, 1, 2, 3]
    assert done[-1] == 0


def test_no_more_than_one_question_is_needed_and_all_may_be_alike() -> None:
    with trio(PROBLEMS[:1], []) as pipe:
        found = tune(pipe, questions(PROBLEMS[:1]), [0.5], CONFIG)
    assert found.auc is None


def point(kind: str, threshold: float, right: int, total: float, seconds: float | None = 1.0) -> Point:
    """One of 100 questions, of which the target has 80."""
    rights = [index < right for index in range(100)]
    return Point(
        kind=kind,  # type: ignore[arg-type]
        threshold=threshold,
        accuracy=wilson(right, 100),
        by_length=(),
        against_target=paired_difference(rights, [index < 80 for index in range(100)]),
        acceptance_rate=None,
        rewritten=0.0,
        target_idle=0.0,
        flops=FLOPs(paper=total, total=total),
        flops_share=FLOPs(paper=total, total=total),
        mean_tokens=1.0,
        unfinished=0,
        seconds=seconds,
    )


ALL_ALIKE = [("draft", 0.0, 80, 0.1), ("rsd", 0.7, 80, 0.4), ("target", 1.1, 80, 1.0)]
DRAFT, TARGET = point("draft", 0.0, 60, 0.1), point("target", 1.1, 80, 1.0, seconds=2.0)


@pytest.mark.parametrize(
    ("sweep", "within", "best"),
    [
        ([(0.5, 78, 0.3), (0.7, 79, 0.4), (0.9, 81, 0.5)], 0.01, 0.7),
        ([(0.5, 78, 0.3), (0.7, 79, 0.4), (0.9, 81, 0.5)], 0.0, 0.9),
        ([(0.5, 80, 0.6), (0.7, 80, 0.4)], 0.01, 0.7),  # The cost decides, whatever the threshold.
        ([(0.5, 80, 0.4), (0.7, 80, 0.4)], 0.01, 0.5),
        ([(0.5, 70, 0.3)], 0.01, None),
    ],
)
def test_the_cheapest_that_is_good_enough(sweep: Any, within: float, best: float | None) -> None:
    found = cheapest([DRAFT, *(point("rsd", *one) for one in sweep), TARGET], within)
    assert (found and found.threshold) == best


def advised(*points: Point, within: float = 0.01, count: int = 100) -> str:
    best = cheapest(points, within)
    marked = [one.model_copy(update={"recommended": one is best}) for one in points]
    return "\n".join(advice(marked, within, count))


def test_advice_says_what_to_take_and_how_sure_it_is() -> None:
    said = advised(DRAFT, point("rsd", 0.7, 80, 0.4), TARGET)
    assert said.startswith("Threshold 0.7 is the cheapest within 1 point of the target: 80.0 %, +0.0 [")
    assert "for 0.40 of its FLOPs (total) and 0.50 of its time." in said
    worse = advised(DRAFT, point("rsd", 0.7, 78, 0.4), TARGET, within=0.02)
    assert "within 2 points" in worse
    assert "It may lose up to 5.8 points: measure on more." in worse
    several = advised(DRAFT, point("rsd", 0.7, 80, 0.4), point("rsd", 0.8, 81, 0.5), TARGET)
    assert (
        "and may lose up to 2.7 points on others: confirm it there, with thresholds=[0.7] alone." in several
    )
    assert several.endswith(
        "If the true difference is as measured, it takes about 1,500 questions to show that it is "
        "within 1 point."
    )
    assert "may lose" not in advised(DRAFT, point("rsd", 0.7, 80, 0.4), TARGET, within=0.03)
    resumed = advised(DRAFT, point("rsd", 0.7, 80, 0.4, seconds=None), TARGET)
    assert "for 0.40 of its FLOPs (total)." in resumed


def test_advice_says_where_rsd_does_not_pay() -> None:
    assert "RSD does not pay here" in advised(DRAFT, point("rsd", 0.7, 80, 1.2, seconds=None), TARGET)
    none = advised(DRAFT, point("rsd", 0.5, 70, 0.3), point("rsd", 0.7, 75, 0.4), TARGET)
    far = advised(DRAFT, point("rsd", 0.7, 60, 0.4), TARGET)
    assert "cannot tell for sure" not in far
    near = advised(DRAFT, point("rsd", 0.7, 78, 0.4), TARGET)
    assert near.startswith("No threshold is within 1 point")
    assert near.endswith("So few questions cannot tell for sure: measure on more.")
    assert none.startswith("No threshold is within 1 point of the target. The closest is 0.7: 75.0 %, -5.0 [")
    same = advised(point("draft", 0.0, 80, 0.1, seconds=0.2), point("rsd", 0.7, 80, 0.4), TARGET)
    assert "The draft alone is good enough, too, for 0.10 of its FLOPs (total) and 0.10 of its time" in same
    slow = advised(DRAFT, point("rsd", 0.7, 80, 0.4, seconds=2.5), TARGET)
    assert "It took no less time than the target alone" in slow
    costly = advised(DRAFT, point("rsd", 0.7, 80, 1.2, seconds=1.0), TARGET)
    assert "It costs more FLOPs than the target alone, and less time." in costly
    assert "does not pay" not in costly
    assert "RSD does not pay here" in advised(DRAFT, point("rsd", 0.7, 80, 1.2, seconds=3.0), TARGET)
    # The PRM takes the draft's right steps for wrong ones, and the draft would do.
    worse = advised(point("draft", 0.0, 80, 0.1), point("rsd", 0.7, 70, 0.4), TARGET)
    assert "No threshold is within 1 point" in worse
    assert "The draft alone is good enough" in worse


def test_advice_says_where_nothing_was_measured() -> None:
    """All are as good as a target that is never right."""
    blank = [point(*one).model_copy(update={"accuracy": wilson(0, 100)}) for one in ALL_ALIKE]
    assert cheapest(blank, 0.01) is None
    assert advised(*blank) == (
        "The target alone is right on none: look at its answers, and at how they are matched."
    )
    blank[-1] = blank[-1].model_copy(update={"unfinished": 7})
    said = (
        "A limit cut off {} of the target's 100 answers: measure again with a higher max_tokens "
        "(or max_steps)."
    )
    assert advised(*blank).startswith(said.format(7))
    cut, many = (
        advised(DRAFT, point("rsd", 0.7, 80, 0.4), TARGET.model_copy(update={"unfinished": count}))
        for count in (24, 25)
    )
    assert cut.startswith(f"{said.format(24)}\nThreshold 0.7 is the cheapest")
    assert many == said.format(25), "there is nothing to compare with"


def test_where_the_targets_answers_were_cut_off_no_threshold_is_recommended(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = sorted(len(problem.solution) + 1 for problem in PROBLEMS)[15]
    options = ["--thresholds", "0.5", "--max-tokens", str(half), "--out", str(tmp_path)]
    assert run(file, *options)[0] == 0
    told = capsys.readouterr().out
    limits = "measure again with a higher --max-tokens (or max_steps in --config)."
    assert any(line.startswith("A limit cut off") and line.endswith(limits) for line in told.splitlines())
    assert "cheapest" not in told
    report = TuneReport.model_validate_json((tmp_path / "tune.json").read_bytes())
    assert report.points[-1].accuracy.value > 0
    assert not any(point.recommended for point in report.points)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the file has none left to confirm it on."),
        (["--problems", "12"], "confirm it there, by the same command with --skip 12 --thresholds 0.7"),
        (["--problems", "12", "--skip", "9"], "with --skip 21 --thresholds 0.7 --problems 9"),
        (["--problems", "6", "--out", "my out"], "--skip 6 --thresholds 0.7 --out 'my out-confirm'"),
    ],
)
def test_how_a_threshold_is_confirmed_is_told_as_a_command(
    file: str,
    tmp_path: Path,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [file, "--thresholds", "0.7,0.8", *options]
    assert run(*command, blind=[])[0] == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "may lose up to" in line]
    assert line.endswith(said)
    if "with " in said:
        again = line.partition("command with ")[2]
        assert run(*command, *shlex.split(again))[0] == 0
        assert "was chosen by these questions" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("is_terminal", "variable", "value"),
    [(False, "TERM", "xterm"), (False, "FORCE_COLOR", "1"), (True, "TERM", "dumb")],
)
def test_logs_say_how_many_runs_are_left(
    file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool,
    variable: str,
    value: str,
) -> None:
    """A log is what cannot be animated: also where a CI service forces colours, and in Emacs."""
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert run(file, "--thresholds", "0.5,0.95", "--problems", "3")[0] == 0
    names = ["target only", "draft only", "threshold 0.5", "threshold 0.7", "threshold 0.95"]
    assert capsys.readouterr().err.splitlines() == [
        f"{name} ({number} of 6): 3 answers to make"
        for number, name in enumerate([*names, "rewards of the draft's steps"], 1)
    ]


def test_sentences_are_not_broken_in_a_pipe(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--thresholds", "0.5,0.95")[0] == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Intervals: ") and line.endswith("whichever is wider).") for line in lines)
    assert any(line.startswith("Threshold 0.95 is") and line.endswith(" of its time.") for line in lines)


def test_no_interval_is_broken_in_a_terminal() -> None:
    console = Console(width=40, file=StringIO(), force_terminal=True, color_system=None)
    for line in advised(DRAFT, point("rsd", 0.5, 70, 0.3), TARGET).splitlines():
        print_text(line, console)
    assert isinstance(console.file, StringIO)
    assert re.search(r"\[[-+\d.]+,[-+\d.]+\]", console.file.getvalue())


def test_a_question_that_does_not_fit_is_told_before_any_is_answered(tmp_path: Path) -> None:
    asked: list[str] = []

    def script(prompt: object, index: int, text: str) -> str | None:
        asked.append(str(prompt))
        return None

    with scripted_pipeline(script, script, [0.5]) as pipe:
        long = Question("x" * pipe.backend.target.info.window, "1", lambda text, known: True)
        with pytest.raises(PromptLengthError, match=r"question 2 \('xxx.* has a window of"):
            tune(pipe, [Question("short", "1", long.match), long], [0.5], CONFIG)
    assert asked == []


def test_answers_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    path, settings = tmp_path / "answers.jsonl", {"models": "m"}
    first = SavedAnswers(path, settings)
    with trio(PROBLEMS, WRONG, blind=BLIND) as pipe:
        whole = tune(pipe, questions(), [0.5, 0.95], CONFIG, answers=first)
    first.close()
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 31 * 6  # With how long each run took.
    # As if it had been killed in the middle of a line.
    path.write_text("".join(lines[:100]) + lines[100][:40])
    runs: list[tuple[str, int]] = []
    again = SavedAnswers(path, settings)
    assert again.count == 96
    with trio(PROBLEMS, WRONG, blind=BLIND) as pipe:
        watch = Watch(lambda name, count: runs.append((name, count)))
        resumed = tune(pipe, questions(), [0.5, 0.95], CONFIG, watch=watch, answers=again)
    again.close()
    assert [count for _, count in runs] == [0, 0, 0, 24, 30, 30]
    bare = [one.model_copy(update={"seconds": None}) for one in whole.points]
    assert [one.model_copy(update={"seconds": None}) for one in resumed.points] == bare
    assert [one.seconds is None for one in resumed.points] == [False, False, True, False, False]
    assert resumed.points[-1].seconds == whole.points[-1].seconds
    assert resumed.auc == whole.auc
    assert len(path.read_text().splitlines()) == 1 + 31 * 6 - 1
    elsewhere = SavedAnswers(path, settings, {"cores": 64})
    elsewhere.close()
    assert elsewhere.count == 180
    assert elsewhere.seconds("target only") is None


def test_answers_of_other_settings_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    SavedAnswers(path, {"temperature": 0}).close()
    before = path.read_bytes()
    told = "of other models, questions or settings: seed None there, 3 here, temperature 0 there, 1 here."
    with pytest.raises(ConfigError, match=re.escape(told)):
        SavedAnswers(path, {"temperature": 1, "seed": 3})
    path.write_bytes(before + b'{"run": "x"}\n')
    with pytest.raises(ConfigError, match=r"line 2 of .* is no answer"):
        SavedAnswers(path, {"temperature": 0})
    path.write_bytes(before[:10])  # Killed while it was begun.
    SavedAnswers(path, {"temperature": 0}).close()
    assert path.read_bytes() == before


def test_a_file_of_others_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("notes, without an end of line")
    with pytest.raises(ConfigError, match="answers of other models"):
        SavedAnswers(path, {})
    assert path.read_text() == "notes, without an end of line"
    with pytest.raises(ConfigError, match=r"cannot be written to: .*\. Name another folder"):
        SavedAnswers(tmp_path, {})


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first = SavedAnswers(tmp_path / "a", {})
    made = Generation(text="a", finish_reason="stop", seed=3, threshold=None)
    first.add("target only", 0, made)
    assert len((tmp_path / "a").read_text().splitlines()) == 2  # At once: the run may be killed.
    with pytest.raises(ConfigError, match="another run writes to"):
        SavedAnswers(tmp_path / "a", {})
    first.add("target only", 1, made)
    first.close()
    again = SavedAnswers(tmp_path / "a", {})
    again.close()
    assert again.count == 2


def test_saved_answers_come_back_whole(tmp_path: Path) -> None:
    made = Generation(text="a\u2028b\n", finish_reason="stop", seed=3, threshold=None)
    saved = SavedAnswers(tmp_path / "a", {})
    saved.add("target only", 7, made)
    saved.close()
    again = SavedAnswers(tmp_path / "a", {})
    again.close()
    assert again.of("target only") == {7: made}


@pytest.mark.usefixtures("painted")
def test_the_command_saves_what_repeats_it(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out[old]"
    options = ["--thresholds", "0.5,0.95", "--out", str(out), "--max-batch-size", "4", "--problems", "12"]
    code, choices = run(file, *options)
    assert code == 0
    assert choices == [ModelChoice(max_batch_size=4)]
    names = ["tune-answers.jsonl", "tune.json", "tune.png", "tune.svg"]
    assert sorted(one.name for one in out.iterdir()) == names
    report = TuneReport.model_validate_json((out / "tune.json").read_bytes())
    assert report.settings["problems"] == 12
    assert report.settings["match"] == "number"
    assert report.models == {role: f"scripted-{role}" for role in ("draft", "target", "prm")}
    assert report.within == 0.01
    assert [one.command for one in report.answers_made] == [report.command]
    (best,) = [one for one in report.points if one.recommended]
    told = capsys.readouterr().out
    assert f"Threshold {best.threshold:g} is the cheapest within 1 point of the target" in told
    assert "time" in told
    # Another threshold and another match cost no answer that is there.
    code, _ = run(file, *options[:1], "0.5,0.6,0.95", *options[2:], "--match", "text")
    captured = capsys.readouterr()
    assert code == 0
    assert f"going on from {12 * 6} answers in {out}" in captured.err
    assert "RSD 0.6" in captured.out
    assert "Answers matched by: text." in captured.out
    again = TuneReport.model_validate_json((out / "tune.json").read_text())
    assert [one.command for one in again.answers_made] == [report.command, again.command]
    for other in (
        ["--temperature", "0.5"],
        ["--config", '{"max_steps": 9}'],
        ["--max-length", "900"],
        ["--max-tokens", "9"],
        ["--question-field", "question"],
        ["--answer-field", "answer"],
        ["--system", "Think."],
        ["--seed", "1"],
        ["--problems", "11"],
        ["--problems-seed", "1"],
        ["--skip", "1"],
        ["--dtype", "float64"],
    ):
        code, _ = run(file, *options, *other)
        assert (code, "Name another folder" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize(
    "changed",
    ["draft/model.safetensors", "target/chat_template.jinja", "prm/vocab.txt", "words/tokenizer.json"],
)
def test_saved_answers_of_a_model_that_has_changed_are_not_taken(
    file: str, tmp_path: Path, changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("draft", "target", "prm", "words"):
        (tmp_path / name).mkdir()
    models = [f"--{role}={tmp_path / role}" for role in ("draft", "target", "prm")]
    words = json.dumps({"tokenizer": str(tmp_path / "words")})
    options = [*models, "--thresholds=0.5", f"--out={tmp_path / 'draft' / 'out'}", "--problems=6"]
    options.append(f"--target-kwargs={words}")
    assert [run(file, *options)[0] for _ in range(2)] == [0, 0]
    assert "going on from" in capsys.readouterr().err
    there = tmp_path / changed
    there.parent.mkdir(exist_ok=True)
    there.write_text("something else")
    code, _ = run(file, *options)
    assert (code, "Name another folder" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--thresholds", "0.5,2"], "--thresholds '0.5,2' must be numbers"),
        (["--match", "numbers"], "unknown --match 'numbers'"),
        (["--problems", "31"], "31 questions were asked for, and there are 30"),
        (["--question-field", "q"], "has no 'q'; its fields are 'question', 'answer'"),
        (["--draft", "a/b"], "--target and --prm missing"),
        (["--config", '{"beta": 2}'], "--config sets 'beta', which the command sets itself"),
        (
            ["--config", '{"draft_candidates": 33}', "--temperature", "1"],
            "fit --max-batch-size 16. Raise",
        ),
        (["--config", '{"thresh": 1}'], "--config: unknown setting 'thresh'"),
        (["--config", '{"temperature": 1}'], "which has an option. Use --temperature"),
        (["--draft-kwargs", "{}"], "--draft-kwargs plays no part in the pocket trio"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(
    file: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, choices = run(file, *arguments)
    assert (code, choices) == (2, [])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "options", "max_length", "max_tokens"),
    [
        ([], [], None, 900),
        ([], ["--max-length", "400"], 400, "as the window allows"),
        ([], ["--max-tokens", "300"], None, 300),
        (["a/b"] * 3, [], 4096, 2048),
        (["a/b"] * 3, ["--max-tokens", "8000"], 10048, 8000),
        (["http://a"] * 3, [], None, 2048),
    ],
)
def test_models_have_room_for_what_is_asked(
    file: str, tmp_path: Path, models: list[str], options: list[str], max_length: int | None, max_tokens: Any
) -> None:
    named = [
        part
        for role, name in zip(("draft", "target", "prm"), models, strict=False)
        for part in (f"--{role}", name)
    ]
    out = ["--thresholds", "0.5", "--problems", "6", "--out", str(tmp_path / "out")]
    code, choices = run(file, *named, *options, *out)
    assert code == 0
    assert choices[0].max_length == max_length
    report = TuneReport.model_validate_json((tmp_path / "out" / "tune.json").read_bytes())
    assert report.settings["max_tokens"] == max_tokens


def test_settings_decide_how_questions_are_answered(file: str, tmp_path: Path) -> None:
    out = [
        "--thresholds",
        "0.5",
        "--out",
        str(tmp_path),
        "--problems=6",
        "--config",
        '{"max_steps": 1, "max_step_tokens": 2}',
    ]
    assert run(file, *out)[0] == 0
    report = TuneReport.model_validate_json((tmp_path / "tune.json").read_bytes())
    assert report.settings["config"] == '{"max_steps": 1, "max_step_tokens": 2}'
    assert run(file, *out[:-1], ' {"max_steps":1, "max_step_tokens": 2}')[0] == 0, "the same in other words"
    assert run(file, *out[:-2])[0] == 2
    out[3] = str(tmp_path / "other")
    assert run(file, *out[:-2])[0] == 0
    assert run(file, *out[:-2], "--config", '{"top_p": 1.0, "speculation": true}')[0] == 0, "the defaults"
    assert run(file, *out[:-2], "--config", '{"speculation": false}')[0] == 2, "it changes FLOPs and times"
    assert run(file, *out[2:-2], "--thresholds", "")[0] == 0, "the PRM's default alone"
    assert all(point.mean_tokens <= 2 for point in report.points)


def test_questions_that_occur_more_than_once_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [json.dumps({"question": one.question, "answer": one.answer}) for one in PROBLEMS[:4]]
    for copies, told in (
        ([], None),
        (lines[:1], "1 question occurs more than once in"),
        (lines[:2] * 3, "2 questions occur more than once in"),
    ):
        path.write_text("\n".join([*lines, *copies]))
        assert run(str(path), "--thresholds", "0.5", "--problems", "1")[0] == 0
        out, errors = capsys.readouterr()
        assert "1 answer of the draft" in out
        assert told in errors if told else "more than once" not in errors


def test_each_question_is_told_by_its_place_and_who_was_right(file: str, tmp_path: Path) -> None:
    options = [file, "--thresholds", "0.5", "--out", str(tmp_path), "--problems", "7", "--skip", "3"]
    assert run(*options)[0] == 0
    report = TuneReport.model_validate_json((tmp_path / "tune.json").read_text())
    places = [one.entry - 1 for one in report.items if one.entry is not None]
    assert places == drawn(30, 7, 0, skip=3)
    assert [one.known for one in report.items] == [str(PROBLEMS[place].answer) for place in places]
    assert [one.right["draft only"] for one in report.items] == [place not in WRONG for place in places]
    assert all(one.right.keys() == {"draft only", "target only", "threshold 0.5"} for one in report.items)
    saved = by_place((tmp_path / "tune-answers.jsonl").read_text().splitlines())
    assert {place for _, place in saved} == set(range(7))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.usefixtures("painted")
def test_names_in_another_encoding_do_not_lose_the_work(tmp_path: Path) -> None:
    file, out = (tmp_path / os.fsdecode(name) for name in (b"\xca\xfd.jsonl", b"\xca\xfd"))
    for _ in range(2):  # The second goes on from the saved answers.
        assert run(write(file, PROBLEMS[:6]), "--thresholds", "0.5", "--out", str(out))[0] == 0
    report = TuneReport.model_validate_json((out / "tune.json").read_bytes())
    assert Path(str(report.settings["questions_from"])).name == "\ufffd\ufffd.jsonl"
    assert "\ufffd\ufffd.jsonl --thresholds" in report.command.replace("'", "")
    assert "\ufffd\ufffd.jsonl, " in (out / "tune.svg").read_text(encoding="utf-8")


def test_a_run_that_failed_before_its_first_answer_leaves_nothing_in_the_way(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = [file, "--thresholds", "0.5", "--problems", "2", "--out", str(out)]

    def mistyped(choice: ModelChoice) -> NoReturn:
        raise ConfigError("there is no such model.")

    for failing in (
        lambda: main(["tune", *options], open_pipeline=mistyped),
        lambda: run(*options, "--max-tokens", "99999999")[0],
    ):
        assert failing() == 2
        assert [one.name for one in out.iterdir()] == []
    assert "Lower --max-tokens" in capsys.readouterr().err
    assert run(*options, "--max-tokens", "99")[0] == 0
    assert run(*options, "--max-tokens", "98")[0] == 2
    assert "--max-tokens 99 there, 98 here" in capsys.readouterr().err


def test_seeds_of_neighbouring_runs_share_no_draws() -> None:
    asked = dict.fromkeys(range(5), "How many?")
    seeds = set[int]()
    with scripted_pipeline(["5"], ["5"], [0.9]) as pipe:
        for seed in range(20):
            run_all(pipe, asked, CONFIG.override(seed=seed), lambda place, made: seeds.add(made.seed))
    assert len(seeds) == 100


def test_answers_of_several_versions_are_told(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [file, "--thresholds", "0.5", "--out", str(tmp_path), "--problems", "3"]
    assert run(*options)[0] == 0
    assert "several versions" not in capsys.readouterr().out
    monkeypatch.setattr("rsd_integrations.bench.environment.version_of", lambda package: "99")
    assert run(*options)[0] == 0  # It made none of them.
    assert "several versions" not in capsys.readouterr().out
    assert run(*options[:2], "0.4,0.5", *options[3:])[0] == 0
    assert "They were made by several versions or machines" in capsys.readouterr().out
    report = TuneReport.model_validate_json((tmp_path / "tune.json").read_text())
    assert [one.versions["torch"] == "99" for one in report.answers_made] == [False, True]


def test_answers_that_a_full_disk_cannot_keep_name_their_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # Windows has none.
    path, limits = tmp_path / "answers.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    made = Generation(text="a", finish_reason="stop", seed=3, threshold=None)
    answers = SavedAnswers(path, {"models": "m"})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"answers\.jsonl' cannot be written: File too large\.$"):
            answers.add("target only", 0, made)
        answers.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = SavedAnswers(path, {"models": "m"})
    again.close()
    assert again.count == 0


def test_a_report_that_cannot_be_written_costs_none_that_is_there(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    options = [file, "--thresholds", "0.5", "--out", str(tmp_path), "--problems", "3"]
    kept = [tmp_path / name for name in ("tune.json", "tune.png", "tune.svg")]

    def fail(where: object, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    assert run(*options)[0] == 0
    report, *plots = (path.read_bytes() for path in kept)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda path, *_, **__: fail(None, path))
        capsys.readouterr()
        assert run(*options)[0] == 1
    told = capsys.readouterr()
    assert told.err.endswith(f"error: {str(kept[0])!r} cannot be written: No space left on device.\n")
    assert f"wrote {tmp_path}" not in told.out
    assert [path.read_bytes() for path in kept] == [report, *plots]

    monkeypatch.setattr(Figure, "savefig", fail)
    assert run(*options)[0] == 1
    told = capsys.readouterr()
    assert told.err.endswith(f"error: {str(kept[1])!r} cannot be written: No space left on device.\n")
    assert told.out.splitlines()[-1] == f"wrote {kept[0]}"
    assert [path.read_bytes() for path in kept[1:]] == plots
    assert not list(tmp_path.glob(".rsd*"))


def test_formulas_without_math_verify_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsd_integrations.bench.matching._has_math_verify", lambda: False)
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": PROBLEMS[0].question, "answer": "p - q"}))
    assert run(str(tmp_path / "a.jsonl"), "--thresholds", "0.5")[0] == 0
    captured = capsys.readouterr()
    assert "formulas, which are compared sign by sign" in captured.err
    assert "Answers matched by: text." in captured.out


def test_a_system_message_goes_with_each_question(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str) -> str | None:
        seen.append(prompt)
        return None if index else "#### 5"

    def opener(choice: ModelChoice) -> RSDPipeline:
        return scripted_pipeline(script, script, [0.5])

    assert main(["tune", file, "--system", "Be brief.", "--thresholds", "0.5"], open_pipeline=opener) == 0
    assert seen[0][0] == {"role": "system", "content": "Be brief."}
    assert seen[0][1]["role"] == "user"


@pytest.mark.slow
def test_on_pocket_problems_it_measures_what_the_benchmark_does(tmp_path: Path) -> None:
    """The real trio; the benchmark is the oracle."""
    problems = held_out(3)
    file = write(tmp_path / "questions.jsonl", problems)
    options = ["--thresholds", "0.95", "--out", str(tmp_path)]
    assert main(["bench", "accuracy", "--problems", "3", *options]) == 0
    assert main(["tune", file, *options]) == 0
    bench = AccuracyReport.model_validate_json((tmp_path / "accuracy.json").read_bytes())
    tuned = TuneReport.model_validate_json((tmp_path / "tune.json").read_bytes())
    for one, other in zip(bench.points, tuned.points, strict=True):
        assert (one.kind, one.threshold, one.accuracy) == (other.kind, other.threshold, other.accuracy)
        assert one.against_target == other.against_target
        assert one.acceptance_rate == other.acceptance_rate
        assert one.flops.paper == other.flops.paper
        assert one.mean_tokens == other.mean_tokens
