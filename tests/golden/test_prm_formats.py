"""Each PRM format, fed step by step, against what its model card computes over the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rsd_integrations.backends.shared.describe import active_parameters
from rsd_integrations.backends.torch.heads import RewardModel, load_reward_model
from rsd_integrations.backends.torch.readout import read_hidden
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.scorer import TorchScorer
from rsd_integrations.prm import PRMFormat, find_prm_format, prm_format_names
from rsd_integrations.protocols import Kept, ModelInfo, Scored, ScoreStep, Written
from tests.golden.cases import CASES, CHAT, STEPS, WRONG, Case


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture(scope="module")
def loaded(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[PRMFormat, RewardModel]:
    """The case's model, saved as its makers save it and loaded by us, and its format by "auto"."""
    folder = tmp_path_factory.mktemp(case.name)
    save(case, folder)
    choice = "judge" if case.name == "judge" else "auto"
    form = find_prm_format(choice, case.config, case.tokenizer)
    assert form.name == case.name
    return form, load_reward_model(form.head, folder)


def test_each_format_has_a_case() -> None:
    """ReasonFlux's is Qwen's under another name."""
    assert {make().name for make in CASES.values()} == {*prm_format_names()} - {"reasonflux"}


def save(case: Case, folder: Path) -> None:
    from safetensors.torch import save_file

    if hasattr(case.model, "save_pretrained"):
        case.model.save_pretrained(folder)
        return
    case.config.save_pretrained(folder)
    save_file(dict(case.model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})


class Driver:
    """Feeds a format's tokens as a scorer does, without any cache."""

    def __init__(self, form: PRMFormat, model: RewardModel) -> None:
        self.form, self.model = form, model
        self.tokens = list(form.prompt(CHAT))
        self.steps = 0

    def score(self, body: str) -> float:
        feed = self.form.step(body, self.steps)
        tokens = torch.tensor([[*self.tokens, *feed.ids]])
        with torch.no_grad():
            hidden = self.model.body(input_ids=tokens).last_hidden_state[0, len(self.tokens) + feed.read]
            outputs = self.model.outputs(hidden[None], self.form.columns)
        return self.form.reward(outputs[0].tolist())

    def commit(self, body: str) -> None:
        feed = self.form.step(body, self.steps)
        self.tokens += feed.ids[: len(feed.ids) - feed.probe]
        self.steps += 1


def test_step_by_step_is_the_model_cards_computation(
    case: Case, loaded: tuple[PRMFormat, RewardModel]
) -> None:
    driver = Driver(*loaded)
    rewards = []
    for step in STEPS:
        rewards.append(driver.score(step))
        driver.commit(step)
    assert rewards == pytest.approx(case.expected(STEPS), abs=1e-5)
    assert len({round(reward, 3) for reward in rewards}) > 1, "the test's model tells nothing apart"


def test_rejected_steps_leave_no_trace(case: Case, loaded: tuple[PRMFormat, RewardModel]) -> None:
    driver = Driver(*loaded)
    for index, (wrong, right) in enumerate(zip(WRONG, STEPS, strict=True)):
        context = STEPS[:index]
        assert driver.score(wrong) == pytest.approx(case.expected([*context, wrong])[-1], abs=1e-5)
        driver.commit(right)
    assert driver.score(WRONG[0]) == pytest.approx(case.expected([*STEPS, WRONG[0]])[-1], abs=1e-5)


def torch_scorer(form: PRMFormat, model: RewardModel, slots: int = 3) -> TorchScorer:
    columns = form.columns
    runner = SlotRunner(
        model.config,
        read_hidden(model.body, lambda hidden: model.outputs(hidden, columns)),
        device=torch.device("cpu"),
        dtype=torch.float32,
        slots=slots,
        capacity=1024,
    )
    info = ModelInfo("prm", 1, 1, runner.capacity)
    return TorchScorer(runner, form, info)


def kept(body: str, source: Any) -> Kept:
    return Kept(source, Written(body + "\n\n", (), "delimiter"), body)


def test_torch_scorer_in_company_with_rejections(case: Case, loaded: tuple[PRMFormat, RewardModel]) -> None:
    """Three requests at once: one keeps all draft steps, one none, one begins later."""
    scorer = torch_scorer(*loaded)
    sessions = [scorer.open(CHAT) for _ in range(3)]
    for index, (wrong, right) in enumerate(zip(WRONG, STEPS, strict=True)):
        asked = sessions if index else sessions[:2]
        bodies = [right, wrong, STEPS[index - 1]][: len(asked)]
        contexts = [STEPS[:index], STEPS[:index], STEPS[: index - 1]]
        scored = scorer.score(asked, [ScoreStep(body) for body in bodies])
        for got, context, body in zip(scored, contexts, bodies, strict=False):
            assert isinstance(got, Scored), got
            assert got.reward == pytest.approx(case.expected([*context, body])[-1], abs=1e-5)
        sessions[0].commit(kept(right, "draft"), own=True)
        sessions[1].commit(kept(right, "target"), own=False)
        if index:
            sessions[2].commit(kept(STEPS[index - 1], "draft"), own=True)
    # An empty step asks for the reward of the last committed one again.
    last = scorer.score(sessions[:2], [ScoreStep(""), ScoreStep("")])
    assert [got.reward for got in last] == pytest.approx([case.expected(STEPS)[-1]] * 2, abs=1e-5)
    for session in sessions:
        session.close()


def test_a_loaded_model_can_be_wrapped(case: Case, loaded: tuple[PRMFormat, RewardModel]) -> None:
    form, from_disk = loaded
    wrapped = load_reward_model(form.head, from_disk.model)
    hidden = torch.randn(3, 32)
    columns = form.columns
    assert torch.equal(wrapped.outputs(hidden, columns), from_disk.outputs(hidden, columns))
    unique = {id(p): p.numel() for p in from_disk.model.parameters()}
    assert active_parameters(from_disk) == sum(unique.values())
