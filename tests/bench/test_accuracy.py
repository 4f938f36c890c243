from __future__ import annotations

import pytest
from rich.console import Console

from rsd_integrations.bench.accuracy import measure
from rsd_integrations.bench.results import AccuracyReport
from rsd_integrations.bench.sweep import Watch
from rsd_integrations.bench.table import print_checks
from rsd_integrations.pocket.task import held_out
from rsd_integrations.types import FLOPs
from tests.bench.scripts import trio

PROBLEMS = held_out(60)
WRONG = range(0, 60, 3)  # two lengths: 3 and 6 events
BLIND = (0, 3)


@pytest.fixture(scope="module")
def measured() -> AccuracyReport:
    with trio(PROBLEMS, WRONG, blind=BLIND) as pipe:
        return measure(pipe, PROBLEMS, [0.5, 0.95])


def test_the_points_run_from_draft_to_target(measured: AccuracyReport) -> None:
    assert [(point.kind, point.threshold) for point in measured.points] == [
        ("draft", 0.0),
        ("rsd", 0.5),
        ("rsd", 0.7),
        ("rsd", 0.95),
        ("target", 1.1),
    ]
    assert [point.recommended for point in measured.points] == [False, False, True, False, False]


def test_accuracies_are_what_the_scripts_make_them(measured: AccuracyReport) -> None:
    assert [round(60 * point.accuracy.value) for point in measured.points] == [40, 58, 58, 60, 60]
    recommended = measured.points[2]
    assert recommended.against_target.value == pytest.approx(-2 / 60)
    by_length = {length.events: (length.problems, length.accuracy.value) for length in recommended.by_length}
    assert by_length == {3: (10, 0.9), 4: (10, 1), 5: (10, 1), 6: (10, 0.9), 7: (10, 1), 8: (10, 1)}


def test_acceptance_counts_steps(measured: AccuracyReport) -> None:
    steps = sum(len(problem.steps) for problem in PROBLEMS)
    draft, _, recommended, strict, target = measured.points
    assert (draft.acceptance_rate, draft.rewritten, draft.target_idle) == (1.0, 0.0, 1.0)
    assert recommended.acceptance_rate == pytest.approx(1 - 18 / steps)
    assert recommended.rewritten == pytest.approx(18 / steps)
    assert recommended.target_idle == pytest.approx(42 / 60)
    assert (strict.acceptance_rate, strict.rewritten, strict.target_idle) == (0.0, 1.0, 0.0)
    assert (target.acceptance_rate, target.rewritten, target.target_idle) == (None, 0.0, 0.0)


def test_flops_are_shares_of_the_target_on_its_own_answers(measured: AccuracyReport) -> None:
    draft, _, recommended, strict, target = measured.points
    assert target.flops_share == FLOPs(paper=1.0, total=1.0)
    # Characters: the target's own answers, end of sequence included, at 1000 parameters each.
    assert target.flops.paper == 2000 * sum(len(problem.solution) + 1 for problem in PROBLEMS)
    assert recommended.flops_share.paper == pytest.approx(recommended.flops.paper / target.flops.paper)
    assert recommended.flops_share.total == pytest.approx(recommended.flops.total / target.flops.total)
    assert draft.flops_share.paper < recommended.flops_share.paper < 1 < strict.flops_share.paper


def test_tokens_and_ends(measured: AccuracyReport) -> None:
    target = measured.points[-1]
    assert target.mean_tokens == pytest.approx(sum(len(p.solution) + 1 for p in PROBLEMS) / 60)
    assert [point.unfinished for point in measured.points] == [0] * 5


def test_prm_quality_counts_the_drafts_own_steps(measured: AccuracyReport) -> None:
    prm = measured.prm
    assert (prm.steps, prm.wrong_steps) == (sum(len(problem.steps) for problem in PROBLEMS), 20)
    assert prm.auc is not None
    # 18 of 20 wrong steps lie below every right one, 2 tie with all of them.
    assert prm.auc.value == pytest.approx((18 + 2 / 2) / 20)
    assert prm.auc.low < prm.auc.value < prm.auc.high


def test_steps_after_the_first_wrong_one_do_not_count_in_the_main_auc() -> None:
    from rsd_integrations.testing import scripted_pipeline

    problem = next(problem for problem in PROBLEMS if problem.events == 3)
    script = ["Nonsense: 1 + 1 = 3.\n\n", *[step + "\n\n" for step in problem.steps[1:3]], problem.steps[3]]
    with scripted_pipeline(script, rewards=[0.2, 0.9, 0.9, 0.9]) as pipe:
        prm = measure(pipe, [problem], []).prm
    assert (prm.steps, prm.wrong_steps, prm.auc) == (1, 1, None)
    assert prm.all_steps_count == 4


def test_every_answer_is_reported() -> None:
    runs: list[str] = []
    done: list[int] = []
    told: list[int] = []
    watch = Watch(lambda name, _: runs.append(name), lambda: done.append(1), told.append)
    with trio(PROBLEMS[:6], [0]) as pipe:
        measure(pipe, PROBLEMS[:6], [0.5], watch=watch)
        assert max(pipe.backend.draft.batches) == 6  # type: ignore[attr-defined]
    assert runs == [
        "target only",
        "draft only",
        "threshold 0.5",
        "threshold 0.7",
        "rewards of the draft's steps",
    ]
    assert told == [len(runs)]
    assert len(done) == 5 * 6


def verdicts(**script: object) -> dict[str, bool]:
    with trio(PROBLEMS, **{"wrong": WRONG, **script}) as pipe:  # type: ignore[arg-type]
        made = measure(pipe, PROBLEMS, [])
    return {check.name: check.passed for check in made.checks}


NAMES = [
    "target accuracy",
    "draft accuracy",
    "PRM AUC",
    "RSD against target",
    "RSD at its worst length",
    "RSD FLOPs share (paper)",
]


def test_a_good_trio_passes_every_check() -> None:
    assert verdicts() == dict.fromkeys(NAMES, True)


@pytest.mark.parametrize(
    ("script", "missed"),
    [
        ({"target_wrong": [1, 4, 7, 10]}, {"target accuracy"}),
        ({"blind": [0, 3]}, {"RSD against target", "RSD at its worst length", "PRM AUC"}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ({"wrong": range(40)}, {"draft accuracy"}),
                ({"draft_cost": 400}, {"RSD FLOPs share (paper)"}),
                ({"wrong": range(5)}, {"draft accuracy"}),
                ({"blind": [0, 4]}, {"RSD against target", "RSD at its worst length"}),
                ({"blind": [0], "target_wrong": [1]}, {"RSD at its worst length"}),
            )
        ),
    ],
)
def test_each_required_number_can_be_missed(script: dict[str, object], missed: set[str]) -> None:
    verdict = verdicts(**script)
    assert {name for name, passed in verdict.items() if not passed} == missed


def test_the_checks_fit_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with trio(PROBLEMS, WRONG, blind=[0, 3]) as pipe:
        made = measure(pipe, PROBLEMS, [])
    print_checks(made.checks, Console(width=80))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert any("MISSED" in line for line in lines)
    assert max(map(len, lines)) <= 80
