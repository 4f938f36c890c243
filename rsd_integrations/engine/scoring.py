"""A request that scores given steps, on its way through an engine."""

from __future__ import annotations

from typing import Any

from rsd_integrations.algorithm import Cancelled
from rsd_integrations.engine.checks import check_size, room
from rsd_integrations.engine.job import Job
from rsd_integrations.errors import TimedOutError
from rsd_integrations.protocols import Backend, Kept
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.rewards import score_steps
from rsd_integrations.types import Generation, Step


class ScoreJob(Job):
    """A job for the PRM alone. Ends like a request all of whose steps were kept."""

    can_wait = may_be_rewritten = False

    def start(self, backend: Backend | RemoteBackend) -> None:
        """Open the PRM's session and ask for the first reward.

        Raises:
            RSDError: the prompt cannot be laid out, or does not fit.
        """
        info, self._steps = backend.prm.info, self.request.steps or ()
        check_size(backend.target, self.request.prompt, info)
        for step in self._steps:
            check_size(backend.target, step, info, "step")
        session = self._opened(backend.prm)
        self._sessions["prm"] = [session]
        room(info, session.prompt_tokens, None)
        self._story = score_steps(self._steps, tuple(self.request.config.step_delimiter))
        self.resume()

    def resume(self, result: Any = None) -> None:
        """As any job. A story of scores that is cancelled has nothing to tell.

        Raises:
            Exception: whatever the story raises.
        """
        if isinstance(result, Cancelled):
            self.drop()
        else:
            super().resume(result)

    def _commit(self, kept: Kept) -> None:
        self._sessions["prm"][0].commit(kept, own=True)

    def _finish(self, outcome: Any) -> None:
        self.close()
        steps = [
            Step(
                index=index,
                source="draft",
                accepted=True,
                reward=reward,
                acceptance_probability=1.0,
                text=text,
            )
            for index, (text, reward) in enumerate(zip(self._steps, outcome, strict=True))
        ]
        whole = Generation(
            text="".join(self._steps), steps=tuple(steps), finish_reason="stop", seed=0, threshold=None
        )
        self._end(whole)


def rewards_of(scored: Generation) -> list[float | None]:
    """The rewards that a ``ScoreJob`` gave.

    Raises:
        TimedOutError: its time was over before, which alone can cancel it.
    """
    if scored.finish_reason == "cancelled":
        raise TimedOutError("the steps were not scored in time.", hint="Raise timeout=, or give fewer steps.")
    return [step.reward for step in scored.steps]
