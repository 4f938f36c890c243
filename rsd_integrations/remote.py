"""What a backend of servers must do: the same work, awaited.

A backend for models in this process works in rounds (``protocols.Writer``); one of servers is asked for each
step by itself, for any number of requests side by side, and may take as long as it likes. Sessions are the
same. All of it runs on the engine's event loop, unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rsd_integrations.protocols import (
    ModelInfo,
    Scored,
    ScorerSession,
    ScoreStep,
    Speaker,
    WriterSession,
    Written,
)
from rsd_integrations.types import Prompt

__all__ = ["RemoteBackend", "RemoteScorer", "RemoteWriter"]


class RemoteWriter(Speaker, Protocol):
    """A draft or target model behind servers. Its sessions want no guesses; its ``open`` asks no server."""

    async def write(self, session: WriterSession) -> Written:
        """The step that the session has begun. If this is cancelled, the session can only be closed.

        Raises:
            RSDError: it failed.
        """
        ...

    def go_on(self, session: WriterSession) -> None:
        """Write on in the background, after a step that waits for its reward. The session's ``goes_on`` was
        true, and it has begun a ``GuessStep``, which says how far. If the step is kept, the next one begins
        with what was written; if another is committed in its place, that is forgotten.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class RemoteScorer(Protocol):
    """A process reward model behind servers."""

    info: ModelInfo

    def open(self, prompt: Prompt) -> ScorerSession:
        """Render and encode a prompt. Asks no server."""
        ...

    async def score(self, session: ScorerSession, step: ScoreStep) -> Scored:
        """The reward of a step.

        Raises:
            WindowFull: it does not fit.
            RSDError: it failed.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteBackend:
    """The three models of a pipeline, behind servers.

    ``max_batch_size``: most requests at work at once; the others wait their turn.
    """

    draft: RemoteWriter
    target: RemoteWriter
    prm: RemoteScorer
    max_batch_size: int = 256
