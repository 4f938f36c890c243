"""Keeping an answer from servers to its form: by a grammar that they enforce, or token by token.

A server can enforce a grammar only from the grammar's beginning. So it is given one where a session stands at
such a point (before the answer, in the thinking, right behind it). From the middle of a call or a document,
where a step was cut, tokens are asked for one by one, and this side says which ones may follow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rsd_integrations.backends.shared.tooling import Tooling
from rsd_integrations.output import Output
from rsd_integrations.text.thoughts import ReasoningTags

if TYPE_CHECKING:
    from rsd_integrations.backends.shared.constrain import Constraint


class Form:
    """Where the text of one session stands, and what may follow.

    Args:
        constraint: the session's. It takes every token, whichever side enforced the form.
    """

    def __init__(
        self, tooling: Tooling, constraint: Constraint, output: Output, tags: ReasoningTags | None
    ) -> None:
        self._tooling = tooling
        self.constraint = constraint
        self._output = output
        self._tags = tags
        self._committed = ""
        self.distrusted = False
        """Whether its server has shown that it does not enforce the grammar."""

    @property
    def free(self) -> bool:
        """Whether the answer may be words, in which delimiters end steps; else it is a call or a document."""
        return self._output.choice == "auto" and self._output.schema is None

    def grammar(self, written: str) -> str | None:
        """The grammar of the rest of the answer; None where a server cannot be given one.

        Args:
            written: text of the step in progress.
        """
        tags, rest = self._stands(self._committed + written)
        if self.distrusted or (rest.strip() and (not self.free or self._tooling.opens_call(rest))):
            return None
        thought = tags is None and self._tags is not None and not rest.strip()
        return self._tooling.grammar(self._output, self._tags if thought else tags, thought=thought)

    def thinks(self, written: str) -> bool:
        """Whether the text ends within the thinking, or thinking may yet come."""
        return self._stands(self._committed + written)[0] is not None

    def _stands(self, text: str) -> tuple[ReasoningTags | None, str]:
        """The thinking markup that is still to come or to close, and the answer's text so far."""
        tags = self._tags
        if tags is None:
            return None, text
        before, closed, rest = text.partition(tags.closing)
        if closed:
            return None, rest
        if tags.open_in_prompt or tags.opening in before:
            return replace(tags, open_in_prompt=True), ""
        return (None, text) if text.strip() else (tags, "")

    def commit(self, text: str) -> None:
        """Go on behind the text of a committed step."""
        self._committed += text
