"""Tests of a ``Scorer``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from rsd_integrations.conformance.steps import PROMPTS, keep
from rsd_integrations.protocols import Scored, Scorer, ScorerSession, ScoreStep, Written
from rsd_integrations.types import Prompt

PATIENCE = 60.0
"""Seconds within which scores must come."""


class ScorerKit:
    """Tests of a ``Scorer``."""

    def score(self, scorer: Scorer, session: ScorerSession, body: str) -> Scored:
        """A step's score."""
        (scored,) = self.score_all(scorer, [session], [body])
        assert isinstance(scored, Scored), scored
        return scored

    def score_all(
        self, scorer: Scorer, sessions: Sequence[ScorerSession], bodies: Sequence[str]
    ) -> list[Any]:
        """Scores of several steps, in shared rounds until the last is done."""
        done: dict[int, Any] = {}
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            waiting = [index for index in range(len(bodies)) if index not in done]
            if not waiting:
                return [done[index] for index in range(len(bodies))]
            work = [ScoreStep(bodies[index]) for index in waiting]
            results = scorer.score([sessions[index] for index in waiting], work)
            done |= {index: one for index, one in zip(waiting, results, strict=True) if one is not None}
        raise AssertionError("a score never came")

    def test_opening_runs_no_model(self, scorer: Scorer) -> None:
        session = scorer.open(PROMPTS[0])
        assert session.prompt_tokens >= 0
        assert session.tally.forwarded == 0
        session.close()
        session.close()

    @pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
    def test_a_reward_lies_in_0_to_1_and_repeats(self, scorer: Scorer, prompt: Prompt) -> None:
        session, again = scorer.open(prompt), scorer.open(prompt)
        first, second = self.score(scorer, session, "So it is."), self.score(scorer, again, "So it is.")
        assert 0.0 <= first.reward <= 1.0
        assert first.tokens >= 0
        assert second.reward == pytest.approx(first.reward, abs=1e-5)
        assert second.tokens == first.tokens
        session.close()
        again.close()

    def test_company_changes_nothing(self, scorer: Scorer) -> None:
        bodies = ["So.", "A step that is a good deal longer.", "1 + 1 = 2"]
        sessions = [scorer.open(prompt) for prompt in PROMPTS]
        together = self.score_all(scorer, sessions, bodies)
        for prompt, body, session, scored in zip(PROMPTS, bodies, sessions, together, strict=True):
            session.close()
            alone = scorer.open(prompt)
            assert isinstance(scored, Scored)
            assert self.score(scorer, alone, body).reward == pytest.approx(scored.reward, abs=1e-5)
            alone.close()

    def test_a_rejected_step_leaves_no_trace(self, scorer: Scorer) -> None:
        straight, winding = scorer.open(PROMPTS[0]), scorer.open(PROMPTS[0])
        self.score(scorer, winding, "This one is rejected, alas.")
        # Scored as if it came first.
        again = [self.score(scorer, session, "So is this one.").reward for session in (straight, winding)]
        assert again[0] == pytest.approx(again[1], abs=1e-5)
        for session in (straight, winding):
            keep(session, Written("Right.\n\n", (1,), "delimiter"), own=False, body="Right.")
        rewards = [self.score(scorer, session, "And so on.").reward for session in (straight, winding)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)
        for session in (straight, winding):
            session.close()

    def test_an_accepted_step_is_as_good_as_a_committed_one(self, scorer: Scorer) -> None:
        accepted, committed = scorer.open(PROMPTS[0]), scorer.open(PROMPTS[0])
        self.score(scorer, accepted, "Right.")
        keep(accepted, Written("Right.\n\n", (1,), "delimiter"), body="Right.")
        keep(committed, Written("Right.\n\n", (1,), "delimiter"), own=False, body="Right.")
        rewards = [self.score(scorer, session, "And so on.").reward for session in (accepted, committed)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)
        for session in (accepted, committed):
            session.close()

    def test_a_fork_goes_on_as_its_origin_would(self, scorer: Scorer) -> None:
        """Candidates are scored together, and one of them or another step is committed to all."""
        family = [scorer.open(PROMPTS[1])]
        family += [family[0].fork() for _ in range(2)]
        alone = scorer.open(PROMPTS[1])
        for chosen, bodies in enumerate((["One.", "Or two, it is.", "3"], ["4 + 4 = 8", "So.", "5"])):
            scores = self.score_all(scorer, family, bodies)
            expected = self.score(scorer, alone, bodies[chosen])
            assert scores[chosen].reward == pytest.approx(expected.reward, abs=1e-5)
            assert scores[chosen].tokens == expected.tokens
            for index, session in enumerate([*family, alone]):
                written = Written(bodies[chosen] + "\n\n", (1,), "delimiter")
                keep(session, written, own=index in (chosen, 3), body=bodies[chosen])
        for session in (*family, alone):
            keep(session, Written("Right.\n\n", (1,), "delimiter"), own=False, body="Right.")
        family[0].close()
        rewards = [self.score(scorer, session, "And so on.").reward for session in (alone, *family[1:])]
        assert rewards[1:] == pytest.approx([rewards[0]] * 2, abs=1e-5)
        for session in (alone, *family):
            session.close()

    def test_no_body_reads_the_last_committed_step(self, scorer: Scorer) -> None:
        scored, unscored = scorer.open(PROMPTS[0]), scorer.open(PROMPTS[0])
        expected = self.score(scorer, scored, "Right.").reward
        keep(unscored, Written("Right.\n\n", (1,), "delimiter"), own=False, body="Right.")
        got = self.score(scorer, unscored, "")
        assert got.reward == pytest.approx(expected, abs=1e-5)
        # It changed nothing: the next step follows as if nobody had asked.
        keep(unscored, Written("\n", (1,), "limit"), body="")
        keep(scored, Written("Right.\n\n", (1,), "delimiter"), body="Right.")
        rewards = [self.score(scorer, session, "On.").reward for session in (scored, unscored)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)
        for session in (scored, unscored):
            session.close()
