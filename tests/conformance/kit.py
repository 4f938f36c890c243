"""What any backend must do. Subclass, name a ``writer`` or ``scorer`` fixture, and run pytest.

::

    class TestMyWriter(WriterKit):
        @pytest.fixture
        def writer(self) -> Iterator[Writer]:
            yield MyWriter(...)

A writer must be deterministic at temperature 0, and write at least three tokens of text for each of
the prompts before it ends an answer. One that can be held to tools and forms passes ``ConstraintKit`` too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from rsd_integrations.output import Output
from rsd_integrations.protocols import (
    DraftStep,
    GuessStep,
    Kept,
    Sampling,
    Scored,
    Scorer,
    ScorerSession,
    ScoreStep,
    TargetStep,
    Writer,
    WriterSession,
    Written,
)
from rsd_integrations.segment import StepBoundary
from rsd_integrations.types import Prompt, ToolCall

__all__ = ["ConstraintKit", "ScorerKit", "WriterKit"]

PROMPTS: list[Prompt] = ["hello there", [{"role": "user", "content": "a longer one, with a comma"}], "x"]
DELIMITERS = ("e", "\n\n", " ")


def work(
    max_tokens: int = 8,
    *,
    stop: tuple[str, ...] = (),
    tail: str = "",
    seed: int | None = None,
    kind: type[DraftStep] | type[TargetStep] = DraftStep,
    delimiters: tuple[str, ...] = DELIMITERS,
) -> DraftStep | TargetStep:
    """A step to write: greedy, or sampled if there is a seed."""
    sampling = Sampling(0.0 if seed is None else 1.0, 1.0, None, random.Random(seed).random)
    return kind(StepBoundary(delimiters, stop, tail), max_tokens, sampling)


def write(writer: Writer, sessions: Sequence[WriterSession], steps: Sequence[Any]) -> list[Written]:
    """Let some sessions write a step each, in common rounds until the last is done."""
    for session, step in zip(sessions, steps, strict=True):
        session.begin(step)
    done: dict[int, Written] = {}
    for _ in range(2000):
        waiting = [index for index in range(len(sessions)) if index not in done]
        if not waiting:
            return [done[index] for index in range(len(sessions))]
        results = writer.advance([sessions[index] for index in waiting])
        assert len(results) == len(waiting)
        for index, result in zip(waiting, results, strict=True):
            assert not isinstance(result, Exception), result
            if result is not None:
                done[index] = result
    raise AssertionError("a step never ended")


def keep(session: Any, written: Written, *, own: bool = True, body: str | None = None) -> None:
    source = "draft" if own else "target"
    session.commit(Kept(source, written, written.shown.strip() if body is None else body), own=own)


def told(written: Written) -> tuple[Any, ...]:
    return written.text, written.token_ids, written.end, written.cut


class WriterKit:
    """Tests of a ``Writer``."""

    def one(self, writer: Writer, prompt: Prompt = PROMPTS[0], **options: Any) -> Written:
        session = writer.open(prompt)
        try:
            return write(writer, [session], [work(**options)])[0]
        finally:
            session.close()

    @pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
    def test_opening_runs_no_model(self, writer: Writer, prompt: Prompt) -> None:
        session = writer.open(prompt)
        assert session.prompt_tokens > 0
        assert (session.tally.forwarded, session.tally.pairs) == (0, 0)
        session.close()
        session.close()

    @pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
    @pytest.mark.parametrize("kind", [DraftStep, TargetStep])
    def test_a_step_ends_where_it_should(self, writer: Writer, prompt: Prompt, kind: Any) -> None:
        for max_tokens in (1, 2, 7, 40):
            written = self.one(writer, prompt, max_tokens=max_tokens, kind=kind)
            cut = StepBoundary(DELIMITERS).find(written.text)
            assert 1 <= len(written.token_ids) <= max_tokens
            assert (written.end == "delimiter") == (cut is not None)
            assert written.cut is None
            if written.end == "limit":
                assert len(written.token_ids) == max_tokens

    def test_the_same_step_twice(self, writer: Writer) -> None:
        assert told(self.one(writer)) == told(self.one(writer))
        assert told(self.one(writer, seed=3)) == told(self.one(writer, seed=3))

    def test_a_limit_only_shortens(self, writer: Writer) -> None:
        long, short = self.one(writer, delimiters=("\0",), max_tokens=3), self.one(writer, max_tokens=1)
        assert long.token_ids[:1] == short.token_ids

    def test_a_stop_string_is_found_with_its_offset(self, writer: Writer) -> None:
        text = self.one(writer, delimiters=("\0",), max_tokens=3).text
        stop = text[1:3]
        written = self.one(writer, delimiters=("\0",), stop=(stop,), max_tokens=40)
        assert (written.end, written.cut) == ("stop", text.find(stop))
        assert stop not in written.shown

    def test_a_stop_string_may_begin_before_the_step(self, writer: Writer) -> None:
        first = self.one(writer, delimiters=("\0",), max_tokens=3).text[0]
        written = self.one(writer, stop=("before" + first,), tail="and before")
        assert (written.end, written.cut, written.shown) == ("stop", -6, "")

    def test_company_changes_nothing(self, writer: Writer) -> None:
        steps = [work(4 + index, seed=index) for index in range(3)]
        sessions = [writer.open(prompt) for prompt in PROMPTS]
        together = write(writer, sessions, steps)
        for session in sessions:
            session.close()
        for index, (prompt, written) in enumerate(zip(PROMPTS, together, strict=True)):
            alone = self.one(writer, prompt, max_tokens=4 + index, seed=index)
            assert told(alone) == told(written)

    def test_steps_join_to_what_one_step_would_be(self, writer: Writer) -> None:
        session = writer.open(PROMPTS[0])
        pieces = []
        for _ in range(3):
            (written,) = write(writer, [session], [work(1, delimiters=("\0",))])
            keep(session, written)
            pieces.append(written)
        session.close()
        whole = self.one(writer, delimiters=("\0",), max_tokens=3)
        if self.continues(writer):
            assert "".join(written.text for written in pieces) == whole.text

    def continues(self, writer: Writer) -> bool:
        """Whether it goes on in mid-step where a limit cut it (scripts begin their next line)."""
        return True

    def test_a_rejected_step_leaves_no_trace(self, writer: Writer) -> None:
        other = self.one(writer, PROMPTS[1], max_tokens=5, seed=1)
        straight, winding = writer.open(PROMPTS[0]), writer.open(PROMPTS[0])
        write(writer, [winding], [work(6, seed=9)])
        for session in (straight, winding):
            keep(session, other, own=False)
        after = write(writer, [straight, winding], [work(6), work(6)])
        assert told(after[0]) == told(after[1])
        for session in (straight, winding):
            session.close()

    @pytest.mark.parametrize("seed", [None, 7])
    @pytest.mark.parametrize("count", [1, 3, 40])
    @pytest.mark.parametrize("rounds", [1, 2, 50])
    def test_going_on_behind_a_step_changes_nothing(
        self, writer: Writer, seed: int | None, count: int, rounds: int
    ) -> None:
        """However far it went, whether the step is kept or not, and for steps to come."""
        other = self.one(writer, PROMPTS[1], max_tokens=5, seed=1)
        straight, winding = writer.open(PROMPTS[0]), writer.open(PROMPTS[0])
        # The draws of a request's steps are one stream.
        steps = [work(9, seed=seed) for _ in (straight, winding)]
        for turn in range(6):
            first, second = write(writer, [straight, winding], steps)
            assert told(first) == told(second)
            if winding.goes_on:
                winding.begin(GuessStep(winding.so_far, count, steps[1].sampling))
                for _ in range(rounds):
                    (result,) = writer.advance([winding])
                    assert not isinstance(result, Exception), result
                    if result is not None:
                        assert 1 <= len(result.token_ids) <= count
                        break
            kept, own = (first, True) if turn % 3 < 2 else (other, False)
            for session in (straight, winding):
                keep(session, kept, own=own)
        for session in (straight, winding):
            session.close()

    def test_a_fork_goes_on_as_its_origin_would(self, writer: Writer) -> None:
        """Candidates: all write, one's step is committed to all of them, or another model's is."""
        alone = writer.open(PROMPTS[1])
        family = [writer.open(PROMPTS[1])]
        family += [family[0].fork() for _ in range(2)]
        other = self.one(writer, PROMPTS[0], max_tokens=5, seed=1)
        for chosen in (1, None, 0):
            steps = write(writer, family, [work(6, seed=20 + index) for index in range(3)])
            (expected,) = write(writer, [alone], [work(6, seed=20 + (chosen or 0))])
            assert told(steps[chosen or 0]) == told(expected)
            kept = other if chosen is None else steps[chosen]
            keep(alone, kept, own=chosen is not None)
            for index, session in enumerate(family):
                keep(session, kept, own=index == chosen)
        family[0].close()
        after = write(writer, [alone, *family[1:]], [work(6)] * 3)
        assert len({told(written) for written in after}) == 1
        for session in (alone, *family):
            session.close()

    def test_so_far_are_the_step_s_tokens(self, writer: Writer) -> None:
        session = writer.open(PROMPTS[0])
        session.begin(work(3, delimiters=("\0",)))
        assert session.so_far == ()
        written = None
        while written is None:
            (written,) = writer.advance([session])  # type: ignore[assignment]
        assert isinstance(written, Written)
        assert session.so_far == written.token_ids and len(written.token_ids) == 3
        keep(session, written)
        assert session.so_far == ()
        session.close()

    def test_each_context_token_is_counted_once(self, writer: Writer) -> None:
        session = writer.open(PROMPTS[0])
        total = 0
        for _ in range(3):
            (written,) = write(writer, [session], [work(2, delimiters=("\0",))])
            keep(session, written)
            total += len(written.token_ids)
        assert session.tally.forwarded <= session.prompt_tokens + total
        assert session.tally.forwarded >= total
        assert session.tally.pairs >= session.tally.forwarded
        session.close()

    def test_closing_in_mid_step(self, writer: Writer) -> None:
        session, other = writer.open(PROMPTS[0]), writer.open(PROMPTS[1])
        session.begin(work(8))
        other.begin(work(8, seed=2))
        _, written = writer.advance([session, other])
        session.close()
        session.close()
        while written is None:
            (written,) = writer.advance([other])
        other.close()
        assert isinstance(written, Written)
        assert told(written) == told(self.one(writer, PROMPTS[1], seed=2))


class ScorerKit:
    """Tests of a ``Scorer``."""

    def score(self, scorer: Scorer, session: ScorerSession, body: str) -> Scored:
        (scored,) = scorer.score([session], [ScoreStep(body)])
        assert isinstance(scored, Scored), scored
        return scored

    def score_all(
        self, scorer: Scorer, sessions: Sequence[ScorerSession], bodies: Sequence[str]
    ) -> list[Any]:
        """In common rounds until the last is done."""
        done: dict[int, Any] = {}
        for _ in range(100):
            waiting = [index for index in range(len(bodies)) if index not in done]
            if not waiting:
                return [done[index] for index in range(len(bodies))]
            work = [ScoreStep(bodies[index]) for index in waiting]
            results = scorer.score([sessions[index] for index in waiting], work)
            done |= {index: one for index, one in zip(waiting, results, strict=True) if one is not None}
        raise AssertionError("a score never came")

    def test_opening_runs_no_model(self, scorer: Scorer) -> None:
        session = scorer.open(PROMPTS[0])
        assert session.prompt_tokens > 0
        assert session.tally.forwarded == 0
        session.close()
        session.close()

    @pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
    def test_a_reward_lies_in_0_to_1_and_repeats(self, scorer: Scorer, prompt: Prompt) -> None:
        session, again = scorer.open(prompt), scorer.open(prompt)
        first, second = self.score(scorer, session, "So it is."), self.score(scorer, again, "So it is.")
        assert 0.0 <= first.reward <= 1.0
        assert first.tokens > 0
        assert second == Scored(pytest.approx(first.reward, abs=1e-5), first.tokens)
        session.close()
        again.close()

    def test_company_changes_nothing(self, scorer: Scorer) -> None:
        bodies = ["So.", "A step that is a good deal longer.", "1 + 1 = 2"]
        sessions = [scorer.open(prompt) for prompt in PROMPTS]
        together = scorer.score(sessions, [ScoreStep(body) for body in bodies])
        for prompt, body, session, scored in zip(PROMPTS, bodies, sessions, together, strict=True):
            session.close()
            alone = scorer.open(prompt)
            assert isinstance(scored, Scored)
            assert self.score(scorer, alone, body).reward == pytest.approx(scored.reward, abs=1e-5)
            alone.close()

    def test_a_rejected_step_leaves_no_trace(self, scorer: Scorer) -> None:
        straight, winding = scorer.open(PROMPTS[0]), scorer.open(PROMPTS[0])
        self.score(scorer, winding, "This one is rejected, alas.")
        # As good as the first in its place.
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
            assert scores[chosen] == Scored(pytest.approx(expected.reward, abs=1e-5), expected.tokens)
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


FORM = {"type": "object", "properties": {"a": {"enum": ["x y", "z"]}, "b": {"type": "boolean"}}}
FORMED = Output.of(
    response_format={"type": "json_schema", "json_schema": {"schema": FORM | {"required": ["a", "b"]}}}
)
DOCUMENTS = [{"a": a, "b": b} for a in ("x y", "z") for b in (True, False)]
CALLED = Output.of(
    tools=[{"type": "function", "function": {"name": "look", "parameters": FORM | {"required": ["a", "b"]}}}],
    tool_choice="required",
    parallel_tool_calls=False,
)


class ConstraintKit:
    """Tests of a ``Writer`` that keeps answers to a form. Its models must take tools."""

    def document(self, writer: Writer, session: WriterSession, text: str) -> Any:
        """What the rest of a session's answer makes of a text."""
        while True:
            (written,) = write(writer, [session], [work(200, delimiters=("\0",))])
            text += written.text
            keep(session, written)
            if written.end != "limit":
                return json.loads(text)

    @pytest.mark.parametrize("seed", [None, 1, 2, 3])
    def test_a_document_keeps_to_its_form(self, writer: Writer, seed: int | None) -> None:
        session = writer.open(PROMPTS[0], FORMED)
        (written,) = write(writer, [session], [work(200, delimiters=("\0",), seed=seed)])
        assert written.end == "eos"
        assert json.loads(written.text) in DOCUMENTS
        session.close()

    @pytest.mark.parametrize("seed", [1, 2])
    def test_the_form_goes_on_over_steps(self, writer: Writer, seed: int) -> None:
        session = writer.open(PROMPTS[0], FORMED)
        pieces: list[Written] = []
        while not pieces or pieces[-1].end != "eos":
            (written,) = write(writer, [session], [work(3, delimiters=("\0",), seed=seed)])
            keep(session, written)
            pieces.append(written)
        assert len(pieces) > 1
        assert json.loads("".join(written.text for written in pieces)) in DOCUMENTS
        session.close()

    def test_a_rejected_part_leaves_no_trace(self, writer: Writer) -> None:
        straight, winding = writer.open(PROMPTS[0], FORMED), writer.open(PROMPTS[0], FORMED)
        (first,) = write(writer, [straight], [work(2, delimiters=("\0",))])
        for seed in (5, 6):  # Rejected twice, at lengths of their own.
            write(writer, [winding], [work(seed, delimiters=("\0",), seed=seed)])
        keep(straight, first)
        keep(winding, first, own=False)
        assert self.document(writer, straight, first.text) == self.document(writer, winding, first.text)
        for session in (straight, winding):
            session.close()

    def test_company_without_a_form_is_free(self, writer: Writer) -> None:
        formed, free = writer.open(PROMPTS[0], FORMED), writer.open(PROMPTS[1])
        document, words = write(writer, [formed, free], [work(200, delimiters=("\0",)), work(5)])
        alone = writer.open(PROMPTS[1])
        assert told(words) == told(write(writer, [alone], [work(5)])[0])
        assert json.loads(document.text) in DOCUMENTS
        for session in (formed, free, alone):
            session.close()

    @pytest.mark.parametrize("seed", [None, 1, 2])
    def test_a_forced_call_can_be_read(self, writer: Writer, seed: int | None) -> None:
        assert writer.takes_tools
        session = writer.open(PROMPTS[0], CALLED)
        (written,) = write(writer, [session], [work(200, delimiters=("\0",), seed=seed)])
        assert session.reader is not None
        (call,) = session.reader.read(written.text) or ()
        assert isinstance(call, ToolCall)
        assert (call.name, call.arguments in DOCUMENTS) == ("look", True)
        session.close()
