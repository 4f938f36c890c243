"""RSD told naively: one request, whole forwards, no cache, and nothing of ours but the definition.

Written against the paper's Algorithms 1 and 2 and the definitions of ``RSDConfig``; imports nothing
of ``rsd_integrations``, so that it can be wrong only on its own account. Slow on purpose.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

__all__ = ["Party", "Story", "StoryStep", "Terms", "naive_rsd", "plain_generate"]


@dataclass(frozen=True)
class Party:
    """A model and its tokenizer. ``separator``: of a PRM with a "trl" head."""

    model: Any
    tokenizer: Any
    separator: str = "\n\n"

    def prompt(self, text: str) -> list[int]:
        """One user turn under the chat template."""
        turns = [{"role": "user", "content": text}]
        return list(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class Terms:
    """The settings of one answer."""

    threshold: float = 0.7
    weighting: str = "step"
    acceptance_rate: float = 0.5
    beta: float = 10.0
    delimiters: tuple[str, ...] = ("\n\n",)
    stop: tuple[str, ...] = ()
    max_tokens: int = 28
    max_steps: int = 100
    max_step_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    draft_candidates: int = 1

    def omega(self, reward: float) -> float:
        """Table 1 of the paper."""
        return {
            "step": float(reward >= self.threshold),
            "constant": self.acceptance_rate,
            "clip": max(0.0, min(1.0, reward)),
            "sigmoid": 1.0 / (1.0 + math.exp(-reward)),
            "logistic": 1.0 / (1.0 + math.exp(-self.beta * (reward - self.threshold))),
        }[self.weighting]


@dataclass
class StoryStep:
    source: str
    text: str
    ids: list[int]
    reward: float | None
    rejected: list[int] | None
    drafted: int
    """Tokens of all candidates."""


@dataclass
class Story:
    """What happened, and by how little it might have happened otherwise."""

    steps: list[StoryStep] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    margin: float = 1.0
    """Smallest gap of any choice: between the two best logits, or of a draw or reward to its edge."""


class _Choose(LogitsProcessor):  # type: ignore[misc]
    """Greedy, or HF's warpers and one uniform number; leaves a single token possible."""

    def __init__(self, terms: Terms, draw: Callable[[], float], story: Story) -> None:
        self._terms, self._draw, self._story = terms, draw, story
        self._warpers = LogitsProcessorList()
        self._penalty = RepetitionPenaltyLogitsProcessor(terms.repetition_penalty)
        if terms.temperature > 0:
            self._warpers.append(TemperatureLogitsWarper(terms.temperature))
            if terms.top_k is not None:
                self._warpers.append(TopKLogitsWarper(terms.top_k))
            if terms.top_p < 1.0:
                self._warpers.append(TopPLogitsWarper(terms.top_p))
            if terms.min_p > 0.0:
                self._warpers.append(MinPLogitsWarper(terms.min_p))

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        scores = self._penalty(input_ids, scores)
        if self._terms.temperature == 0.0:
            best = scores[0].topk(2).values
            self._narrow(float(best[0] - best[1]))
            token = int(scores[0].argmax())
        else:
            token = self._sample(self._warpers(input_ids, scores.double())[0].softmax(-1))
        only = torch.full_like(scores, -torch.inf)
        only[0, token] = 0.0
        return only

    def _sample(self, probabilities: torch.Tensor) -> int:
        """The staircase of probabilities, climbed in the order of the vocabulary."""
        point, height = self._draw(), 0.0
        token = -1
        for candidate, probability in enumerate(probabilities.tolist()):
            if probability == 0.0:
                continue
            height += probability
            self._narrow(abs(height - point))
            token = candidate
            if point < height:
                break
        return token

    def _narrow(self, gap: float) -> None:
        self._story.margin = min(self._story.margin, gap)


class _StepEnd(StoppingCriteria):  # type: ignore[misc]
    """A delimiter behind some ink, or a stop string anywhere."""

    def __init__(self, party: Party, prefix: int, committed: str, terms: Terms) -> None:
        self._party, self._prefix, self._committed, self._terms = party, prefix, committed, terms
        self.end = ""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        text = self._party.decode(input_ids[0, self._prefix :].tolist())
        if any(stop in self._committed + text for stop in self._terms.stop):
            self.end = "stop"
        elif any(
            delimiter in (text.lstrip() if delimiter.isspace() else text)
            for delimiter in self._terms.delimiters
        ):
            self.end = "delimiter"
        return torch.tensor([bool(self.end)])


def _write(
    party: Party, context: list[int], committed: str, terms: Terms, budget: int, choose: _Choose
) -> tuple[list[int], str]:
    """One step by a plain ``generate`` without a cache: its ids, and how it ended."""
    ending = _StepEnd(party, len(context), committed, terms)
    output = party.model.generate(
        torch.tensor([context]),
        attention_mask=torch.ones(1, len(context), dtype=torch.long),
        max_new_tokens=budget,
        do_sample=False,
        use_cache=False,
        logits_processor=LogitsProcessorList([choose]),
        stopping_criteria=StoppingCriteriaList([ending]),
    )
    ids = output[0, len(context) :].tolist()
    eos = party.model.generation_config.eos_token_id
    ended = ids[-1] in (eos if isinstance(eos, list) else [eos])
    return ids, "eos" if ended else ending.end or "limit"


def _body(text: str, terms: Terms) -> str:
    body = text.strip()
    for delimiter in terms.delimiters:
        if not delimiter.isspace() and body.endswith(delimiter.strip()):
            body = body[: -len(delimiter.strip())].rstrip()
    return body


@torch.no_grad()
def _reward(prm: Party, prompt: str, bodies: Sequence[str]) -> float:
    """A full forward over the prompt and every step; the good label's share at the last separator."""
    if not bodies:
        return 0.0
    ids = prm.prompt(prompt)
    for body in bodies:
        ids += prm.encode(body) + prm.encode(prm.separator)
    logits = prm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    return float(logits.softmax(-1)[1])


def naive_rsd(draft: Party, target: Party, prm: Party, prompt: str, terms: Terms) -> Story:
    """Algorithm 1, step by step, every model from the beginning each time."""
    story = Story()
    accept = random.Random(f"{terms.seed}/accept")
    choose = {
        name: _Choose(terms, random.Random(f"{terms.seed}/{name}").random, story)
        for name in ("target", "draft", *(f"draft/{n}" for n in range(1, terms.draft_candidates)))
    }
    same = draft.tokenizer.get_vocab() == target.tokenizer.get_vocab()
    contexts = {"draft": draft.prompt(prompt), "target": target.prompt(prompt)}
    bodies: list[str] = []
    left = terms.max_tokens
    draft_only = terms.weighting == "step" and terms.threshold == 0.0 and terms.draft_candidates == 1
    target_only = terms.weighting == "step" and terms.threshold > 1.0
    while True:
        budget = min(left, terms.max_step_tokens)
        source, party, reward, rejected, drafted = "draft", draft, None, None, 0
        if not target_only:
            written = [
                _write(draft, contexts["draft"], story.text, terms, budget, choice)
                for name, choice in choose.items()
                if name != "target"
            ]
            drafted = sum(len(ids) for ids, _ in written)
            ids, end = written[0]
            probability = 1.0
            if not draft_only:
                steps = [
                    _body(_before_stop(draft.decode(ids), story.text, terms), terms) for ids, _ in written
                ]
                rewards = {body: _reward(prm, prompt, [*bodies, body] if body else bodies) for body in steps}
                reward = max(rewards.values())
                ids, end = written[[rewards[body] for body in steps].index(reward)]
                others = sorted(rewards.values())[:-1]
                if others:
                    story.margin = min(story.margin, reward - others[-1])
                probability = terms.omega(reward)
                if terms.weighting == "step":
                    story.margin = min(story.margin, abs(reward - terms.threshold))
            point = accept.random()
            if 0.0 < probability < 1.0:
                story.margin = min(story.margin, abs(point - probability))
            if point >= probability:
                rejected = ids
        if target_only or rejected is not None:
            source, party = "target", target
            ids, end = _write(target, contexts["target"], story.text, terms, budget, choose["target"])
        text = party.decode(ids)
        shown = _before_stop(text, story.text, terms)
        story.steps.append(StoryStep(source, shown, ids, reward, rejected, drafted))
        for name, side in (("draft", draft), ("target", target)):
            contexts[name] += ids if same or name == source else side.encode(text)
        if body := _body(shown, terms):
            bodies.append(body)
        story.text += text
        left -= len(ids)
        if end in ("eos", "stop"):
            story.text, story.finish = _first_stop(story.text, terms), "stop"
            return story
        if left <= 0 or len(story.steps) >= terms.max_steps:
            story.finish = "length"
            return story


def _first_stop(text: str, terms: Terms) -> str:
    starts = [text.find(stop) for stop in terms.stop if stop in text]
    return text[: min(starts)] if starts else text


def _before_stop(text: str, committed: str, terms: Terms) -> str:
    """What a step shows: its text before a stop string, which may have begun in earlier steps."""
    return _first_stop(committed + text, terms)[len(committed) :]


def plain_generate(
    party: Party, prompt: str, max_tokens: int, repetition_penalty: float = 1.0
) -> tuple[list[int], str]:
    """One ordinary greedy ``generate``, HF's own cache included."""
    ids = torch.tensor([party.prompt(prompt)], device=party.model.device)
    output = party.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        repetition_penalty=repetition_penalty,
    )
    answer = output[0, ids.shape[1] :].tolist()
    return answer, party.decode(answer)
