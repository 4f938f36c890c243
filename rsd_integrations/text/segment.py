"""Where a step ends, where an answer ends, and what of it may be shown: pure text work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rsd_integrations.text.thoughts import ReasoningTags, overlap


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
class Unbroken:
    """A part of an answer that no delimiter cuts: a call of a tool, a JSON document.

    It lasts from ``opening`` ("": the answer's start) to the end of ``closing`` ("": the answer's
    end), which ends the step. ``leading``: there is such a part only if the answer begins with ``opening``.
    ``behind``: if the answer begins with this markup, the part begins at ``opening``, which comes later;
    otherwise it lasts from the answer's start.
    """

    opening: str = ""
    closing: str = ""
    leading: bool = False
    behind: str = ""

    @property
    def reach(self) -> int:
        """Characters of committed text that may be part of a marker which is completed later."""
        return max(len(self.opening), len(self.closing), 1) - 1

    def starts(self, text: str, start: int = 0, *, blank: bool) -> int:
        """Where it begins in ``text``; -1 if it does not.

        Args:
            blank: the answer holds nothing but white space before ``text``.
        """
        if not self.opening:
            return start
        body = len(text) - len(text.lstrip())
        if self.behind and blank and not text.startswith(self.behind, body):
            return -1 if self.behind.startswith(text[body:]) else start  # It may yet become that.
        if self.leading:
            return body if blank and body >= start and text.startswith(self.opening, body) else -1
        return text.find(self.opening, start)


@dataclass(frozen=True, slots=True)
class StepBoundary:
    """Finds the end of one step while its text grows token by token.

    Args:
        delimiters: strings that end a step once it holds more than white space.
        stop: strings that end the answer.
        tail: the end of the committed text, at most one character shorter than the longest stop string or
            marker (of an unbroken part or of the thinking).
        unbroken: what delimiters do not cut.
        inside: the step begins within such a part.
        blank: nothing but white space was committed.
        thoughts: the markup of thinking that may begin here, or is open; stop strings within are ignored.
    """

    delimiters: tuple[str, ...]
    stop: tuple[str, ...] = ()
    tail: str = ""
    unbroken: Unbroken | None = None
    inside: bool = False
    blank: bool = False
    thoughts: ReasoningTags | None = None

    @property
    def last(self) -> frozenset[str]:
        """The last characters of all strings that can end a step: no step ends without one of them."""
        closing = () if self.unbroken is None else (self.unbroken.closing,)
        return frozenset(string[-1] for string in (*self.delimiters, *self.stop, *closing) if string)

    def find(self, text: str, checked: int = 0) -> Cut | None:
        """The first cut in ``text``, the step so far.

        Args:
            text: the whole step so far.
            checked: length of the prefix that was searched before without finding a cut.
        """
        if stop := self._find_stop(text, checked):
            return stop
        if self.unbroken is None:
            return self._find_delimiter(text, checked)
        joined, offset = self.tail + text, len(self.tail)
        start = self._start(joined)
        if not self.inside:
            free = text if start < 0 else text[: max(0, start - offset)]
            if cut := self._find_delimiter(free, min(checked, len(free))):
                return Cut(cut.kind, len(text))
        return None if start < 0 else self._find_closing(joined, start, len(text))

    def ends_inside(self, text: str) -> bool:
        """Whether the whole step's end lies within an unbroken part."""
        if self.unbroken is None:
            return False
        joined = self.tail + text
        start = self._start(joined)
        return start >= 0 and self._find_closing(joined, start, len(text)) is None

    def thoughts_behind(self, text: str) -> ReasoningTags | None:
        """``thoughts`` for the next step, which follows this whole one; None if the thinking is over."""
        if self.thoughts is None:
            return None
        joined = self.tail + text
        body = joined.lstrip()
        if not self.thoughts.open_in_prompt and not body.startswith(self.thoughts.opening):
            return self.thoughts if self.thoughts.opening.startswith(body) else None
        over = self._thinking(joined)[1] < len(joined)
        return None if over else replace(self.thoughts, open_in_prompt=True)

    def tail_behind(self, text: str, length: int) -> str:
        """``tail`` for the next step, which follows this whole one: so many characters at most, and none of
        thinking that is over, but for its closing markup where a stop string may begin with that.
        """
        joined, first = self.tail + text, 0
        if self.thoughts and (end := self._thinking(joined)[1]) < len(joined):
            closing = self.thoughts.closing
            first = end if any(string.startswith(closing) for string in self.stop) else end + len(closing)
        return joined[max(first, len(joined) - length) :]

    def _start(self, joined: str) -> int:
        """Where the unbroken part begins in tail and text; -1 if it does not."""
        assert self.unbroken is not None
        if self.inside:
            return len(self.tail)
        # A marker that was complete before this step belongs to a part that is over.
        after = max(0, len(self.tail) - len(self.unbroken.opening) + 1)
        return self.unbroken.starts(joined, after, blank=self.blank)

    def _find_closing(self, joined: str, start: int, end: int) -> Cut | None:
        assert self.unbroken is not None
        closing = self.unbroken.closing
        start = max(0, start - len(closing) + 1) if self.inside else start + len(self.unbroken.opening)
        return Cut("delimiter", end) if closing and joined.find(closing, start) >= 0 else None

    def _find_stop(self, text: str, checked: int) -> Cut | None:
        joined = self.tail + text
        offset = len(self.tail)
        start, end = self._thinking(joined)
        closing = self.thoughts.closing if self.thoughts else ""
        behind = min(len(joined), end + len(closing))
        found = []
        for string in self.stop:
            reach = len(string) - 1
            searched = max(0, offset + checked - reach)
            position = joined.find(string, searched, start + reach)
            if position < 0:  # Not before the thinking, so after it.
                # Its closing markup is no part of the answer, but a stop string may begin with it.
                own = string.startswith(closing) and joined.startswith(string, end)
                position = end if own else joined.find(string, max(behind, searched))
            if position >= 0:
                found.append(position)
        return Cut("stop", min(found) - offset) if found else None

    def _thinking(self, joined: str) -> tuple[int, int]:
        """Where thoughts begin and end in ``joined``, markup aside; its length for what is not there."""
        nowhere, tags = len(joined), self.thoughts
        if tags is None:
            return nowhere, nowhere
        if tags.open_in_prompt:
            start, after = 0, max(0, len(self.tail) - len(tags.closing) + 1)
        elif (body := joined.lstrip()).startswith(tags.opening):
            start = after = nowhere - len(body) + len(tags.opening)
        else:
            return nowhere, nowhere
        end = joined.find(tags.closing, after)
        return start, nowhere if end < 0 else end

    def _find_delimiter(self, text: str, checked: int) -> Cut | None:
        body = len(text) - len(text.lstrip())
        for delimiter in self.delimiters:
            # A delimiter of white space at the very start separates nothing.
            start = max(body if delimiter.isspace() else 0, checked - len(delimiter) + 1)
            if text.find(delimiter, start) >= 0:
                return Cut("delimiter", len(text))
        return None


@dataclass(slots=True)
class HoldBack:
    """Passes committed text on, except for an end that may yet become a stop string."""

    stop: tuple[str, ...]
    _held: str = ""

    def push(self, text: str) -> str:
        """Take committed text, return what may be shown."""
        joined = self._held + text
        keep = max((overlap(joined, string) for string in self.stop), default=0)
        self._held = joined[len(joined) - keep :]
        return joined[: len(joined) - keep]

    def finish(self, text: str = "", cut: int | None = None) -> str:
        """Take the last text, cut at an offset into it (may be negative), return all that is left."""
        joined = self._held + text
        if cut is not None:
            joined = joined[: max(0, len(self._held) + cut)]
        self._held = ""
        return joined


class CallSplitter:
    """Splits growing answer text into what is said and what is a call of a tool.

    White space next to a call belongs to neither: a line break replaces it between the text before and after
    the call. Nothing else is changed.
    """

    def __init__(self, unbroken: Unbroken) -> None:
        self._unbroken = unbroken
        self._pending = ""
        self._inside = False
        self._blank = True
        self._after_call = False

    def push(self, text: str, *, final: bool = False) -> tuple[str, list[str]]:
        """Take more text, return the text to show and the calls that are complete.

        Args:
            final: nothing follows; a call that was begun is complete as it stands.
        """
        self._pending += text
        shown: list[str] = []
        calls: list[str] = []
        while True:
            if self._inside:
                closing = self._unbroken.closing
                position = self._pending.find(closing, len(self._unbroken.opening)) if closing else -1
                if position < 0 and not final:
                    break
                end = len(self._pending) if position < 0 else position + len(closing)
                calls.append(self._pending[:end])
                self._pending = self._pending[end:]
                self._inside, self._after_call = False, True
                continue
            position = self._unbroken.starts(self._pending, blank=self._blank)
            if position < 0:
                shown.append(self._show(self._settled(final)))
                break
            shown.append(self._show(self._pending[:position].rstrip()))
            self._pending = self._pending[position:]
            self._inside = True
        return "".join(shown), calls

    def _settled(self, final: bool) -> str:
        """The pending text less what may yet turn out to be a call, or the space before one."""
        if self._unbroken.leading and (not self._blank or self._pending.strip()):
            keep = 0  # The answer has begun with something else.
        else:
            keep = 0 if final else overlap(self._pending, self._unbroken.opening)
        body = self._pending[: len(self._pending) - keep]
        if not final and not (self._unbroken.leading and not keep and body.strip()):
            body = body.rstrip()
        elif self._after_call and not body.strip():
            body = ""
        self._pending = "" if final else self._pending[len(body) :]
        return body

    def _show(self, text: str) -> str:
        if self._after_call and (text := text.lstrip()) and not self._blank:
            text = f"\n{text}"
        if text.strip():
            self._blank = self._after_call = False
        return text


def step_body(text: str, delimiters: tuple[str, ...]) -> str:
    """A step's text as a PRM reads it: without its delimiter and the white space around it."""
    body = text.strip()
    for delimiter in delimiters:
        if not delimiter.isspace():
            body = body.removesuffix(delimiter.strip()).rstrip()
    return body
