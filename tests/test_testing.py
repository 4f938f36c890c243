"""Scripted models, which users write tests with."""

from __future__ import annotations

import pytest

from rsd_integrations.errors import ConfigError
from rsd_integrations.testing import ScriptedScorer, scripted_pipeline


def test_a_step_without_a_delimiter_ends_the_answer() -> None:
    with scripted_pipeline(["one\n\nleft out", "two", "three"]) as pipe:
        answer = pipe.generate("x")
    assert (answer.text, answer.finish_reason) == ("one\n\ntwo", "stop")


def test_a_pipeline_names_its_models_and_its_size() -> None:
    with scripted_pipeline("a", max_batch_size=3) as pipe:
        models = "draft='scripted-draft', target='scripted-target', prm='scripted-prm'"
        assert repr(pipe) == f"<RSDPipeline: {models}, max_batch_size=3>"
    assert repr(pipe) == f"<RSDPipeline: {models}, max_batch_size=3, closed>"


@pytest.mark.parametrize("reward", [0.2, 1])
def test_a_lone_text_is_a_step_and_a_lone_number_the_reward_of_all(reward: float) -> None:
    with (
        scripted_pipeline("hello", "hi", reward) as lone,
        scripted_pipeline(["hello"], ["hi"], [reward]) as one,
    ):
        assert lone.generate("x").text == one.generate("x").text == ("hi" if reward < 0.5 else "hello")
    with scripted_pipeline(["a\n\n", "b\n\n", "c"], rewards=reward) as pipe:
        assert pipe.score("x", ["a", "b", "c"]) == [reward] * 3


def test_no_rewards_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rewards=\[\] are none\. Give one at least"):
        scripted_pipeline(["a"], rewards=[])
    with pytest.raises(ConfigError, match=r"rewards=\(\) are none"):
        ScriptedScorer(())
