r"""The pocket task: short stories about one amount, exactly checkable step by step.

A story gives a first amount and three to eight events; every solution step
restates one event and does its sum, and the last step boxes the answer::

    Ava has 12 marbles. She buys 9 more. ...  How many marbles does Ava have now?

    She buys 9 more: 12 + 9 = 21.

    The answer is \boxed{21}.

Pure Python: nothing here imports torch, transformers or anything else heavy.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rsd_integrations.pocket.grammar import DOMAINS, LINKS, MEN, PLACES, WOMEN, Domain, Event

SEPARATOR = "\n\n"
MIN_EVENTS, MAX_EVENTS = 3, 8
LARGEST = 99
LARGEST_CHANGE = 40
SPLITS = ("train", "validation", "held_out")

# Plausible values of the numbers in beside-the-point sentences.
_ASIDE = {"n": (6, 45), "h": (7, 11), "y": (8, 40), "w": (25, 60), "d": (5, 30)}

_BOXED = re.compile(r"\\boxed\{\s*(-?\d+)\s*\}")
_SUM = re.compile(r"(-?\d+) ([-+*/]) (\d+) = (-?\d+)\.$")


@dataclass(frozen=True)
class Problem:
    """One story with its gold solution.

    ``steps`` are the gold step texts without their trailing blank line, the
    boxed answer last; ``template`` names the domain and the operations.
    """

    question: str
    steps: tuple[str, ...]
    answer: int
    events: int
    template: str
    distractors: tuple[str, ...] = ()

    @property
    def solution(self) -> str:
        """The gold steps as one text, a blank line between two steps."""
        return SEPARATOR.join(self.steps)


@dataclass(frozen=True)
class _Cast:
    """Who takes part in one story, as values for the template slots."""

    hero: str
    pronouns: tuple[str, str, str]
    friends: tuple[str, str]
    thing: str


def split_of(question: str) -> str:
    """The one split a question text belongs to: a function of the text alone."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 16
    return {0: "held_out", 1: "validation"}.get(bucket, "train")


def generate(seed: int, *, split: str = "train", events: Sequence[int] | None = None) -> Iterator[Problem]:
    """Yield problems of a split for ever; the same seed gives the same stream.

    ``events`` lists the story lengths to draw from, one entry one share; by
    default long stories come more often than short ones.

    Raises:
        ValueError: there is no such split, or no story of such a length.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    lengths = tuple(events) if events is not None else (3, 4, 5, 6, 6, 7, 7, 8, 8, 8)
    if not lengths or not all(1 <= length <= MAX_EVENTS for length in lengths):
        raise ValueError(f"events must be numbers from 1 to {MAX_EVENTS}, not {events!r}")
    rng = random.Random(f"pocket/{split}/{seed}")
    while True:
        problem = _problem(rng, rng.choice(lengths))
        if split_of(problem.question) == split:
            yield problem


def held_out(
    n: int, *, seed: int = 0, events: Sequence[int] | None = None, split: str = "held_out"
) -> list[Problem]:
    """``n`` different problems, uniform over the lengths, that no model was trained on (unless the split is
    "train").

    Raises:
        ValueError: as ``generate``.
    """
    lengths = tuple(events) if events is not None else tuple(range(MIN_EVENTS, MAX_EVENTS + 1))
    streams = [generate(seed, split=split, events=(length,)) for length in lengths]
    found: dict[str, Problem] = {}
    while len(found) < n:
        problem = next(streams[len(found) % len(streams)])
        found.setdefault(problem.question, problem)
    return list(found.values())


def extract_answer(text: str) -> int | None:
    """The last boxed integer of a solution, or None."""
    boxed = _BOXED.findall(text)
    return int(boxed[-1]) if boxed else None


def check_answer(problem: Problem, text: str) -> bool:
    """Whether a solution text boxes the right answer."""
    return extract_answer(text) == problem.answer


def label_step(problem: Problem, before: Sequence[str], step: str) -> bool:
    """Whether ``step`` is right given the steps before it, be those right or wrong.

    Right means: the event after the one restated last, word for word, applied
    to the amount stated last, with a right sum; or, after the last event, that
    amount boxed. So a step is not blamed for an earlier step's mistake.
    """
    return step.strip("\n") == expected_step(problem, before)


def label_steps(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """One strict label for each step, each judged given the steps before it."""
    return [label_step(problem, steps[:i], step) for i, step in enumerate(steps)]


def expected_step(problem: Problem, before: Sequence[str]) -> str | None:
    """The one right next step after ``before``; None where nothing can be right."""
    if not before:
        return problem.steps[0]
    last = before[-1].strip("\n")
    if _BOXED.search(last):
        return None
    sentences = _sentences(problem)
    restated = last.partition(":")[0]
    # A step that restates no event leaves the count of steps as the only guide.
    done = sentences.index(restated) + 1 if restated in sentences else len(before)
    amount = _stated(last)
    if amount is None or done > problem.events:
        return None
    if done == problem.events:
        return _final(amount)
    return _with_amount(problem.steps[done], amount)


def corruptions(problem: Problem, index: int, rng: random.Random) -> list[str]:
    """Wrong variants of gold step ``index``, one for each way of going wrong."""
    gold, before = problem.steps[index], problem.steps[:index]
    wrong = [_wrong_number(gold, rng), _wrong_name(gold, rng), *_misplaced(problem, index, rng)]
    return [step for step in wrong if step and not label_step(problem, before, step)]


def sums_problem(rng: random.Random, count: int) -> tuple[str, str]:
    """A plain list of sums and its worked answer: dense practice of arithmetic."""
    sums = [_equation(rng) for _ in range(count)]
    asked = ", ".join(one.partition(" = ")[0] for one in sums)
    return f"Work out {asked}.", SEPARATOR.join(f"{one}." for one in sums)


# --- writing a story -----------------------------------------------------------------------


def _problem(rng: random.Random, events: int) -> Problem:
    domain = rng.choice(DOMAINS)
    cast = _cast(rng, domain)
    start = amount = rng.randint(5, 60)
    repeats = rng.random() < 0.2
    pool = list(domain.events)
    sentences: list[str] = []
    steps: list[str] = []
    ops: list[str] = []
    while len(steps) < events:
        event = _choose(rng, pool, amount)
        sentence, equation, after = _happen(rng, event, cast, amount)
        sentence = _begin(rng, sentence, first=not steps)
        if sentence in sentences:
            continue
        if not repeats:
            pool.remove(event)
        sentences.append(sentence)
        steps.append(f"{sentence[:-1]}: {equation}.")
        ops.append(event.op)
        amount = after
    opening = _fill(rng, rng.choice(domain.starts), cast, n=start)
    story, distractors = _with_distractors(rng, domain, cast, sentences)
    ask = _fill(rng, domain.ask, cast)
    question = " ".join([opening, *story, ask])
    template = f"{domain.name}:{','.join(ops)}"
    return Problem(question, (*steps, _final(amount)), amount, events, template, distractors)


def _cast(rng: random.Random, domain: Domain) -> _Cast:
    woman = rng.random() < 0.5
    hero = rng.choice(WOMEN if woman else MEN)
    friends = rng.sample([name for name in WOMEN + MEN if name != hero], 2)
    pronouns = ("she", "her", "her") if woman else ("he", "him", "his")
    return _Cast(hero, pronouns, (friends[0], friends[1]), rng.choice(domain.things))


def _fill(rng: random.Random, text: str, cast: _Cast, **values: int) -> str:
    friend = rng.choice(cast.friends)
    woman = friend in WOMEN
    filled = text.format(
        s=cast.pronouns[0], o=cast.pronouns[1], p=cast.pronouns[2], hero=cast.hero, f=friend,
        g="her" if woman else "his", r="herself" if woman else "himself",
        thing=cast.thing, place=rng.choice(PLACES), **values,
    )  # fmt: skip
    return filled[0].upper() + filled[1:]


def _choose(rng: random.Random, pool: Sequence[Event], amount: int) -> Event:
    """An event the amount allows, gains likelier when there is little left to lose."""
    while True:
        event = rng.choice(pool)
        gain = event.op[0] in "+*"
        if rng.random() * LARGEST > (amount if gain else LARGEST - amount) and _fits(event.op, amount):
            return event


def _fits(op: str, amount: int) -> bool:
    fits = {
        "+": amount <= LARGEST - 2,
        "-": amount >= 2,
        "*2": 2 <= amount <= LARGEST // 2,
        "/2": amount >= 2 and amount % 2 == 0,
        "+ab": amount <= LARGEST - 4,
        "-ab": amount >= 4,
    }
    return fits[op]


def _happen(rng: random.Random, event: Event, cast: _Cast, amount: int) -> tuple[str, str, int]:
    """The event's sentence, its sum as text, and the amount after it."""
    sign = event.op[0]
    if event.op in ("*2", "/2"):
        after = amount * 2 if sign == "*" else amount // 2
        return _fill(rng, event.text, cast), f"{amount} {sign} 2 = {after}", after
    room = min(LARGEST_CHANGE, LARGEST - amount if sign == "+" else amount)
    if event.op in ("+", "-"):
        n = rng.randint(2, room)
        after = amount + n if sign == "+" else amount - n
        return _fill(rng, event.text, cast, n=n), f"{amount} {sign} {n} = {after}", after
    a, b = rng.choice([(a, b) for a in range(2, 6) for b in range(2, 10) if a * b <= room])
    after = amount + a * b if sign == "+" else amount - a * b
    equation = f"{a} * {b} = {a * b}, {amount} {sign} {a * b} = {after}"
    return _fill(rng, event.text, cast, a=a, b=b), equation, after


def _begin(rng: random.Random, sentence: str, *, first: bool) -> str:
    """Sometimes a linking word; names keep their capital, other words lose it."""
    if first or rng.random() > 0.25:
        return sentence
    word = sentence.partition(" ")[0]
    rest = sentence if word in WOMEN + MEN else sentence[0].lower() + sentence[1:]
    link = rng.choice(LINKS)
    return f"{link[0].upper()}{link[1:]} {rest}"


def _with_distractors(
    rng: random.Random, domain: Domain, cast: _Cast, sentences: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Put up to two beside-the-point sentences anywhere among the events."""
    story = list(sentences)
    count = rng.choices((0, 1, 2), (6, 3, 1))[0]
    distractors = []
    for text in rng.sample(domain.distractors, count):
        values = {key: rng.randint(*span) for key, span in _ASIDE.items()}
        distractors.append(_fill(rng, text, cast, **values))
        story.insert(rng.randint(0, len(story)), distractors[-1])
    return story, tuple(distractors)


# --- reading and spoiling steps ------------------------------------------------------------


def _final(amount: int) -> str:
    return f"The answer is \\boxed{{{amount}}}."


@lru_cache(maxsize=4096)
def _sentences(problem: Problem) -> list[str]:
    """The event sentences as the gold steps restate them, without their full stop."""
    return [step.partition(":")[0] for step in problem.steps[: problem.events]]


def _stated(step: str) -> int | None:
    """The amount a step ends with, right or wrong."""
    found = _SUM.search(step)
    if found:
        return int(found.group(4))
    numbers = re.findall(r"\d+", step)
    return int(numbers[-1]) if numbers else None


def _with_amount(gold: str, amount: int) -> str | None:
    """The gold step redone from another amount; None where it has no whole result."""
    found = _SUM.search(gold)
    assert found, gold
    sign, n = found.group(2), int(found.group(3))
    if sign == "/" and amount % n:
        return None
    after = {"+": amount + n, "-": amount - n, "*": amount * n, "/": amount // n}[sign]
    return f"{gold[: found.start()]}{amount} {sign} {n} = {after}."


def _wrong_number(step: str, rng: random.Random) -> str:
    """Change one number of the step to a near or random other one."""
    spans = [found.span() for found in re.finditer(r"\d+", step)]
    # The result is what models get wrong most, so it is spoilt half of the time.
    start, end = spans[-1] if rng.random() < 0.5 else rng.choice(spans)
    old = int(step[start:end])
    near = old + rng.choice((-20, -10, -9, -2, -1, 1, 2, 9, 10, 20))
    new = near if rng.random() < 0.7 and 0 <= near <= LARGEST else rng.randint(0, LARGEST)
    return f"{step[:start]}{new}{step[end:]}"


def _wrong_name(step: str, rng: random.Random) -> str | None:
    """Another friend, pronoun or operation in the step."""
    words = [word for word in re.findall(r"[A-Za-z]+", step) if word in WOMEN + MEN]
    if words:
        return step.replace(rng.choice(words), rng.choice(WOMEN + MEN))
    swaps = {"She ": "He ", "He ": "She ", " she ": " he ", " he ": " she ", " + ": " - ", " - ": " + "}
    present = [old for old in swaps if old in step]
    if not present:
        return None
    old = rng.choice(present)
    return step.replace(old, swaps[old], 1)


def _misplaced(problem: Problem, index: int, rng: random.Random) -> list[str]:
    """Well-made steps at the wrong time: skipped, repeated, beside the point, too early."""
    last = problem.steps[index - 1] if index else problem.steps[0]
    amount = _stated(last) if index else int(re.findall(r"\d+", problem.question)[0])
    assert amount is not None
    others = [i for i in range(problem.events) if i != index]
    skipped = index + 1 if index + 1 < problem.events else rng.choice(others)
    made = [_with_amount(problem.steps[i], amount) for i in (skipped, rng.choice(others))]
    for sentence in problem.distractors[:1]:
        n = int(re.findall(r"\d+", sentence)[-1])
        made.append(f"{sentence[:-1]}: {amount} + {n} = {amount + n}.")
    made.append(_final(amount))
    return [step for step in made if step]


def _equation(rng: random.Random) -> str:
    """One sum as it stands in a step, all numbers within 0..99."""
    kind = rng.random()
    if kind < 0.06:
        a = rng.randint(2, LARGEST // 2)
        return f"{a} * 2 = {a * 2}" if rng.random() < 0.5 else f"{a * 2} / 2 = {a}"
    if kind < 0.12:
        a, b = rng.randint(2, 5), rng.randint(2, 9)
        return f"{a} * {b} = {a * b}"
    n = rng.randint(2, LARGEST_CHANGE)
    rest = rng.randint(0, LARGEST - n)
    return f"{rest} + {n} = {rest + n}" if rng.random() < 0.5 else f"{rest + n} - {n} = {rest}"
