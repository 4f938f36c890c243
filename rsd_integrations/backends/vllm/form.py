"""Keeping an answer to its form over servers: by a grammar that they hold, or token by token.

A server can hold a model to a grammar from a grammar's beginning only. So it is given the grammar where a
session stands at one (before the answer, in the thinking, behind it). From the middle of a call or a
document, where a step was cut, tokens are asked for one by one, and ruled out here if they may not follow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rsd_integrations.backends.shared.tooling import Tooling
from rsd_integrations.output import Output
from rsd_integrations.thoughts import ReasoningTags

if TYPE_CHECKING:
    from rsd_integrations.backends.shared.constrain import Constraint

__all__ = ["Form"]


class Form:
    """Of one session: where its text stands, and what may follow.

    Args:
        constraint: the session's, which follows every token, whoever held the model to the form.
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
        """Whether its server has shown that it does not hold to the grammar."""

    @property
    def free(self) -> bool:
        """Whether delimiters may end steps: in the thinking, and in words that are no document."""
        return self._output.choice == "auto" and self._output.schema is None

    def grammar(self, written: str) -> str | None:
        """What the rest of the answer has to follow, if it can be said.

        Args:
            written: of the step in progress.
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
        """The thinking markup that is to come, and the answer's text so far."""
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
