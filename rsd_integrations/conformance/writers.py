"""Tests of a ``Writer``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rsd_integrations.conformance.steps import DELIMITERS, PROMPTS, finish, keep, told, work, write
from rsd_integrations.protocols import DraftStep, GuessStep, TargetStep, Writer, WriterSession, Written
from rsd_integrations.text.segment import StepBoundary
from rsd_integrations.types import Prompt

LIKELIEST: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-6}]
"""Ways to sample that leave only the likeliest token."""


class WriterKit:
    """Tests of a ``Writer``."""

    def one(self, writer: Writer, prompt: Prompt = PROMPTS[0], **options: Any) -> Written:
        """The first step of an answer."""
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

    @pytest.mark.parametrize("sampled", LIKELIEST, ids=str)
    def test_how_it_is_to_sample_is_heeded(self, writer: Writer, sampled: dict[str, Any]) -> None:
        """Of several tokens that are equally likely a filter keeps all: such models override this."""
        greedy = self.one(writer, delimiters=("\0",), max_tokens=12)
        for seed in range(4):
            drawn = self.one(writer, delimiters=("\0",), max_tokens=12, seed=seed, **sampled)
            assert told(drawn) == told(greedy)

    def test_a_penalty_is_heeded(self, writer: Writer) -> None:
        """Where the model draws at all: a script is a script."""
        free: dict[str, Any] = {"delimiters": ("\0",), "max_tokens": 40}
        if len({told(self.one(writer, seed=seed, temperature=2.0, **free)) for seed in range(4)}) == 1:
            pytest.skip("it draws nothing: the step is the same for all seeds")
        plain, penalized = (
            [told(self.one(writer, prompt, repetition_penalty=penalty, **free)) for prompt in PROMPTS]
            for penalty in (1.0, 50.0)
        )
        assert plain != penalized

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
        """Whether the writer continues a step that a limit cut (scripted ones begin their next line)."""
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

    def test_a_step_of_another_vocabulary_is_taken_by_its_text(self, writer: Writer) -> None:
        text, vocabulary = "so it is ", self.one(writer).vocabulary
        known, foreign = writer.open(PROMPTS[0]), writer.open(PROMPTS[0])
        keep(known, Written(text, writer.encode(text), "delimiter", vocabulary=vocabulary), own=False)
        keep(foreign, Written(text, (1, 1, 1), "delimiter", vocabulary=f"not {vocabulary}"), own=False)
        after = write(writer, [known, foreign], [work(6), work(6)])
        assert told(after[0]) == told(after[1])
        for session in (known, foreign):
            session.close()

    @pytest.mark.parametrize("seed", [None, 7])
    @pytest.mark.parametrize("offered", ["a draft's", "nonsense", "none"])
    def test_guesses_change_nothing(self, writer: Writer, seed: int | None, offered: str) -> None:
        """Neither a rejected step nor what is guessed behind it, where a target wants that."""
        rejected = self.one(writer, PROMPTS[1], max_tokens=9, seed=3)
        plain, guessing, draft = (writer.open(PROMPTS[0]) for _ in range(3))
        steps: list[Any] = [work(24, seed=seed, kind=TargetStep, delimiters=("\0",)) for _ in range(2)]
        (expected,) = write(writer, [plain], steps[:1])
        guessing.begin(replace(steps[1], rejected=rejected))

        def offer() -> None:
            if count := guessing.wanted:
                tokens = rejected.token_ids[:count] if offered == "nonsense" else ()
                if offered == "a draft's":
                    tokens = self.guesses(writer, draft, guessing.so_far, count)
                guessing.guess(tokens)

        assert told(finish(writer, guessing, offer)) == told(expected)
        for session in (plain, guessing, draft):
            session.close()

    def guesses(
        self, writer: Writer, draft: WriterSession, tokens: tuple[int, ...], count: int
    ) -> tuple[int, ...]:
        """What a draft would write behind these tokens of a step: ``count`` at most."""
        draft.begin(GuessStep(tokens, count))
        found = finish(writer, draft)
        assert len(found.token_ids) <= count
        return found.token_ids

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
        written = finish(writer, session)
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
        written = finish(writer, other) if written is None else written
        other.close()
        assert isinstance(written, Written)
        assert told(written) == told(self.one(writer, PROMPTS[1], seed=2))
