"""The story on its own: driven by hand, no engine, no thread, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rsd_integrations import RSDConfig
from rsd_integrations.algorithm import Cancelled, Outcome, rsd
from rsd_integrations.protocols import (
    DraftStep,
    Kept,
    Scored,
    ScoreStep,
    TargetStep,
    WindowFull,
    Written,
)
from rsd_integrations.types import StepEvent


def step(text: str, end: Any = "delimiter", cut: int | None = None) -> Written:
    return Written(text, tuple(map(ord, text)), end, cut)


class Driver:
    """Answers the story's requests from lists and remembers what it asked for."""

    def __init__(self, config: RSDConfig, *, seed: int = 0, max_tokens: int = 1000) -> None:
        self.story = rsd(config, seed=seed, max_tokens=max_tokens, clock=lambda: 0.0)
        self.asked: list[Any] = []
        self.kept: list[Kept] = []
        self.events: list[StepEvent] = []
        self.outcome: Outcome | None = None

    def send(self, result: Any = None) -> Any:
        """The next work, None at the end."""
        send = self.story.throw if isinstance(result, BaseException) else self.story.send
        try:
            while True:
                item = send(result)
                send, result = self.story.send, None
                if isinstance(item, Kept):
                    self.kept.append(item)
                elif isinstance(item, StepEvent):
                    self.events.append(item)
                else:
                    self.asked.append(item)
                    return item
        except StopIteration as end:
            self.outcome = end.value
            return None

    def run(self, results: Sequence[Any]) -> Outcome:
        """Send all results; the story must end with the last."""
        self.send()
        for result in results:
            assert self.outcome is None, "the story ended early"
            self.send(result)
        assert self.outcome is not None, f"the story goes on: {self.asked[-1]!r}"
        return self.outcome


@pytest.fixture
def config() -> RSDConfig:
    return RSDConfig(threshold=0.7)


def kinds(driver: Driver) -> str:
    return "".join({DraftStep: "d", ScoreStep: "s", TargetStep: "t"}[type(work)] for work in driver.asked)


def test_draft_score_keep_or_rewrite(config: RSDConfig) -> None:
    driver = Driver(config)
    outcome = driver.run(
        [
            step("a\n\n"),
            Scored(0.7, 4),
            step("b\n\n"),
            Scored(0.69, 5),
            step("B\n\n"),
            step("c", "eos"),
            Scored(1.0, 1),
        ]
    )
    assert kinds(driver) == "dsdstds"
    assert outcome.text == "a\n\nB\n\nc"
    assert [(s.source, s.accepted, s.reward, s.rejected_text) for s in outcome.steps] == [
        ("draft", True, 0.7, None),
        ("target", False, 0.69, "b\n\n"),
        ("draft", True, 1.0, None),
    ]
    assert [kept.source for kept in driver.kept] == ["draft", "target", "draft"]
    assert [work.body for work in driver.asked if isinstance(work, ScoreStep)] == ["a", "b", "c"]
    assert driver.asked[4].rejected == step("b\n\n")
    assert (outcome.draft_generated, outcome.draft_discarded, outcome.target_generated) == (7, 3, 3)
    assert (outcome.scored, outcome.scored_discarded, outcome.completion_tokens) == (10, 5, 7)
    assert outcome.finish_reason == "stop"


@pytest.mark.parametrize(("threshold", "asked"), [(0.0, "dd"), (1.01, "tt")])
def test_models_that_cannot_matter_are_not_asked(threshold: float, asked: str) -> None:
    driver = Driver(RSDConfig(threshold=threshold))
    outcome = driver.run([step("a\n\n"), step("b", "eos")])
    assert kinds(driver) == asked
    assert [s.reward for s in outcome.steps] == [None, None]
    assert [s.accepted for s in outcome.steps] == [asked == "dd"] * 2


def test_the_budget_is_the_answer_s_over_all_steps() -> None:
    driver = Driver(RSDConfig(threshold=0.0, max_step_tokens=5), max_tokens=12)
    driver.send()
    for size, budget in ((3, 5), (5, 5), (4, 4)):
        assert driver.asked[-1].max_tokens == budget
        driver.send(step("x" * size, "limit"))
    assert driver.outcome is not None
    assert (driver.outcome.finish_reason, driver.outcome.completion_tokens) == ("length", 12)


def test_a_rejected_step_costs_no_budget(config: RSDConfig) -> None:
    driver = Driver(config, max_tokens=10)
    driver.send()
    driver.send(step("abcdef\n\n"))
    driver.send(Scored(0.1, 1))
    assert driver.asked[-1].max_tokens == 10
    driver.send(step("A\n\n"))
    assert driver.asked[-1].max_tokens == 7


def test_max_steps_ends_by_length() -> None:
    driver = Driver(RSDConfig(threshold=0.0, max_steps=2))
    assert driver.run([step("a\n\n"), step("b\n\n")]).finish_reason == "length"


@pytest.mark.parametrize("end", ["eos", "stop"])
def test_an_end_beats_a_limit_that_is_reached_with_it(end: str) -> None:
    driver = Driver(RSDConfig(threshold=0.0, max_steps=1), max_tokens=1)
    assert driver.run([step("a", end, 1 if end == "stop" else None)]).finish_reason == "stop"


def test_an_empty_beginning_has_reward_0(config: RSDConfig) -> None:
    driver = Driver(config)
    outcome = driver.run([step("", "eos"), step("", "eos")])
    assert kinds(driver) == "dt"
    assert outcome.steps[0].reward == 0.0


def test_a_blank_beginning_has_reward_0_whoever_wrote_it(config: RSDConfig) -> None:
    driver = Driver(config)
    driver.run([step("\n", "limit"), step("\n", "limit"), step("\n", "limit"), step("x", "eos")])
    assert kinds(driver) == "dtdt"
    assert [event.reward for event in driver.events if event.type == "scored"] == [0.0, 0.0]


def test_an_empty_step_has_the_reward_of_the_last_one(config: RSDConfig) -> None:
    driver = Driver(config)
    outcome = driver.run([step("a\n\n"), Scored(0.9, 1), step("", "eos")])
    assert kinds(driver) == "dsd"
    assert (outcome.steps[1].reward, outcome.steps[1].scored_tokens) == (0.9, 0)


def test_an_empty_step_behind_a_rewritten_one_asks_for_its_reward(config: RSDConfig) -> None:
    driver = Driver(config)
    outcome = driver.run([step("a\n\n"), Scored(0.1, 1), step("A\n\n"), step("", "eos"), Scored(0.8, 0)])
    assert kinds(driver) == "dstds"
    assert driver.asked[-1] == ScoreStep("")
    assert [s.reward for s in outcome.steps] == [0.1, 0.8]


def test_a_rejected_empty_step_does_not_pass_its_reward_on(config: RSDConfig) -> None:
    driver = Driver(config)
    driver.run(
        [
            step("a\n\n"),
            Scored(0.9, 1),
            step("b\n\n"),
            Scored(0.2, 1),
            step("\n", "limit"),
            step("", "eos"),
            Scored(0.9, 0),
        ]
    )
    assert kinds(driver) == "dsdstds"  # The text's last step is "a": it is asked for again.


def test_cancel_keeps_what_is_committed(config: RSDConfig) -> None:
    for sent in range(5):
        driver = Driver(config)
        results = [step("a\n\n"), Scored(0.9, 1), step("b\n\n"), Scored(0.1, 1), step("B\n\n")]
        driver.send()
        for result in results[:sent]:
            driver.send(result)
        assert driver.send(Cancelled()) is None
        assert driver.outcome is not None
        assert driver.outcome.finish_reason == "cancelled"
        assert driver.outcome.text == ("a\n\n" if sent >= 2 else "")
        assert driver.outcome.draft_generated - driver.outcome.draft_discarded == (3 if sent >= 2 else 0)


def test_a_full_window_ends_by_length(config: RSDConfig) -> None:
    outcome = Driver(config).run([step("a\n\n"), Scored(0.9, 1), WindowFull()])
    assert (outcome.finish_reason, outcome.text) == ("length", "a\n\n")
    driver = Driver(config)
    outcome = driver.run([step("a\n\n"), Scored(0.9, 1), step("", "limit")])
    assert (outcome.finish_reason, outcome.text, len(outcome.steps)) == ("length", "a\n\n", 1)


def test_a_step_that_the_prm_has_no_room_for_is_not_accepted(config: RSDConfig) -> None:
    driver = Driver(config)
    outcome = driver.run([step("a\n\n"), WindowFull(), step("A", "eos")])
    assert kinds(driver) == "dst"
    assert [(s.source, s.reward, s.acceptance_probability) for s in outcome.steps] == [("target", None, 0.0)]
    assert "scored" not in [event.type for event in driver.events]


def test_an_error_passes_through(config: RSDConfig) -> None:
    driver = Driver(config)
    driver.send()
    with pytest.raises(ValueError, match="broken"):
        driver.send(ValueError("broken"))


def test_a_stop_string_over_several_steps_is_never_shown() -> None:
    driver = Driver(RSDConfig(threshold=0.0, stop=("b\n\nQ:",)))
    outcome = driver.run([step("a b\n\n"), step("Q: more", "stop", -3)])
    assert outcome.text == "a "
    assert [event.delta for event in driver.events if event.type == "committed"] == ["a ", ""]


def test_draws_are_fixed_by_the_seed_and_apart_by_role() -> None:
    config = RSDConfig(threshold=0.5, temperature=1.0)

    def draws(seed: int) -> tuple[float, float]:
        driver = Driver(config, seed=seed)
        driver.send()
        first = driver.asked[-1].sampling.draw()
        driver.send(step("a\n\n"))
        driver.send(Scored(0.0, 1))
        return first, driver.asked[-1].sampling.draw()

    assert draws(1) == draws(1)
    assert len({*draws(1), *draws(2)}) == 4


def test_acceptance_draws_once_a_step_and_strictly() -> None:
    """Probability 0 never accepts, 1 always, whatever the draw."""
    for probability, source in ((0.0, "target"), (1.0, "draft")):
        for seed in range(50):
            driver = Driver(RSDConfig(weighting="constant", acceptance_rate=probability), seed=seed)
            results = [step("a", "eos"), Scored(0.5, 1)] + ([step("A", "eos")] if probability == 0.0 else [])
            assert driver.run(results).steps[0].source == source


def test_the_last_step_of_max_steps_closes_the_answer() -> None:
    """What is held back of it (half a character) is given out then."""
    driver = Driver(RSDConfig(threshold=0.0, max_steps=2, max_step_tokens=5), max_tokens=100)
    driver.send()
    assert not driver.asked[-1].closing
    driver.send(step("xxxxx", "limit"))
    assert driver.asked[-1].closing
