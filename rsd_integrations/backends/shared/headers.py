"""Text of models whose thoughts and answers are messages with headers (gpt-oss), token by token."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from rsd_integrations.backends.shared.detokenize import Detokenizer
from rsd_integrations.encoding import encode_markup
from rsd_integrations.text.calls import CallFormat
from rsd_integrations.text.thoughts import ReasoningTags

CALLS = CallFormat("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "")
"""Calls as gpt-oss was trained to write them: its template has the words of a header in another order."""

_TO = "to="
_CALLED = re.compile(rf"\b{_TO}(?:functions\.)?([^\s<]+)")

_LONGEST = 96
"""Tokens; what is as long as this is no header."""


@dataclass(frozen=True, slots=True)
class _Stands:
    """Where a text stands.

    ``header``: the tokens of a header that has begun; None outside of headers. ``started``: it began with a
    token of its own (the first one's start is the end of the prompt). ``thinks``: within the thinking.
    ``over``: a message has ended, and the next one has not begun.
    """

    header: tuple[int, ...] | None = ()
    started: bool = False
    thinks: bool = False
    over: bool = False


class Messages(Detokenizer):
    """Hides the headers of messages, except what opens the thinking. What closes it is shown once it is known
    that no further thoughts follow.

    Args:
        hidden: as of a ``Detokenizer``.
        tags: with a ``lead``.
        calls: how to show a header that calls a tool; None: it is hidden like the others.
    """

    def __init__(
        self, tokenizer: Any, hidden: frozenset[int], tags: ReasoningTags, calls: CallFormat | None
    ) -> None:
        self._tags = tags
        self._calls = calls
        opening = encode_markup(tokenizer, tags.opening)
        self._starts = {encode_markup(tokenizer, tags.lead)[0], opening[0]}
        self._body, self._end = opening[-1], encode_markup(tokenizer, tags.closing)[0]
        expected = tags.answer and not tags.open_in_prompt
        self._stands = _Stands(() if expected else None, thinks=tags.open_in_prompt)
        super().__init__(tokenizer, hidden - {*self._starts, self._body, self._end})

    def _push(self, token: int) -> str:
        header = self._stands.header
        if token == self._body:
            return self._headed((*(header or ()), token))
        if token in self._starts:
            self._stands = replace(self._stands, header=(*(header or ()), token), started=True)
            return ""
        if header is not None:
            return self._within((*header, token))
        if token == self._end:
            self._stands = replace(self._stands, over=True)
            return ""
        return self._behind() + super()._push(token)

    def _within(self, header: tuple[int, ...]) -> str:
        """The text of a header that may go on: none, or all of it if it turns out not to be a header."""
        begun = self._stands.started or _TO.startswith(self._decode(header).lstrip()[: len(_TO)])
        if begun and len(header) < _LONGEST:
            self._stands = replace(self._stands, header=header)
            return ""
        self._stands = replace(self._stands, header=None)
        return "".join(super(Messages, self)._push(token) for token in header)

    def _headed(self, header: tuple[int, ...]) -> str:
        """What to show for a whole header."""
        text = self._decode(header)
        called = _CALLED.search(text) if self._calls else None
        thinks = called is None and text.endswith(self._tags.opening)
        if thinks and self._stands.thinks:
            shown = "\n\n"
        else:
            # Some messages have no end before the next header.
            self._stands = replace(self._stands, over=self._stands.over or self._stands.thinks)
            shown = self._behind() + self._tags.opening * thinks
        self._stands = _Stands(None, thinks=thinks)
        if called and self._calls:
            shown += f"{self._calls.before}{called[1]}{self._calls.between}"
        return shown

    def _behind(self) -> str:
        """What to show for the end of the message before."""
        stands = self._stands
        if not stands.over:
            return ""
        self._stands = replace(stands, thinks=False, over=False)
        return self._tags.closing if stands.thinks else "\n\n"

    @property
    def holds(self) -> bool:
        """Whether text is held back, which any further token may release."""
        return bool(self._stands.header) or super().holds

    def rest(self) -> str:
        """What is held back, as it is shown when nothing follows."""
        header = self._stands.header if not self._stands.started else None
        return super().rest() + self._decode(header or ())

    def mark(self) -> None:
        """A step begins here."""
        super().mark()
        self._stood = self._stands

    def back(self, *, to_whole: bool = False) -> None:
        """Go back to where the step began. ``to_whole``: as of a ``Detokenizer``."""
        super().back(to_whole=to_whole)
        self._stands = self._stood
