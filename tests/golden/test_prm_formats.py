"""Each PRM format, fed step by step, against the whole text written as its model card writes it.

The right-hand sides are written out by hand here, from the cards, with the tokenizer's plain calls
and the model's plain forward: nothing of ``rsd_integrations`` computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

from rsd_integrations.backends.torch.heads import RewardModel, load_reward_model
from rsd_integrations.backends.torch.runner import SlotRunner, read_hidden
from rsd_integrations.backends.torch.scorer import TorchScorer
from rsd_integrations.prm import PRMFormat, find_prm_format
from rsd_integrations.prm.judge import LEAD, REQUEST
from rsd_integrations.protocols import Kept, ModelInfo, Scored, ScoreStep, Written
from tests.small_models import small_config, small_model
from tests.small_tokenizers import LLAMA3, MISTRAL, byte_level, sentencepiece_like

QUESTION = "Janet has 16 eggs and sells 4. How many are left?"
# They end in no sign: many vocabularies join a full stop with the line breaks behind it, which only a
# text cut into tokens as a whole shows.
STEPS = ["She sells 4 of 16 eggs", "16 - 4 = 12", "So the answer is 12"]
WRONG = ["She buys 9 more", "12 + 9 = 21, or less", "The answer is 9"]
CHAT: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]


@dataclass
class Case:
    """A model, its tokenizer, and the card's own way to the rewards of a list of steps."""

    name: str
    tokenizer: Any
    model: Any
    expected: Callable[[list[str]], list[float]]
    options: dict[str, Any] | None = None
    architecture: str = ""
    save_as: str = "model"

    @property
    def config(self) -> Any:
        config = self.model.config
        if self.architecture:
            config.architectures = [self.architecture]
        if self.options is not None:
            config.rsd_prm = {"format": self.name, **self.options}
        return config


def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """One forward over a whole text: logits ``[T, C]``."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


def ids_of(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=special))


class PlainProcessReward(nn.Module):
    """Qwen2ForProcessRewardModel, as its card describes it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = self.score(self.model(input_ids=torch.tensor([ids])).last_hidden_state[0])
        return out


class PlainValue(PlainProcessReward):
    """Qwen2 with TRL's value head, as Skywork's PRMs are stored."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        del self.score
        self.v_head = nn.ModuleDict({"summary": nn.Linear(32, 1)})
        self.lm_head = nn.Linear(32, config.vocab_size, bias=False)

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            hidden = self.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            out: torch.Tensor = self.v_head["summary"](hidden)
        return out


def qwen() -> Case:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>")
    tokenizer = byte_level(special=special)
    model = small_model(PlainProcessReward, small_config("qwen2", len(tokenizer)))

    def expected(steps: list[str]) -> list[float]:
        system = "Please reason step by step, and put your final answer within \\boxed{}."
        answer = "<extra_0>".join(steps) + "<extra_0>"
        text = (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
            f"<|im_start|>assistant\n{answer}<|im_end|>\n"
        )
        ids = ids_of(tokenizer, text)
        probabilities = model.logits(ids).softmax(-1)[:, 1]
        separator = tokenizer.convert_tokens_to_ids("<extra_0>")
        return [float(p) for p, token in zip(probabilities, ids, strict=True) if token == separator]

    return Case("qwen", tokenizer, model, expected, architecture="Qwen2ForProcessRewardModel")


def skywork() -> Case:
    tokenizer = byte_level(bos="<|endoftext|>")
    model = small_model(PlainValue, small_config("qwen2", len(tokenizer)))

    def expected(steps: list[str]) -> list[float]:
        ids = ids_of(tokenizer, "<|endoftext|>" + QUESTION + "\n")
        places = []
        for step in steps:
            ids += [*ids_of(tokenizer, step), ids_of(tokenizer, "\n")[-1]]
            places.append(len(ids) - 1)
        values = torch.sigmoid(model.logits(ids)[:, 0])
        return [float(values[place]) for place in places]

    return Case("skywork", tokenizer, model, expected, architecture="Qwen2ForPrmModel")


def math_shepherd() -> Case:
    tokenizer = sentencepiece_like(add_bos=True)
    model = small_model(MistralForCausalLM, small_config("mistral", len(tokenizer), sliding_window=None))
    model.config._name_or_path = "peiyi9979/math-shepherd-mistral-7b-prm"

    def expected(steps: list[str]) -> list[float]:
        written = "\n".join(f"Step {number}: {step} ки" for number, step in enumerate(steps, 1))
        ids = ids_of(tokenizer, f"{QUESTION} {written}", special=True)
        labels = ids_of(tokenizer, "+ -")
        assert len(labels) == 2
        separator = ids_of(tokenizer, "ки")[-1]
        probabilities = plain(model, ids)[:, labels].softmax(-1)[:, 0]
        return [float(p) for p, token in zip(probabilities, ids, strict=True) if token == separator]

    return Case("math_shepherd", tokenizer, model, expected)


def versaprm() -> Case:
    tokenizer = byte_level(None, bos="<|endoftext|>", add_bos=True)
    model = small_model(LlamaForCausalLM, small_config("llama", len(tokenizer)))
    model.config._name_or_path = "UW-Madison-Lee-Lab/VersaPRM-Base-8B"

    def expected(steps: list[str]) -> list[float]:
        written = "".join(f"{step} \n\n\n\n" for step in steps)
        ids = ids_of(tokenizer, f"{QUESTION} \n\n{written}", special=True)
        (separator,) = ids_of(tokenizer, " \n\n\n\n")
        labels = [ids_of(tokenizer, "+")[0], ids_of(tokenizer, "-")[0]]
        probabilities = plain(model, ids)[:, labels].softmax(-1)[:, 0]
        return [float(p) for p, token in zip(probabilities, ids, strict=True) if token == separator]

    return Case("versaprm", tokenizer, model, expected)


LLAMA3_SPECIAL = ("<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def rlhflow() -> Case:
    tokenizer = byte_level(LLAMA3, special=LLAMA3_SPECIAL, bos="<|endoftext|>", eos="<|eot_id|>")
    model = small_model(LlamaForCausalLM, small_config("llama", len(tokenizer)))
    model.config._name_or_path = "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data"
    return Case("rlhflow", tokenizer, model, rlhflow_card(tokenizer, model))


def rlhflow_mistral() -> Case:
    tokenizer = sentencepiece_like(MISTRAL)
    model = small_model(MistralForCausalLM, small_config("mistral", len(tokenizer), sliding_window=None))
    model.config._name_or_path = "RLHFlow/Llama3.1-8B-PRM-Mistral-Data"
    return Case("rlhflow", tokenizer, model, rlhflow_card(tokenizer, model))


def rlhflow_card(tokenizer: Any, model: Any) -> Callable[[list[str]], list[float]]:
    def expected(steps: list[str]) -> list[float]:
        labels = [ids_of(tokenizer, "+")[-1], ids_of(tokenizer, "-")[-1]]
        chat: list[dict[str, str]] = []
        rewards = []
        for number, step in enumerate(steps):
            asked = step if number else f"{QUESTION} {step}"
            chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": "+"}]
            ids = tokenizer.apply_chat_template(chat)["input_ids"]
            rewards.append(float(plain(model, ids)[-3, labels].softmax(-1)[0]))
        return rewards

    return expected


def trl() -> Case:
    """PRMTrainer's own layout."""
    tokenizer = byte_level(bos="<|endoftext|>")
    config = small_config("qwen2", len(tokenizer), num_labels=2)
    model = small_model(Qwen2ForTokenClassification, config)

    def expected(steps: list[str]) -> list[float]:
        ids = [tokenizer.bos_token_id, *ids_of(tokenizer, QUESTION)]
        return trl_rewards(tokenizer, model, ids, steps, "\n")

    return Case("trl", tokenizer, model, expected, architecture="Qwen2ForTokenClassification")


def trl_rewards(tokenizer: Any, model: Any, ids: list[int], steps: list[str], separator: str) -> list[float]:
    places = []
    for step in steps:
        ids = ids + ids_of(tokenizer, step) + ids_of(tokenizer, separator)
        places.append(len(ids) - 1)
    probabilities = plain(model, ids).softmax(-1)[:, 1]
    return [float(probabilities[place]) for place in places]


def pocket() -> Case:
    """The pocket trio's layout: a chat template, blank lines, a mapping in the config."""
    case = trl()
    tokenizer, model = case.tokenizer, case.model

    def expected(steps: list[str]) -> list[float]:
        text = (
            f"<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        return trl_rewards(tokenizer, model, ids_of(tokenizer, text), steps, "\n\n")

    return Case("trl", tokenizer, model, expected, options={"separator": "\n\n", "threshold": 0.9})


def sequence() -> Case:
    tokenizer = byte_level(LLAMA3, special=LLAMA3_SPECIAL, bos="<|endoftext|>", eos="<|eot_id|>")
    config = small_config("llama", len(tokenizer), num_labels=1, pad_token_id=None)
    return Case(
        "sequence",
        tokenizer,
        model := small_model(LlamaForSequenceClassification, config),
        lambda steps: [
            float(torch.sigmoid(whole_chat(tokenizer, model, steps[:count]))[0])
            for count in range(1, len(steps) + 1)
        ],
        architecture="LlamaForSequenceClassification",
    )


def sequence_pair() -> Case:
    tokenizer = sentencepiece_like(MISTRAL)
    config = small_config("llama", len(tokenizer), num_labels=2, pad_token_id=None)
    return Case(
        "sequence",
        tokenizer,
        model := small_model(LlamaForSequenceClassification, config),
        lambda steps: [
            float(whole_chat(tokenizer, model, steps[:count]).softmax(-1)[1])
            for count in range(1, len(steps) + 1)
        ],
        architecture="LlamaForSequenceClassification",
    )


def whole_chat(tokenizer: Any, model: Any, steps: list[str]) -> torch.Tensor:
    chat = [*CHAT, {"role": "assistant", "content": "\n\n".join(steps)}]
    ids = tokenizer.apply_chat_template(chat)["input_ids"]
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


def judge() -> Case:
    tokenizer = byte_level()
    model = small_model(Qwen2ForCausalLM, small_config("qwen2", len(tokenizer)))
    return Case("judge", tokenizer, model, judge_card(tokenizer, model, before=LEAD, digit="{}"))


def judge_mistral() -> Case:
    """The template writes a space before an assistant's words, and digits come with their space."""
    tokenizer = sentencepiece_like(MISTRAL)
    model = small_model(MistralForCausalLM, small_config("mistral", len(tokenizer), sliding_window=None))
    before = " " + LEAD.rstrip()
    return Case("judge", tokenizer, model, judge_card(tokenizer, model, before=before, digit=" {}"))


def judge_card(tokenizer: Any, model: Any, before: str, digit: str) -> Callable[[list[str]], list[float]]:
    def expected(steps: list[str]) -> list[float]:
        rewards = []
        for count in range(1, len(steps) + 1):
            chat = [*CHAT, {"role": "assistant", "content": "\n\n".join(steps[:count])}]
            chat.append({"role": "user", "content": REQUEST})
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + before
            ids = ids_of(tokenizer, text)
            digits = [ids_of(tokenizer, text + digit.format(number))[-1] for number in range(10)]
            assert len(set(digits)) == 10
            shares = plain(model, ids)[-1, digits].softmax(-1)
            rewards.append(float((shares * torch.arange(10)).sum() / 9))
        return rewards

    return expected


CASES = {
    make.__name__: make
    for make in (
        qwen,
        skywork,
        math_shepherd,
        versaprm,
        rlhflow,
        rlhflow_mistral,
        trl,
        pocket,
        sequence,
        sequence_pair,
        judge,
        judge_mistral,
    )
}


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
    info = ModelInfo("prm", model.num_parameters, 1, runner.capacity)
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
    assert from_disk.num_parameters == sum(unique.values())
