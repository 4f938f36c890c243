"""The shipped weights: standard folders, small, fp32, and able to solve their task."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
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
def models() -> Any:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    paths = pocket.pocket_paths()
    kinds = {"draft": "CausalLM", "target": "CausalLM", "prm": "TokenClassification"}
    return {
        name: getattr(transformers, f"AutoModelFor{kind}").from_pretrained(getattr(paths, name))
        for name, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(pocket.pocket_paths().target)


@pytest.fixture(scope="module")
def pipe() -> Iterator[Any]:
    from rsd_integrations import RSDPipeline

    with RSDPipeline.pocket() as pipe:
        yield pipe


def test_all_weights_are_fp32(models: Any) -> None:
    import torch

    kinds = {weight.dtype for model in models.values() for weight in model.parameters()}
    assert kinds == {torch.float32}


def test_sizes_are_in_proportion(models: Any) -> None:
    from rsd_integrations.pocket.model import count_parameters

    sizes = {name: count_parameters(model) for name, model in models.items()}
    assert sizes["target"] > 5 * (sizes["draft"] + sizes["prm"])


def test_reward_config_names_format_separator_and_threshold(models: Any) -> None:
    config = models["prm"].config
    assert set(config.rsd_prm) == {"format", "chat", "separator", "threshold"}
    assert config.rsd_prm["chat"] is True
    assert config.rsd_prm["separator"] == SEPARATOR
    assert config.num_labels == 2


@pytest.mark.parametrize("threshold", [None, pytest.param(1.1, marks=pytest.mark.slow)])
def test_target_and_rsd_solve_held_out_problems(pipe: Any, threshold: float | None) -> None:
    problems = held_out(6, seed=77)
    answers = [pipe.generate(problem.question, threshold=threshold).text for problem in problems]
    assert sum(map(check_answer, problems, answers)) >= 5


@pytest.mark.parametrize(("threshold", "name"), [(1.1, "target"), (0.0, "draft")])
def test_threshold_beyond_one_is_the_target_alone_and_zero_the_draft(
    pipe: Any, models: Any, tokenizer: Any, threshold: float, name: str
) -> None:
    from tests.oracle import Party, plain_generate

    alone = Party(models[name], tokenizer)
    for problem in held_out(2, seed=78):
        text = pipe.generate(problem.question, threshold=threshold).text
        assert text == plain_generate(alone, problem.question, 512)[1]


def test_rewards_tell_gold_from_spoilt_steps(models: Any, tokenizer: Any) -> None:
    import torch

    from rsd_integrations.bench.stats import auc
    from rsd_integrations.pocket.rollouts import encode_judged, spoilt

    scored = []
    for record in islice(spoilt(12345), 20):
        ids, marks = encode_judged(tokenizer, record)
        with torch.no_grad():
            rewards = models["prm"](input_ids=torch.tensor([ids])).logits[0].softmax(-1)[:, 1].tolist()
        scored += [(reward, mark == 1) for reward, mark in zip(rewards, marks, strict=True) if mark >= 0]
    found = auc(scored)
    assert found is not None and found > 0.9


def test_gold_labels_agree_with_the_task() -> None:
    problem = held_out(1)[0]
    assert label_steps(problem, problem.steps) == [True] * len(problem.steps)
