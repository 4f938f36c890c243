"""The shipped weights: standard folders, small, fp32, and able to solve their task."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import rsd_integrations.pocket as pocket
from rsd_integrations.pocket.task import SEPARATOR, check_answer, generate, held_out, label_steps

MEGABYTE = 1_000_000


def test_importing_the_module_loads_neither_torch_nor_transformers() -> None:
    # The parent package is stubbed: what it imports is its own tests' business.
    code = (
        "import sys, types; parent = types.ModuleType('rsd_integrations'); "
        f"parent.__path__ = [{str(Path(pocket.__file__).parents[1])!r}]; sys.modules['rsd_integrations'] = parent; "
        "import rsd_integrations.pocket as p; p.pocket_paths(); p.recommended_threshold(); p.EXAMPLE_QUESTIONS; "
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_weights_are_small() -> None:
    root = pocket.pocket_paths().draft.parent
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 25 * MEGABYTE


def test_threshold_is_read_from_the_reward_model() -> None:
    assert 0 < pocket.recommended_threshold() < 1


def test_examples_are_held_out_questions() -> None:
    seen = {problem.question for problem in islice(generate(0), 500)}
    assert len(pocket.EXAMPLE_QUESTIONS) == 5
    assert not seen & set(pocket.EXAMPLE_QUESTIONS)


def test_missing_attribute_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pocket.nothing  # noqa: B018


@pytest.fixture(scope="module")
def bench() -> Any:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from rsd_integrations.pocket.evaluate import Bench

    paths = pocket.pocket_paths()
    models = {
        name: transformers.AutoModelForCausalLM.from_pretrained(getattr(paths, name))
        for name in ("draft", "target")
    }
    models["prm"] = transformers.AutoModelForTokenClassification.from_pretrained(paths.prm)
    return Bench(transformers.AutoTokenizer.from_pretrained(paths.target), models)


def test_all_weights_are_fp32(bench: Any) -> None:
    import torch

    kinds = {weight.dtype for model in bench.models.values() for weight in model.parameters()}
    assert kinds == {torch.float32}


def test_sizes_are_in_proportion(bench: Any) -> None:
    from rsd_integrations.pocket.measure import parameters

    sizes = parameters(bench)
    assert sizes["target"] > 5 * (sizes["draft"] + sizes["prm"])


def test_reward_config_names_format_separator_and_threshold(bench: Any) -> None:
    assert set(bench.models["prm"].config.rsd_prm) == {"format", "separator", "threshold"}
    assert bench.models["prm"].config.rsd_prm["separator"] == SEPARATOR
    assert bench.models["prm"].config.num_labels == 2


def test_target_and_rsd_solve_held_out_problems(bench: Any) -> None:
    from rsd_integrations.pocket.evaluate import solve, solve_rsd

    problems = held_out(6, seed=77)
    alone = solve(bench, problems, "target")
    assert sum(check_answer(run.problem, run.text) for run in alone) >= 5
    together = solve_rsd(bench, problems, pocket.recommended_threshold())
    assert sum(check_answer(run.problem, run.text) for run in together) >= 5


def test_threshold_beyond_one_is_the_target_alone_and_zero_the_draft(bench: Any) -> None:
    from rsd_integrations.pocket.evaluate import solve, solve_rsd

    problems = held_out(4, seed=78)
    for threshold, name in ((1.1, "target"), (0.0, "draft")):
        texts = [run.text for run in solve_rsd(bench, problems, threshold)]
        assert texts == [run.text for run in solve(bench, problems, name)]


def test_rewards_tell_gold_from_spoilt_steps(bench: Any) -> None:
    from rsd_integrations.pocket.measure import auc
    from rsd_integrations.pocket.rollouts import encode_judged, spoilt

    scores, labels = [], []
    for record in islice(spoilt(12345), 20):
        ids, marks = encode_judged(bench.tokenizer, record)
        ends = [i for i, mark in enumerate(marks) if mark >= 0]
        scores += bench.rewards([tuple(ids[: end + 1]) for end in ends])
        labels += [bool(marks[end]) for end in ends]
    assert auc(scores, labels) > 0.9


def test_gold_labels_agree_with_the_task() -> None:
    problem = held_out(1)[0]
    assert label_steps(problem, problem.steps) == [True] * len(problem.steps)
