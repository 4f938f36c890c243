"""Labelled solutions for the reward model: what the models write, and gold steps spoilt."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rsd_integrations.files import write
from rsd_integrations.pocket.data import IGNORE, encode_prompt, encode_step, prompt_messages
from rsd_integrations.pocket.task import (
    SEPARATOR,
    SPLITS,
    Problem,
    corruptions,
    expected_step,
    generate,
    label_step,
    split_of,
)

KEEP_WRONG = 0.15
MAX_STEP_TOKENS = 48
BATCH = 128


@dataclass(frozen=True)
class Judged:
    """A question with solution steps and a label for each: 1 right, 0 wrong."""

    question: str
    steps: tuple[str, ...]
    labels: tuple[int, ...]


def spoilt(seed: int, share: float = 0.25) -> Iterator[Judged]:
    """Gold solutions in which every step may be replaced by a wrong one, for ever.

    What follows a wrong step is mostly what is right after it, so that the
    reward model learns not to hold old mistakes against new steps.
    """
    rng = random.Random(f"spoilt/{seed}")
    for problem in generate(seed):
        steps: list[str] = []
        while len(steps) < len(problem.steps):
            right = expected_step(problem, steps)
            if right is None:
                break
            index = len(steps)
            wrong = corruptions(problem, index, rng) if rng.random() < share else []
            steps.append(rng.choice(wrong) if wrong else right)
        yield judge(problem, steps)


def judge(problem: Problem, steps: Iterable[str]) -> Judged:
    """Label every step given the ones before it."""
    texts = tuple(steps)
    labels = tuple(int(label_step(problem, texts[:i], step)) for i, step in enumerate(texts))
    return Judged(problem.question, texts, labels)


@dataclass
class _Run:
    """A problem that a model is solving: the ids so far, prompt included, and the steps."""

    problem: Problem
    ids: list[int]
    steps: list[str] = field(default_factory=list)
    done: bool = False


def guided_rollouts(
    model: Any, tokenizer: Any, *, seed: int, count: int, temperature: float, device: str = "cpu"
) -> Iterator[Judged]:
    """What a model writes when its wrong steps are put right, as in RSD.

    Each wrong step gives one record that ends with it; with probability
    ``KEEP_WRONG`` it is also kept, and the model goes on from there.
    """
    rng = random.Random(f"rollouts/{seed}")
    stops = [*tokenizer.encode(SEPARATOR), int(tokenizer.eos_token_id)]
    problems = islice(generate(seed), count)
    runs = [_Run(problem, encode_prompt(tokenizer, prompt_messages(problem))) for problem in problems]
    assert all(split_of(run.problem.question) == SPLITS[0] for run in runs)
    while live := [run for run in runs if not run.done]:
        for group in (live[i : i + BATCH] for i in range(0, len(live), BATCH)):
            steps = write_steps(model, [run.ids for run in group], stops, device, temperature)
            for run, step in zip(group, steps, strict=True):
                text = tokenizer.decode(step, skip_special_tokens=True).strip("\n")
                right = expected_step(run.problem, run.steps)
                if text != right:
                    yield judge(run.problem, [*run.steps, text])
                    if right is not None and rng.random() >= KEEP_WRONG:
                        text = right
                run.steps.append(text)
                run.ids += encode_step(tokenizer, text)
                run.done = "boxed" in text or len(run.steps) > run.problem.events + 2
    yield from (judge(run.problem, run.steps) for run in runs)


@torch.inference_mode()
def write_steps(
    model: Any, contexts: Sequence[Sequence[int]], stops: Sequence[int], device: str, temperature: float
) -> list[list[int]]:
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


def _cut(row: list[int], stops: Sequence[int]) -> list[int]:
    ends = [i for i, token in enumerate(row) if token in stops]
    return row[: ends[0] + 1] if ends else row


def save(path: Path, records: Iterable[Judged]) -> int:
    """Write records as JSON lines; returns how many."""
    lines = [json.dumps(asdict(record)) for record in records]
    write(path, "\n".join(lines) + "\n")
    return len(lines)


def load(path: Path) -> list[Judged]:
    """Read what ``save`` wrote."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Judged(row["question"], tuple(row["steps"]), tuple(row["labels"])) for row in rows]


def encode_judged(tokenizer: Any, record: Judged) -> tuple[list[int], list[int]]:
    """Ids as the reward model is fed, and labels that stand at the separators only."""
    ids = encode_prompt(tokenizer, [{"role": "user", "content": record.question}])
    labels = [IGNORE] * len(ids)
    for step, label in zip(record.steps, record.labels, strict=True):
        step_ids = encode_step(tokenizer, step)
        ids += step_ids
        labels += [IGNORE] * (len(step_ids) - 1) + [label]
    return ids, labels
