"""Several candidates for a step: which is tested, what is told and counted, what they cost a batch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from rsd_integrations import RSDConfig, RSDPipeline
from rsd_integrations.backends.shared.writing import render
from rsd_integrations.backends.torch import writer as torch_writer
from rsd_integrations.errors import ConfigError, PromptError, RewardError, RSDError
from rsd_integrations.output import Output
from rsd_integrations.protocols import Backend, DraftStep, Scored, ScoreStep, Together, WindowFull
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter, scripted_pipeline
from rsd_integrations.types import Candidate
from tests.gated import Gated, open_sessions, wait_for
from tests.test_algorithm import Driver, step


def best_of(count: int, **fields: Any) -> RSDConfig:
    return RSDConfig(draft_candidates=count, temperature=1.0, **{"threshold": 0.7, **fields})


def in_turn(*texts: str) -> Callable[[Any, int, str], str]:
    """A script that gives each candidate the next of these, over and over."""
    turns = itertools.cycle(texts)
    return lambda prompt, index, text: next(turns)


@pytest.fixture(scope="module")
def pocket() -> Iterator[RSDPipeline]:
    with RSDPipeline.pocket() as pipe:
        yield pipe


# The story.


def test_the_best_is_tested_and_kept() -> None:
    driver = Driver(best_of(3))
    outcome = driver.run(
        [
            [step("a\n\n"), step("bb\n\n"), step("c\n\n")],
            [Scored(0.2, 2), Scored(0.9, 3), Scored(0.8, 2)],
            [step("d\n\n"), step("e", "eos"), step("f\n\n")],
            [Scored(0.1, 2), Scored(0.3, 2), Scored(0.2, 2)],
            step("T", "eos"),
        ]
    )
    drafts, scores = driver.asked[0], driver.asked[1]
    assert isinstance(drafts, Together)
    assert [type(piece) for piece in drafts.pieces] == [DraftStep] * 3
    assert scores == Together((ScoreStep("a"), ScoreStep("bb"), ScoreStep("c")), (0, 1, 2))
    assert [(kept.source, kept.written.text, kept.candidate) for kept in driver.kept] == [
        ("draft", "bb\n\n", 1),
        ("target", "T", 1),
    ]
    first, second = outcome.steps
    assert (first.text, first.reward, first.accepted) == ("bb\n\n", 0.9, True)
    assert (second.text, second.rejected_text, second.reward) == ("T", "e", 0.3)
    assert first.candidates == (
        Candidate(text="a\n\n", reward=0.2),
        Candidate(text="bb\n\n", reward=0.9),
        Candidate(text="c\n\n", reward=0.8),
    )
    assert (first.draft_tokens, first.scored_tokens) == (3 + 4 + 3, 7)
    assert (outcome.draft_generated, outcome.draft_discarded) == (10 + 7, 10 - 4 + 7)
    assert (outcome.scored, outcome.scored_discarded) == (13, 7 - 3 + 6)


def test_the_target_guesses_from_the_best() -> None:
    driver = Driver(best_of(2))
    driver.send()
    driver.send([step("a\n\n"), step("b\n\n")])
    target = driver.send([Scored(0.1, 1), Scored(0.2, 1)])
    assert target.rejected == step("b\n\n")


def test_events_tell_all_candidates() -> None:
    driver = Driver(best_of(2, threshold=0.0))
    driver.run([[step("a", "eos"), step("b", "eos")], [Scored(0.1, 1), Scored(0.2, 1)]])
    told = {event.type: event for event in driver.events}
    assert (told["proposed"].text, told["accepted"].text) == ("a", "b")
    assert told["proposed"].candidates == (Candidate(text="a"), Candidate(text="b"))
    assert told["scored"].candidates == (
        Candidate(text="a", reward=0.1),
        Candidate(text="b", reward=0.2),
    )
    assert (told["scored"].text, told["scored"].reward) == ("b", 0.2)
    assert told["accepted"].candidates == ()


def test_of_equals_the_first_is_taken_and_one_text_is_scored_once() -> None:
    driver = Driver(best_of(4))
    outcome = driver.run(
        [
            [step("a", "eos"), step("b", "eos"), step("a", "eos"), step("b\n\n")],
            [Scored(0.8, 1), Scored(0.8, 1)],
        ]
    )
    assert driver.asked[1] == Together((ScoreStep("a"), ScoreStep("b")), (0, 1))
    assert (driver.kept[0].candidate, outcome.text) == (0, "a")
    assert [candidate.reward for candidate in outcome.steps[0].candidates] == [0.8] * 4
    assert (outcome.scored, outcome.scored_discarded) == (2, 1)


def test_a_candidate_without_room_in_the_prm_is_the_worst() -> None:
    driver = Driver(best_of(2, threshold=0.0))
    driver.run([[step("long", "eos"), step("b", "eos")], [WindowFull(), Scored(0.0, 1)]])
    assert driver.kept[0].candidate == 1
    driver = Driver(best_of(2, threshold=0.0))
    outcome = driver.run([[step("long", "eos"), step("longer", "eos")], [WindowFull()] * 2, step("T", "eos")])
    assert (outcome.text, outcome.steps[0].reward) == ("T", None)


def test_an_empty_candidate_has_the_last_reward() -> None:
    driver = Driver(best_of(2))
    outcome = driver.run(
        [
            [step("", "eos"), step("b\n\n")],
            [Scored(0.9, 1)],
            [step("", "eos"), step("c\n\n")],
            [Scored(0.8, 1)],
        ]
    )
    # Nothing at all is worth nothing; nothing more is worth what is there.
    assert (outcome.text, [s.reward for s in outcome.steps]) == ("b\n\n", [0.9, 0.9])


def test_only_empty_candidates_ask_for_nothing() -> None:
    driver = Driver(best_of(2, threshold=0.0))
    outcome = driver.run([[step("", "eos"), step("", "eos")]])
    assert outcome.steps[0].reward == 0.0


def test_each_candidate_draws_for_itself() -> None:
    driver = Driver(best_of(3))
    work = driver.send()
    points = [piece.sampling.draw() for piece in work.pieces]
    assert len(set(points)) == 3
    alone = Driver(RSDConfig(temperature=1.0, threshold=0.7)).send()
    assert alone.sampling.draw() == points[0]


@pytest.mark.parametrize("reward", [math.nan, 1.5, 10**400])
def test_a_wrong_reward_of_any_candidate_is_an_error(reward: float) -> None:
    driver = Driver(best_of(2))
    with pytest.raises(RewardError, match=r"step 0: 'b"):
        driver.run([[step("a\n\n"), step("b\n\n")], [Scored(0.9, 1), Scored(reward, 1)]])


def test_rounding_puts_no_candidate_s_reward_out_of_bounds() -> None:
    driver = Driver(best_of(2))
    outcome = driver.run(
        [[step("a", "eos"), step("b", "eos")], [Scored(0.9, 1), Scored(1.0000002384185791, 1)]]
    )
    assert (outcome.text, outcome.steps[0].reward) == ("b", 1.0)


# The settings.


def test_greedy_candidates_are_refused() -> None:
    with pytest.raises(ValidationError, match="draft_candidates=3 are all the same at temperature 0"):
        RSDConfig(draft_candidates=3)
    with pytest.raises(ConfigError, match="set a temperature above 0"):
        best_of(2).override(temperature=0.0)


@pytest.mark.parametrize(
    ("threshold", "mode", "rows"), [(0.0, "rsd", 3), (0.7, "rsd", 3), (1.5, "target", 1)]
)
def test_the_prm_judges_candidates_even_if_any_is_accepted(threshold: float, mode: str, rows: int) -> None:
    config = best_of(3, threshold=threshold)
    assert (config.mode, config.rows) == (mode, rows)


def test_more_candidates_than_rows_are_refused() -> None:
    with scripted_pipeline(["a"], max_batch_size=2) as pipe:
        with pytest.raises(ConfigError, match=r"draft_candidates=3 do not fit max_batch_size=2"):
            pipe.generate("q", draft_candidates=3, temperature=1.0)
        assert pipe.generate("q", draft_candidates=3, temperature=1.0, threshold=2.0).text == "a"


# The engine.


def test_a_candidate_that_is_written_waits_for_the_others() -> None:
    texts = iter(["a\n\n", "long\n\n"])
    draft = ScriptedWriter(lambda prompt, index, text: next(texts))
    with RSDPipeline(Backend(draft, ScriptedWriter([]), ScriptedScorer([1.0]))) as pipe:
        out = pipe.generate("x", draft_candidates=2, temperature=1.0, max_steps=1)
    assert draft.batches == [2, 2, 2, 1, 1, 1]
    assert out.steps[0].draft_tokens == 9


def test_rows_are_shared_fairly() -> None:
    """Four rows: a request of three candidates leaves one, and the next of three waits for its turn."""
    draft = Gated(in_turn("x"))
    with RSDPipeline(Backend(draft, ScriptedWriter([]), ScriptedScorer([1.0]), 4)) as pipe:
        options = {"draft_candidates": 3, "temperature": 1.0}
        streams = [pipe.stream("a", **options), pipe.stream("b"), pipe.stream("c", **options)]
        wait_for(draft.entered.is_set)
        draft.gate.set()
        assert [stream.result().text for stream in streams] == ["x"] * 3
        assert max(draft.batches) <= 4
        assert open_sessions(pipe) == 0


def test_sessions_are_told_whose_step_was_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite is the target's own, whichever candidate it replaces; of a kept step just one is."""
    told: dict[str, list[bool]] = {"draft": [], "target": [], "prm": []}
    with scripted_pipeline(
        in_turn("a\n\n", "b\n\n"), ["T\n\n", "U"], lambda prompt, index, text: 0.2 if "b" in text else 0.1
    ) as pipe:
        for role, own in told.items():
            opened = getattr(pipe.backend, role).open

            def watched(*args: Any, opened: Any = opened, own: list[bool] = own) -> Any:
                session = opened(*args)
                commit = session.commit

                def recorded(kept: Any, **fields: bool) -> None:
                    own.append(fields["own"])
                    commit(kept, **fields)

                monkeypatch.setattr(session, "commit", recorded)
                return session

            monkeypatch.setattr(getattr(pipe.backend, role), "open", watched)
        pipe.generate("q", draft_candidates=2, temperature=1.0, threshold=0.15, max_steps=1)
        assert told == {"draft": [False, True], "target": [False], "prm": [False, True]}
        for own in told.values():
            own.clear()
        pipe.generate("q", draft_candidates=2, temperature=1.0, threshold=0.9, max_steps=1)
        assert told == {"draft": [False, False], "target": [True], "prm": [False, False]}


def test_a_failing_candidate_fails_its_own_request() -> None:
    def script(prompt: Any, index: int, text: str) -> Any:
        return next(turns) if prompt == "bad" else "fine"

    turns = iter(["a\n\n", RSDError("this one broke."), "c\n\n"])
    with scripted_pipeline(script) as pipe:
        bad = pipe.stream("bad", draft_candidates=3, temperature=1.0)
        good = pipe.stream("good", draft_candidates=3, temperature=1.0)
        with pytest.raises(RSDError, match="this one broke"):
            bad.result()
        assert good.result().text == "fine"
        assert open_sessions(pipe) == 0


def test_a_cancelled_request_counts_what_all_candidates_wrote() -> None:
    draft = Gated(in_turn("a" * 50))
    with RSDPipeline(Backend(draft, ScriptedWriter([]), ScriptedScorer([1.0]), 4)) as pipe:
        stream = pipe.stream("q", draft_candidates=4, temperature=1.0)
        assert draft.entered.wait(30)
        stream.cancel()
        draft.gate.set()
        generation = stream.result()
    assert generation.finish_reason == "cancelled"
    assert generation.usage.draft.generated == generation.usage.draft.discarded == 4


def test_pocket_candidates_with_a_form(pocket: RSDPipeline) -> None:
    """Each candidate keeps to the form on its own, whichever was committed before."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x y", "z"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = Output.of(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    for seed in range(4):
        generation = pocket.generate(
            "q", output=form, seed=seed, draft_candidates=3, temperature=1.5, max_step_tokens=3, threshold=0.0
        )
        assert json.loads(generation.text)["a"] in ("x y", "z")
        assert len(generation.steps) > 1


def test_company_changes_no_candidates(pocket: RSDPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where lone candidates wait for each other's scores, their draft writes on, perhaps in vain.
    monkeypatch.setattr(pocket._engine, "_score_rounds", 0)
    questions = [f"Ava has {n} marbles. She buys {n + 3} more. How many has she now?" for n in range(5)]
    options = [
        {"draft_candidates": 1 + n % 4, "temperature": 0.9, "seed": n, "threshold": 0.9} for n in range(5)
    ]
    alone = [pocket.generate(q, **o) for q, o in zip(questions, options, strict=True)]
    streams = [pocket.stream(q, **o) for q, o in zip(questions, options, strict=True)]
    for first, stream in zip(alone, streams, strict=True):
        second = stream.result()
        assert [s.text for s in second.steps] == [s.text for s in first.steps]
        assert second.usage.draft.forwarded == first.usage.draft.forwarded


def test_a_prompt_is_encoded_once_for_all_candidates(
    pocket: RSDPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no further if it is too long already: encoding holds up the requests at work."""
    encoded: list[str] = []
    backend: Any = pocket.backend
    roles = {id(backend.draft.tokenizer): "draft", id(backend.target.tokenizer): "target"}

    def counting(tokenizer: Any, *given: Any) -> Any:
        encoded.append(roles[id(tokenizer)])
        return render(tokenizer, *given)

    monkeypatch.setattr(torch_writer, "render", counting)
    pocket.generate("What is 2 + 2?", draft_candidates=3, temperature=1.0, seed=0, max_tokens=8)
    assert encoded == ["draft", "target"]
    encoded.clear()
    with pytest.raises(PromptError, match="do not fit the window"):
        pocket.generate("word " * 1200, draft_candidates=3, temperature=1.0)
    assert encoded == ["draft"]
