"""Measuring the trio: a plain batched simulation of greedy RSD, independent of the engine.

Whole contexts are fed anew every round and answers are remembered, so nothing
here depends on a cache being right; the token counts are what an engine that
feeds every token once would spend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from rsd_integrations.pocket.data import encode_prompt, encode_step, prompt_messages
from rsd_integrations.pocket.task import SEPARATOR, Problem, check_answer

MAX_STEPS = 14
MAX_STEP_TOKENS = 48
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Tokens spent, by model: generated or scored (``paper``), and forwarded in all (``total``)."""

    draft: int = 0
    prm: int = 0
    target: int = 0
    draft_total: int = 0
    prm_total: int = 0
    target_total: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{key: value + getattr(other, key) for key, value in asdict(self).items()})


@dataclass
class Run:
    """One problem being solved: committed step texts and ids, and how they came to be.

    ``seen`` counts the committed ids the draft has been fed, ``target_seen``
    the ids, prompt included, that the target has.
    """

    problem: Problem
    prompt: Ids
    ids: Ids = ()
    steps: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    done: bool = False
    cost: Cost = Cost()
    seen: int = 0
    target_seen: int = 0

    @property
    def text(self) -> str:
        """The solution so far."""
        return SEPARATOR.join(self.steps)


class Bench:
    """Three models on one device; greedy steps and rewards, each computed once."""

    def __init__(
        self, tokenizer: Any, models: dict[str, Any], *, device: str = "cpu", batch: int = 128
    ) -> None:
        self.tokenizer = tokenizer
        self.models = {name: model.to(device).eval() for name, model in models.items()}
        self.device, self.batch = device, batch
        self.separator: int = tokenizer.encode(SEPARATOR)[0]
        self.stops = (self.separator, int(tokenizer.eos_token_id))
        self._steps: dict[tuple[str, Ids], Ids] = {}
        self._rewards: dict[Ids, float] = {}

    def start(self, problems: Sequence[Problem]) -> list[Run]:
        """Fresh runs, one a problem."""
        return [Run(p, tuple(encode_prompt(self.tokenizer, prompt_messages(p)))) for p in problems]

    def next_steps(self, name: str, contexts: Sequence[Ids]) -> list[Ids]:
        """The greedy next step of a model after each context, with its separator or end token."""
        missing = [ids for ids in dict.fromkeys(contexts) if (name, ids) not in self._steps]
        for group in _groups(missing, self.batch):
            for ids, step in zip(
                group, write_steps(self.models[name], group, self.stops, self.device), strict=True
            ):
                self._steps[name, ids] = step
        return [self._steps[name, ids] for ids in contexts]

    def rewards(self, contexts: Sequence[Ids]) -> list[float]:
        """P(right) of the step that ends each context, read at its separator."""
        missing = [ids for ids in dict.fromkeys(contexts) if ids not in self._rewards]
        for group in _groups(missing, self.batch):
            for ids, reward in zip(group, score_batch(self.models["prm"], group, self.device), strict=True):
                self._rewards[ids] = reward
        return [self._rewards[ids] for ids in contexts]

    def text_of(self, step: Ids) -> str:
        """A step's text without separator and end token."""
        return self.tokenizer.decode(step, skip_special_tokens=True).strip("\n")

    def scored_ids(self, text: str) -> Ids:
        """What the reward model is fed for a step."""
        return tuple(encode_step(self.tokenizer, text))


@torch.inference_mode()
def write_steps(
    model: Any, contexts: Sequence[Ids], stops: tuple[int, int], device: str = "cpu", temperature: float = 0.0
) -> list[Ids]:
    """One step of a model after each context, up to and with a stop token; greedy at temperature 0."""
    width = max(map(len, contexts))
    ids_BT = torch.zeros(len(contexts), width, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(contexts):
        ids_BT[row, width - len(ids) :] = torch.tensor(ids)
        mask_BT[row, width - len(ids) :] = 1
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    out_BT = model.generate(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), max_new_tokens=MAX_STEP_TOKENS,
        eos_token_id=list(stops), pad_token_id=0, **how,
    )  # fmt: skip
    return [_cut(row, stops) for row in out_BT[:, width:].tolist()]


def _cut(row: list[int], stops: tuple[int, int]) -> Ids:
    ends = [i for i, token in enumerate(row) if token in stops]
    return tuple(row[: ends[0] + 1] if ends else row)


def _groups(contexts: list[Ids], size: int) -> list[list[Ids]]:
    ordered = sorted(contexts, key=len)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


@torch.inference_mode()
def score_batch(prm: Any, contexts: Sequence[Ids], device: str = "cpu") -> list[float]:
    """Reward at the last token of each context (right padding is in the future, so unseen)."""
    width = max(map(len, contexts))
    ids_BT = torch.zeros(len(contexts), width, dtype=torch.long)
    for row, ids in enumerate(contexts):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
    logits_BTC = prm(input_ids=ids_BT.to(device)).logits
    last_B = torch.tensor([len(ids) - 1 for ids in contexts])
    return logits_BTC[torch.arange(len(contexts)), last_B].float().softmax(-1)[:, 1].tolist()


def solve(bench: Bench, problems: Sequence[Problem], name: str) -> list[Run]:
    """Every problem by one model alone."""
    runs = bench.start(problems)
    while live := [run for run in runs if not run.done]:
        steps = bench.next_steps(name, [run.prompt + run.ids for run in live])
        for run, step in zip(live, steps, strict=True):
            first = len(run.prompt) if not run.steps else 0
            spent = {name: len(step), f"{name}_total": len(step) + first}
            run.cost += Cost(**spent)
            _commit(bench, run, step, name)
    return runs


def solve_rsd(bench: Bench, problems: Sequence[Problem], threshold: float) -> list[Run]:
    """Every problem by greedy RSD: keep a draft step whose reward reaches the threshold."""
    runs = bench.start(problems)
    while live := [run for run in runs if not run.done]:
        drafted = bench.next_steps("draft", [run.prompt + run.ids for run in live])
        scored = [bench.scored_ids(bench.text_of(step)) for step in drafted]
        rewards = bench.rewards(
            [_prm_context(bench, run) + ids for run, ids in zip(live, scored, strict=True)]
        )
        rejected = [run for run, reward in zip(live, rewards, strict=True) if reward < threshold]
        rewritten = bench.next_steps("target", [run.prompt + run.ids for run in rejected])
        rewrites = {id(run): step for run, step in zip(rejected, rewritten, strict=True)}
        for run, draft, ids in zip(live, drafted, scored, strict=True):
            rewrite = rewrites.get(id(run))
            run.cost += _round_cost(run, draft, ids, rewrite)
            _commit(bench, run, rewrite or draft, "target" if rewrite else "draft")
    return runs


def _prm_context(bench: Bench, run: Run) -> Ids:
    return run.prompt + tuple(token for step in run.steps for token in bench.scored_ids(step))


def _round_cost(run: Run, draft: Ids, scored: Ids, rewrite: Ids | None) -> Cost:
    """What one round adds; the target catches up on all it has not seen when it is woken."""
    first = 0 if run.steps else len(run.prompt)
    # What the target wrote last round is news to draft and reward model.
    news = len(run.ids) - run.seen if run.sources[-1:] == ["target"] else 0
    cost = Cost(len(draft), len(scored), 0, len(draft) + first + news, len(scored) + first + news, 0)
    run.seen = len(run.ids) + (0 if rewrite else len(draft))
    if rewrite is None:
        return cost
    context = len(run.prompt) + len(run.ids)
    behind = context - run.target_seen
    run.target_seen = context + len(rewrite)
    return cost + Cost(target=len(rewrite), target_total=behind + len(rewrite))


def _commit(bench: Bench, run: Run, step: Ids, source: str) -> None:
    run.ids += step
    run.steps.append(bench.text_of(step))
    run.sources.append(source)
    run.done = step[-1] != bench.separator or len(run.steps) >= MAX_STEPS


def accuracy(runs: Sequence[Run]) -> dict[str, float]:
    """Share of right final answers, in all and by number of events."""
    by: dict[str, list[bool]] = {}
    for run in runs:
        right = check_answer(run.problem, run.text)
        by.setdefault("all", []).append(right)
        by.setdefault(str(run.problem.events), []).append(right)
    return {key: sum(rights) / len(rights) for key, rights in sorted(by.items())}
