"""From problems to batches of token ids: rendered as chats, trained on the answers only."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from rsd_integrations.pocket.task import SEPARATOR, Problem, generate, split_of, sums_problem

IGNORE = -100
SYSTEM_PROMPTS = (
    "Solve the problem step by step.",
    "You are a helpful assistant.",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Answer the question.",
)
Message = dict[str, str]


@dataclass(frozen=True)
class Mixture:
    """What share of the training chats is what; the rest are single problems."""

    sums: float = 0.08
    two_turns: float = 0.04
    system: float = 0.06


@dataclass(frozen=True)
class Batch:
    """Right-padded ids and labels [sequences, length]; labels hold IGNORE outside the answers."""

    ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    tokens: int


def prompt_messages(problem: Problem) -> list[Message]:
    """The chat that asks a problem."""
    return [{"role": "user", "content": problem.question}]


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a chat up to where the assistant speaks."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def encode_step(tokenizer: Any, step: str) -> list[int]:
    """Ids of one step with its separator, encoded apart from what stands before."""
    body = tokenizer.encode(step.rstrip("\n"), add_special_tokens=False)
    return body + tokenizer.encode(SEPARATOR, add_special_tokens=False)


def chats(seed: int | str, mixture: Mixture) -> Iterator[tuple[list[Message], str]]:
    """Yield (messages before the last answer, that answer)."""
    rng = random.Random(f"chats/{seed}")
    problems = generate(rng.getrandbits(40))
    while True:
        first = next(problems)
        assert split_of(first.question) == "train"
        messages, answer = prompt_messages(first), first.solution
        kind = rng.random()
        if kind < mixture.sums:
            question, answer = sums_problem(rng, rng.randint(6, 12))
            messages = [{"role": "user", "content": question}]
        elif kind < mixture.sums + mixture.two_turns:
            second = next(problems)
            messages += [{"role": "assistant", "content": first.solution}, *prompt_messages(second)]
            answer = second.solution
        if rng.random() < mixture.system:
            messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        yield messages, answer


def encode_chat(tokenizer: Any, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """Ids and labels of a chat; every assistant turn is learnt, with its end token."""
    text = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], tokenize=False
    )
    ids = tokenizer.encode(text, add_special_tokens=False)[:-1]  # less the newline after the end token
    labels = [IGNORE] * len(ids)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    speaker = tokenizer.encode("assistant\n", add_special_tokens=False)
    for i, token in enumerate(ids):
        if token == start and ids[i + 1 : i + 1 + len(speaker)] == speaker:
            first = i + 1 + len(speaker)
            last = ids.index(end, first) + 1
            labels[first:last] = ids[first:last]
    return ids, labels


def batches(
    tokenizer: Any, seed: int, *, size: int, start: int = 0, mixture: Mixture = Mixture(), pool: int = 16
) -> Iterator[Batch]:
    """Yield training batches for ever from number ``start`` on; a function of seed and number.

    A pool of ``pool`` batches is drawn at a time and sorted by length, so that
    little is padded; its batches then come in random order.
    """
    number, skip = divmod(start, pool)
    while True:
        examples = [
            encode_chat(tokenizer, *chat) for chat in islice(chats(f"{seed}/{number}", mixture), size * pool)
        ]
        examples.sort(key=lambda example: len(example[0]))
        order = random.Random(f"order/{seed}/{number}").sample(range(pool), pool)
        for index in order[skip:]:
            yield collate(examples[index * size : (index + 1) * size])
        number, skip = number + 1, 0


def collate(examples: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Right-pad examples to one length; padding is never looked at, being in the future."""
    length = max(len(ids) for ids, _ in examples)
    ids_BT = torch.zeros(len(examples), length, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, IGNORE)
    for row, (ids, labels) in enumerate(examples):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, : len(labels)] = torch.tensor(labels)
    return Batch(ids_BT, labels_BT, sum(len(ids) for ids, _ in examples))
