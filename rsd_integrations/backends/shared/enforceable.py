"""What of a JSON schema can be enforced: llguidance gets some numbers wrong and compiles others for hours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from rsd_integrations.errors import ConfigError
from rsd_integrations.schemas import NAMED

_MOST_REMAINDERS = 100_000
"""Remainders of a ``multipleOf``: each is a state of the grammar. So many take half a second to compile."""

_MOST = 1e18
"""Bounds of this size and above are more than llguidance takes: they are those of a type, like int64."""

_VALUES = ("enum", "const")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_NOTES = ("default", "examples")


def enforceable(schema: Any, *, strict: bool, place: str = "") -> Any:
    """A schema without what can be left for the answer's reader to check, because it cannot be enforced.

    Args:
        strict: nothing is left out.
        place: where the schema stands, for messages.

    Raises:
        ConfigError: it would be enforced wrongly.
    """
    if isinstance(schema, list):
        return [enforceable(part, strict=strict, place=place) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {}
    for name, part in schema.items():
        at = f"{place}/{name}"
        if _left_out(name, part, at, strict):
            continue
        if name in (*_VALUES, *_NOTES):
            made[name] = part
        elif name in NAMED and isinstance(part, Mapping):
            made[name] = {
                key: enforceable(one, strict=strict, place=f"{at}/{key}") for key, one in part.items()
            }
        else:
            made[name] = enforceable(part, strict=strict, place=at)
    return made


def _left_out(name: str, part: Any, place: str, strict: bool) -> bool:
    """Whether a keyword has to be left for the answer's reader to check.

    Raises:
        ConfigError: its number would be replaced by another.
    """
    if name == "pattern" and isinstance(part, str):
        return not strict and not _compiles(part)
    if name in _BOUNDS and isinstance(part, int | float) and not isinstance(part, bool):
        if _exact(part) and abs(part) < _MOST:
            return False
        if strict:
            why = "is a bound with more digits than can be compared"
            raise _refused(part, place, why, "Leave it out, or leave strict out: it is then not enforced.")
        return True
    if name in _VALUES or name == "multipleOf":
        for number in filter(lambda one: not _exact(one), _numbers(part)):
            why = "has more digits than are kept, so another number would be written"
            raise _refused(number, place, why, "Give such numbers as strings, as APIs do with long ids.")
    return False


def _exact(number: float) -> bool:
    """Whether a double holds it, as which llguidance reads it."""
    try:
        return not isinstance(number, int) or int(float(number)) == number
    except OverflowError:
        return False


def _refused(number: float, place: str, why: str, hint: str) -> ConfigError:
    return ConfigError(
        f"a schema cannot be enforced while writing: {number!r:.100} at {place!r:.200} {why}.", hint=hint
    )


def _numbers(part: Any) -> Iterator[float]:
    if isinstance(part, int | float):
        yield part
    elif isinstance(part, Mapping | list):
        for one in part.values() if isinstance(part, Mapping) else part:
            yield from _numbers(one)


@lru_cache(maxsize=1024)
def _compiles(pattern: str) -> bool:
    """Whether llguidance knows a pattern's syntax: it has no lookaround and no references back."""
    text = json.dumps({"type": "string", "pattern": pattern})
    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text))


def check_multiples(schemas: Any) -> None:
    """Refuse what would take minutes or hours to compile, which cannot be interrupted.

    Raises:
        ConfigError: the multiples of numbers have too many remainders.
    """
    written = (Decimal(str(number)).as_tuple().digits for number in _multiples(schemas))
    digits = [int("".join(map(str, number))) for number in written]
    if (states := math.lcm(*digits)) > _MOST_REMAINDERS:
        raise ConfigError(
            f"a schema cannot be enforced while writing: its multipleOf would take {states} states.",
            hint=f"Leave it out, or take numbers with a common multiple of {_MOST_REMAINDERS} at most.",
        )


def _multiples(part: Any) -> Iterator[float]:
    if isinstance(part, Mapping):
        found = part.get("multipleOf")
        if isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < math.inf:
            yield found
        part = list(part.values())
    for one in part if isinstance(part, list | tuple) else ():
        yield from _multiples(one)
