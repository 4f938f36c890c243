"""Word tables and sentence templates of the pocket task: data only, no logic.

Slots: {s}/{o}/{p} are the hero's pronouns (she/her/her), {f} a friend's name,
{r} the friend's reflexive (herself), {g} the friend's possessive (her),
{n} an amount, {a} and {b} the factors of a product, {thing}, {place}, and for
beside-the-point sentences {h} an hour, {y} and {w} ages, {d} degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

WOMEN = ("Ava", "Mia", "Zoe", "Nora", "Priya", "Mei", "Sofia", "Amara", "Lily", "Ruth", "Ida", "Clara")
MEN = ("Ben", "Tom", "Leo", "Sam", "Noah", "Omar", "Hugo", "Diego", "Kofi", "Finn", "Yusuf", "Karl")
PLACES = ("museum", "park", "market", "library", "school", "harbour", "stadium", "castle")
LINKS = ("then", "later,", "next,", "after that,", "soon", "afterwards,")


@dataclass(frozen=True)
class Event:
    """One kind of event: a sentence and what it does to the tracked amount.

    ``op`` is one of ``+ - *2 /2 +ab -ab`` (the last two add or take a product).
    """

    op: str
    text: str


@dataclass(frozen=True)
class Domain:
    """A kind of story: how it starts, what may happen, what is asked."""

    name: str
    starts: tuple[str, ...]
    events: tuple[Event, ...]
    distractors: tuple[str, ...]
    ask: str
    things: tuple[str, ...]


def _events(**by_op: tuple[str, ...]) -> tuple[Event, ...]:
    """Build events from keyword groups named after what they do."""
    ops = {"gain": "+", "loss": "-", "double": "*2", "half": "/2", "gain_ab": "+ab", "loss_ab": "-ab"}
    return tuple(Event(ops[group], text) for group, texts in by_op.items() for text in texts)


OBJECTS = Domain(
    name="objects",
    starts=("{hero} has {n} {thing}.", "{hero} starts with {n} {thing}.", "{hero} owns {n} {thing}."),
    events=_events(
        gain=(
            "{s} buys {n} more.",
            "{s} finds {n} more.",
            "{f} gives {o} {n} more.",
            "{s} wins {n} in a game.",
            "{s} picks up {n} on the way home.",
            "{s} gets {n} from {p} aunt.",
            "{s} trades a toy for {n} more.",
        ),
        loss=(
            "{s} gives {n} to {f}.",
            "{s} loses {n}.",
            "{s} sells {n}.",
            "{s} lends {n} to {f}.",
            "{f} borrows {n}.",
            "{s} drops {n} and cannot find them.",
            "{s} uses {n} for a school project.",
        ),
        double=("{s} doubles {p} collection.",),
        half=("{s} gives half of them away.",),
        gain_ab=("{s} opens {a} packs of {b}.",),
        loss_ab=("{s} hands {a} friends {b} each.",),
    ),
    distractors=(
        "{f} has {n} {thing} of {g} own.",
        "{f} buys {n} for {r}.",
        "The shop opens at {h}.",
        "{f} is {y} years old.",
    ),
    ask="How many {thing} does {hero} have now?",
    things=("marbles", "stamps", "shells", "stickers", "cards", "beads", "coins", "books", "pencils"),
)

MONEY = Domain(
    name="money",
    starts=("{hero} has ${n}.", "{hero} starts the week with ${n}.", "{hero} has saved ${n}."),
    events=_events(
        gain=(
            "{s} earns ${n} for walking dogs.",
            "{f} pays back ${n}.",
            "{s} finds ${n} in a drawer.",
            "{s} sells a scarf for ${n}.",
            "{s} gets ${n} from {p} uncle.",
            "{s} wins ${n} in a contest.",
        ),
        loss=(
            "{s} spends ${n} on lunch.",
            "{s} buys a book for ${n}.",
            "{s} lends {f} ${n}.",
            "{s} pays ${n} for a bus ticket.",
            "{s} gives ${n} to a charity.",
            "{s} donates ${n} to the museum.",
        ),
        double=("{p} grandmother doubles {p} savings.",),
        half=("{s} puts half of it in the bank.",),
        gain_ab=("{s} works {a} hours at ${b} an hour.",),
        loss_ab=("{s} orders {a} tickets at ${b} each.",),
    ),
    distractors=(
        "{f} has ${n} of {g} own.",
        "{f} spends ${n} on a hat for {r}.",
        "A guitar costs ${n}.",
        "{f} is {y} years old.",
    ),
    ask="How much money does {hero} have now?",
    things=("",),
)

MINUTES = Domain(
    name="minutes",
    starts=("{hero} plans {n} minutes of {thing}.", "{hero} sets aside {n} minutes for {thing}."),
    events=_events(
        gain=(
            "{s} adds {n} minutes in the morning.",
            "{f} asks {o} for {n} more minutes.",
            "{s} stays {n} minutes longer.",
            "{s} gains {n} minutes by starting early.",
            "{p} coach adds {n} minutes.",
            "a free evening brings {n} extra minutes.",
        ),
        loss=(
            "{s} cuts {n} minutes because of the rain.",
            "{s} skips {n} minutes to rest.",
            "a phone call takes {n} minutes away.",
            "{s} loses {n} minutes to a late bus.",
            "{f} needs {o} for {n} minutes instead.",
            "{p} coach removes {n} minutes.",
        ),
        double=("{s} doubles the time.",),
        half=("{s} cuts the time in half.",),
        gain_ab=("{s} adds {a} rounds of {b} minutes.",),
        loss_ab=("{s} takes {a} breaks of {b} minutes out.",),
    ),
    distractors=(
        "{f} plans {n} minutes of {thing} too.",
        "{f} stays {n} minutes for {r}.",
        "The room has {n} chairs.",
        "{f} is {y} years old.",
    ),
    ask="How many minutes of {thing} does {hero} have in the end?",
    things=("reading", "training", "piano", "drawing", "swimming", "dancing"),
)

TRIP = Domain(
    name="trip",
    starts=("{hero} is {n} {thing} from home.", "{hero} sets off from a camp {n} {thing} from home."),
    events=_events(
        gain=(
            "{s} walks {n} {thing} farther.",
            "{s} cycles {n} {thing} away from home.",
            "a bus takes {o} {n} {thing} farther.",
            "{f} drives {o} {n} {thing} farther away.",
            "{s} hikes {n} {thing} up the trail, away from home.",
            "{s} sails {n} {thing} farther out.",
        ),
        loss=(
            "{s} turns around and walks {n} {thing} back.",
            "{s} rides {n} {thing} toward home.",
            "a train takes {o} {n} {thing} closer to home.",
            "{f} brings {o} {n} {thing} closer to home.",
            "{s} runs {n} {thing} back.",
            "{s} skates {n} {thing} toward home.",
        ),
        double=("{s} gets twice as far from home.",),
        half=("{s} goes back half of the way.",),
        gain_ab=("{s} rides {a} stages of {b} {thing} away from home.",),
        loss_ab=("{s} covers {a} stages of {b} {thing} toward home.",),
    ),
    distractors=(
        "{f} lives {n} {thing} from the sea.",
        "{f} walks {n} {thing} for {r}.",
        "It is {d} degrees outside.",
        "{f} is {y} years old.",
    ),
    ask="How many {thing} from home is {hero} now?",
    things=("km", "miles"),
)

BUS = Domain(
    name="bus",
    starts=("A bus leaves the station with {n} people.", "A bus starts its tour with {n} people."),
    events=_events(
        gain=(
            "at the {place}, {n} people get on.",
            "a school group of {n} gets on at the {place}.",
            "near the {place}, {n} tourists climb on.",
            "in front of the {place}, {n} children join.",
            "{f} gets on with {n} guests, all counted.",
        ),
        loss=(
            "at the {place}, {n} people get off.",
            "a hiking club of {n} leaves at the {place}.",
            "near the {place}, {n} tourists step off.",
            "in front of the {place}, {n} children get out.",
            "{f} leaves with {n} guests, all counted.",
        ),
        double=("the number of people doubles at the {place}.",),
        half=("half of them leave at the {place}.",),
        gain_ab=("behind the {place}, {a} families of {b} get on.",),
        loss_ab=("behind the {place}, {a} families of {b} get off.",),
    ),
    distractors=(
        "A ticket costs ${h}.",
        "{f} waits {n} minutes at the {place}.",
        "The driver is {w} years old.",
        "The {place} opens at {h}.",
    ),
    ask="How many people are on the bus now?",
    things=("people",),
)

DOMAINS = (OBJECTS, MONEY, MINUTES, TRIP, BUS)
