"""What is wrong with documents and calls that are not whole, in one wording for both frameworks.

The frameworks' own parsers mend them silently, or give nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from rsd_integrations.text.values import read_json

_SHOWN = 200
"""Characters of a text's end that a message quotes."""

_STOPPED = "If a stop string ended it, leave that string out."


class Flaw(NamedTuple):
    """What is wrong, and what to do."""

    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"


def cut_off(text: str, finish_reason: str | None, what: str = "answer") -> Flaw | None:
    """The flaw of an answer that a limit ended; None if none did.

    Args:
        text: of the answer.
        finish_reason: of the generation.
        what: what it was to be, for the message.
    """
    if finish_reason != "length":
        return None
    return Flaw(
        f"the {what} was cut off at a limit of tokens or steps{_end(text)}.",
        "Bound the lengths in the schema, or raise max_tokens or max_steps.",
    )


def no_document(text: str) -> Flaw | None:
    """The flaw of a text that is no JSON document; None if it is one."""
    try:
        read_json(text)
    except ValueError as error:
        return Flaw(f"the answer is no whole JSON document ({error}){_end(text)}.", _STOPPED)
    return None


def no_whole_call(text: str) -> Flaw:
    """The flaw of an answer that was forced to be a call, and holds none."""
    return Flaw(f"the answer holds no whole call{_end(text)}.", _STOPPED)


def _end(text: str) -> str:
    """How a text ends, for a message; "" of an empty one."""
    if not text:
        return ""
    return f"; it ends in {'...' if len(text) > _SHOWN else ''}{text[-_SHOWN:]!r}"
