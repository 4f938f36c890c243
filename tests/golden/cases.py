"""What each PRM's model card computes, over the whole text at once.

All is written out by hand here, from the cards, with the tokenizer's plain calls
and the model's plain forward: nothing of ``rsd_integrations`` takes part but the
judge's wording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

from rsd_integrations.prm.judge import LEAD, REQUEST
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

    return Case(
        "trl", tokenizer, model, expected, options={"chat": True, "separator": "\n\n", "threshold": 0.9}
    )


def sequence(*, padded: bool = False) -> Case:
    tokenizer = byte_level(LLAMA3, special=LLAMA3_SPECIAL, bos="<|endoftext|>", eos="<|eot_id|>")
    pad = tokenizer.eos_token_id if padded else None
    config = small_config("llama", len(tokenizer), num_labels=1, pad_token_id=pad)
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


def sequence_padded() -> Case:
    """The token that ends a turn also pads: transformers takes the last that does not."""
    return sequence(padded=True)


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
        sequence_padded,
        sequence_pair,
        judge,
        judge_mistral,
    )
}
