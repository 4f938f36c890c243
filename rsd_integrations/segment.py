"""Where a step ends, where an answer ends, and what of it may be shown: pure text work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Cut", "HoldBack", "ReasoningSplitter", "ReasoningTags", "StepBoundary", "step_body"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the text of a step ends.

    ``kind`` "delimiter": a step delimiter was completed; the step keeps all its text, up to the end
    of the token that completed it. "stop": a stop string was completed; the answer ends at ``end``,
    an offset into the step's text, negative where the stop string began in earlier steps.
    """

    kind: Literal["delimiter", "stop"]
    end: int


@dataclass(frozen=True, slots=True)
class StepBoundary:
    """Finds the end of one step while its text grows token by token.

    Args:
        delimiters: strings that end a step once it holds more than white space.
        stop: strings that end the answer.
        tail: the end of the committed text, at least as long as the longest stop string less one.
    """

    delimiters: tuple[str, ...]
    stop: tuple[str, ...] = ()
    tail: str = ""

    def find(self, text: str, checked: int = 0) -> Cut | None:
        """The first cut in ``text``, the step so far.

        Args:
            text: the whole step so far.
            checked: length of the prefix that was searched before, without a find.
        """
        return self._find_stop(text, checked) or self._find_delimiter(text, checked)

    def _find_stop(self, text: str, checked: int) -> Cut | None:
        joined = self.tail + text
        offset = len(self.tail)
        found = [
            position
            for string in self.stop
            if (position := joined.find(string, max(0, offset + checked - len(string) + 1))) >= 0
        ]
        return Cut("stop", min(found) - offset) if found else None

    def _find_delimiter(self, text: str, checked: int) -> Cut | None:
        body = len(text) - len(text.lstrip())
        for delimiter in self.delimiters:
            # A delimiter of white space right at the start separates nothing from nothing.
            start = max(body if delimiter.isspace() else 0, checked - len(delimiter) + 1)
            if text.find(delimiter, start) >= 0:
                return Cut("delimiter", len(text))
        return None


@dataclass(slots=True)
class HoldBack:
    """Gives out committed text except an end that may yet become a stop string."""

    stop: tuple[str, ...]
    _held: str = ""

    @property
    def held(self) -> str:
        """Committed text that was not given out yet."""
        return self._held

    def push(self, text: str) -> str:
        """Take committed text, return what may be shown."""
        joined = self._held + text
        keep = max((_overlap(joined, string) for string in self.stop), default=0)
        self._held = joined[len(joined) - keep :]
        return joined[: len(joined) - keep]

    def finish(self, text: str = "", cut: int | None = None) -> str:
        """Take the last text, cut at an offset into it (may be negative), return all that is left."""
        joined = self._held + text
        if cut is not None:
            joined = joined[: max(0, len(self._held) + cut)]
        self._held = ""
        return joined


def _overlap(text: str, string: str) -> int:
    """Length of the longest proper prefix of ``string`` that ends ``text``."""
    for length in range(min(len(string) - 1, len(text)), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The markup a reasoning model puts around its thinking.

    ``open_in_prompt``: the rendered prompt ends inside the thinking already.
    """

    opening: str = "<think>"
    closing: str = "</think>"
    open_in_prompt: bool = False


class ReasoningSplitter:
    """Splits growing text into answer and reasoning; what it returns is certain.

    One block of thinking at the very start counts as reasoning. White space next to a tag belongs
    to neither side.
    """

    def __init__(self, tags: ReasoningTags | None) -> None:
        self._tag = None if tags is None else (tags.closing if tags.open_in_prompt else tags.opening)
        self._closing = tags.closing if tags else ""
        self._inside = tags is not None and tags.open_in_prompt
        self.seen_reasoning = self._inside
        """Whether the text has, or began inside, thinking markup."""
        self._fresh = self._inside
        self._pending = ""

    def push(self, text: str, *, final: bool = False) -> tuple[str, str]:
        """Take more text, return the (answer, reasoning) that became certain.

        Args:
            final: nothing follows, so nothing needs to be held back for a tag to complete.
        """
        self._pending += text
        answer: list[str] = []
        reasoning: list[str] = []
        while self._tag is not None:
            out = reasoning if self._inside else answer
            position = self._pending.find(self._tag)
            if position < 0:
                out.append(self._settled(self._tag, final))
                return "".join(answer), "".join(reasoning)
            if not self._inside and self._pending[:position].strip():
                break  # The answer has begun: a tag in it is text like any other.
            out.append(self._emit(self._pending[:position].rstrip()))
            self._pending = self._pending[position + len(self._tag) :]
            self._tag, self._inside = (None, False) if self._inside else (self._closing, True)
            self.seen_reasoning = self._fresh = True
        self._tag = None
        answer.append(self._emit(self._pending))
        self._pending = ""
        return "".join(answer), "".join(reasoning)

    def _settled(self, tag: str, final: bool) -> str:
        """The pending text less what may yet turn out to be a tag or the space before one."""
        keep = 0 if final else _overlap(self._pending, tag)
        body = self._pending[: len(self._pending) - keep]
        if self._inside or not final:
            body = body.rstrip()
        if not self._inside and body:
            # Anything but white space before the opening tag: the model does not think aloud.
            body, self._tag = self._pending, None
        self._pending = self._pending[len(body) :]
        return self._emit(body)

    def _emit(self, text: str) -> str:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text


def step_body(text: str, delimiters: tuple[str, ...]) -> str:
    """A step's text as a PRM reads it: without its delimiter and the white space around it."""
    body = text.strip()
    for delimiter in delimiters:
        if not delimiter.isspace():
            body = body.removesuffix(delimiter.strip()).rstrip()
    return body
