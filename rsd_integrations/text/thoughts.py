"""The thinking of a reasoning model, told apart from its answer: pure text work."""

from __future__ import annotations

from dataclasses import dataclass


def overlap(text: str, string: str) -> int:
    """Length of the longest proper prefix of ``string`` that ends ``text``."""
    for length in range(min(len(string) - 1, len(text)), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The markup a reasoning model puts around its thinking.

    ``open_in_prompt``: the rendered prompt ends inside the thinking already. ``answer`` and ``end``: markup
    around the answer, if it has any. ``lead``: if thoughts and answer are messages of their own, what each
    begins with; the prompt ends with that of the first.
    """

    opening: str = "<think>"
    closing: str = "</think>"
    open_in_prompt: bool = False
    answer: str = ""
    end: str = ""
    lead: str = ""


class ReasoningSplitter:
    """Splits growing text into answer and reasoning; what it returns never has to be taken back.

    One block of thinking at the very start counts as reasoning. White space next to a tag belongs
    to neither side, and so does markup around the answer that follows.
    """

    def __init__(self, tags: ReasoningTags | None) -> None:
        self._tag = None if tags is None else (tags.closing if tags.open_in_prompt else tags.opening)
        self._closing = tags.closing if tags else ""
        self._inside = tags is not None and tags.open_in_prompt
        self.seen_reasoning = self._inside
        """Whether the text has, or began inside, thinking markup."""
        self._fresh = self._inside
        self._pending = ""
        self._marked = _Marked(tags.answer, tags.end) if tags and tags.answer else None

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
                self._marked = None
                break  # The answer has begun: a tag in it is text like any other.
            out.append(self._emit(self._pending[:position].rstrip()))
            self._pending = self._pending[position + len(self._tag) :]
            self._tag, self._inside = (None, False) if self._inside else (self._closing, True)
            self.seen_reasoning = self._fresh = True
        self._tag = None
        if self._marked is not None:
            self._pending = self._marked.push(self._pending, final=final)
        answer.append(self._emit(self._pending))
        self._pending = ""
        return "".join(answer), "".join(reasoning)

    def _settled(self, tag: str, final: bool) -> str:
        """The pending text less what may yet turn out to be a tag or the space before one."""
        keep = 0 if final else overlap(self._pending, tag)
        body = self._pending[: len(self._pending) - keep]
        if self._inside or not final:
            body = body.rstrip()
        if not self._inside and body:
            # Anything but white space before the opening tag: the model does not think aloud.
            body, self._tag, self._marked = self._pending, None, None
        self._pending = self._pending[len(body) :]
        return self._emit(body)

    def _emit(self, text: str) -> str:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text


class _Marked:
    """Strips growing answer text of the marks around it, if it begins with the first."""

    def __init__(self, opening: str, closing: str) -> None:
        self._opening: str | None = opening
        self._closing = closing
        self._behind = False
        """The second mark is past, and only white space has followed it."""
        self._pending = ""

    def push(self, text: str, *, final: bool) -> str:
        """Take more text, return what is certain, without the marks and the white space beside the second."""
        self._pending += text
        if self._opening is not None:
            body = self._pending.lstrip()
            if not final and len(body) < len(self._opening) and self._opening.startswith(body):
                return ""
            if body.startswith(self._opening):
                self._pending = body[len(self._opening) :]
            else:
                self._closing = ""
            self._opening = None
        if self._behind:
            self._pending = self._pending.lstrip()
            self._behind = not self._pending
        text, self._pending = self._settled(final)
        return text

    def _settled(self, final: bool) -> tuple[str, str]:
        """What of the pending text can be shown, and what may yet turn out to be the second mark."""
        if not self._closing:
            return self._pending, ""
        before, closed, behind = self._pending.partition(self._closing)
        if closed:
            self._closing, self._behind = "", not behind.strip()
            return before.rstrip() + behind.lstrip(), ""
        if final:
            return before, ""
        keep = overlap(before, self._closing)
        body = before[: len(before) - keep].rstrip()
        return body, before[len(body) :]
