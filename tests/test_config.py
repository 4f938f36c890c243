"""Every knob is checked once, by name, before anything runs."""

from __future__ import annotations

import math
import re
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from rsd_integrations import RSDConfig, RSDPipeline
from rsd_integrations.config import ConfigFields, RSDFields
from rsd_integrations.errors import ConfigError, RewardError
from rsd_integrations.options import TrioOptions
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.weighting import NAMES, acceptance_probability, logistic, sigmoid


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": -0.1},
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"weighting": "linear"},
        {"acceptance_rate": 1.1},
        {"acceptance_rate": -1},
        {"acceptance_rate": math.nan},
        {"beta": 0},
        {"beta": math.inf},
        {"step_delimiter": ""},
        {"step_delimiter": ()},
        {"step_delimiter": ("\n", "")},
        {"max_tokens": 0},
        {"max_steps": 0},
        {"max_step_tokens": 0},
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"min_p": 1.1},
        {"min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"repetition_penalty": 1e-38},
        {"draft_candidates": 0},
        {"seed": -1},
        {"stop": ("",)},
        {"n": 2},
        {"max_new_tokens": 5},
        {"stop": 3},
        {"seed": 2**64},
        {"max_tokens": 2**64},
    ],
    ids=str,
)
def test_what_is_refused_names_the_field(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValidationError, match=name):
        RSDConfig(**fields)
    with pytest.raises(ConfigError, match=rf"{name}.*RSDConfig\) tells what"):
        RSDConfig(seed=1).override(**fields)
    with scripted_pipeline(["a"]) as pipe:
        with pytest.raises(ConfigError, match=name):
            pipe.generate("x", **fields)
        assert pipe.backend.draft.open_sessions == 0


def test_as_many_strings_and_as_large_numbers_as_there_may_be() -> None:
    """Each string is looked for behind each token: a hundred thousand took all requests' time."""
    many = [str(n) for n in range(256)]
    config = RSDConfig(stop=many, step_delimiter=many, seed=2**64 - 1, max_tokens=2**64 - 1)
    assert config.stop == config.step_delimiter == tuple(many)
    for name in ("stop", "step_delimiter"):
        with pytest.raises(ConfigError, match=rf"^{name}=\['0', .*at most 256 items.* not 257"):
            config.override(**{name: [*many, "x"]})


@pytest.mark.parametrize(
    "name", ["seed", "max_tokens", "max_steps", "max_step_tokens", "top_k", "draft_candidates", "threshold"]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_python_does_not_print_is_refused(name: str, sign: int) -> None:
    value = sign * 10**5000
    with pytest.raises(ConfigError, match=rf"^{name}=\(int too long to be shown\): Input"):
        RSDConfig().override(**{name: value})


@pytest.mark.parametrize(
    ("name", "told"),
    [("treshold", "Did you mean 'threshold'?"), ("frequency", "Known are: threshold, weighting, ")],
)
def test_a_misspelt_field_is_told_what_is_near(name: str, told: str) -> None:
    message = rf"unknown field '{name}'\. " + re.escape(told)
    with pytest.raises(ValidationError, match=message):
        RSDConfig(**{name: 1})
    with pytest.raises(ConfigError, match=message) as caught:
        RSDConfig().override(**{name: 1})
    assert "?." not in str(caught.value) and ".." not in str(caught.value)


def test_a_lone_string_is_one_entry() -> None:
    config = RSDConfig(stop="END", step_delimiter="\n")
    assert (config.stop, config.step_delimiter) == (("END",), ("\n",))
    assert RSDConfig(stop=["a", "b"]).stop == ("a", "b")
    assert RSDConfig(stop=None).stop == ()


def test_override_keeps_the_rest() -> None:
    weighting = lambda reward: reward  # noqa: E731
    config = RSDConfig(weighting=weighting, seed=3, stop=("a",))
    changed = config.override(seed=4)
    assert (changed.weighting, changed.seed, changed.stop) == (weighting, 4, ("a",))
    assert config.seed == 3
    assert config.override() is config


def test_what_a_copy_changes_is_validated() -> None:
    config = RSDConfig(seed=3, chat_template_kwargs={"words": ["a"]})
    copied = config.model_copy(update={"stop": "END", "threshold": 1})
    assert copied == config.override(stop="END", threshold=1)
    assert type(copied.threshold) is float
    for wrong in ({"threshold": -3}, {"max_token": 5}, {"weighting": "stepp"}, {"top_k": "many"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            config.model_copy(update=wrong)
    deep, shallow = config.model_copy(deep=True), config.model_copy()
    assert deep == shallow == config
    assert deep.chat_template_kwargs["words"] is not config.chat_template_kwargs["words"]
    assert shallow is not config
    with scripted_pipeline(["boxed"]) as pipe:
        assert pipe.generate("x", config=config.override(chat_template_kwargs={}, stop="xe")).text == "bo"


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RSDConfig().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({"threshold": 0.0}, "draft"),
        ({"threshold": 1e-9}, "rsd"),
        ({"threshold": 1.0}, "rsd"),
        ({"threshold": 1.0001}, "target"),
        ({"threshold": None}, "rsd"),
        ({"threshold": 0.0, "weighting": "logistic"}, "rsd"),
        ({"threshold": 2.0, "weighting": "clip"}, "rsd"),
        ({"threshold": 0.0, "weighting": lambda reward: 0.0}, "rsd"),
    ],
)
def test_who_has_to_run(fields: dict[str, Any], mode: str) -> None:
    assert RSDConfig(**fields).mode == mode


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reward", [0.0, 0.3, 0.7, 1.0])
def test_weightings_are_probabilities_and_do_not_fall(name: str, reward: float) -> None:
    omega = RSDConfig(weighting=name, threshold=0.7).acceptance()
    probability = acceptance_probability(omega, reward)
    assert 0.0 <= probability <= 1.0
    assert probability <= acceptance_probability(omega, min(1.0, reward + 0.1))


@pytest.mark.parametrize("name", NAMES)
def test_a_threshold_is_told_of_weightings_that_use_it(name: str) -> None:
    low, high = (RSDConfig(weighting=name, threshold=threshold) for threshold in (0.2, 0.9))
    differ = any(low.acceptance()(reward) != high.acceptance()(reward) for reward in (0.0, 0.3, 0.5, 1.0))
    assert low.uses_threshold == differ
    assert low.threshold_in_force == (0.2 if differ else None)


@pytest.mark.parametrize(
    ("fields", "reward", "probability"),
    [
        ({"weighting": "step", "threshold": 0.7}, 0.7, 1.0),
        ({"weighting": "step", "threshold": 0.7}, 0.6999, 0.0),
        ({"weighting": "constant", "acceptance_rate": 0.25}, 0.9, 0.25),
        ({"weighting": "clip"}, 0.4, 0.4),
        ({"weighting": "sigmoid"}, 1.0, 1 / (1 + math.exp(-1))),
        ({"weighting": "logistic", "threshold": 0.5, "beta": 2.0}, 1.0, 1 / (1 + math.exp(-1))),
        ({"weighting": "logistic", "threshold": 0.5}, 0.5, 0.5),
    ],
)
def test_the_values_of_table_1(fields: dict[str, Any], reward: float, probability: float) -> None:
    assert RSDConfig(**fields).acceptance()(reward) == pytest.approx(probability)


def test_no_weighting_overflows() -> None:
    assert logistic(1.0, 1e6)(0.0) == 0.0
    assert logistic(0.0, 1e6)(1.0) == 1.0
    assert sigmoid(0.0) == 0.5


@pytest.mark.parametrize("value", [math.nan, -0.01, 1.01])
def test_no_probability_is_an_error(value: float) -> None:
    with pytest.raises(RewardError, match="no probability"):
        acceptance_probability(lambda reward: value, 0.5)


def test_a_fresh_seed_is_told_and_reproduces() -> None:
    with scripted_pipeline(["a\n\n"] * 8, ["A\n\n"] * 8, [0.5]) as pipe:
        first = pipe.generate("x", weighting="clip", max_steps=8)
        again = pipe.generate("x", weighting="clip", max_steps=8, seed=first.seed)
        assert again.text == first.text
        seeds = {pipe.generate("x").seed for _ in range(5)}
    assert len(seeds) == 5


def test_a_failing_weighting_is_named_with_its_reward() -> None:
    with (
        scripted_pipeline(["One."], rewards=[0.5]) as pipe,
        pytest.raises(RewardError, match=r"reward 0\.5.*Zero"),
    ):
        pipe.generate("Hi.", weighting=lambda reward: 1 / 0)


def test_a_config_must_be_one() -> None:
    with scripted_pipeline(["One."]) as pipe, pytest.raises(ConfigError, match="is no RSDConfig"):
        pipe.generate("Hi.", config={"threshold": 0.5})  # type: ignore[arg-type]


def test_equal_configs_have_one_hash() -> None:
    one, other = (RSDConfig(threshold=0.5, chat_template_kwargs={"thinking": True}) for _ in range(2))
    assert one == other
    assert len({one, other, RSDConfig()}) == 2


def test_typed_fields_are_those_of_a_config() -> None:
    told, fields = (get_type_hints(kind, include_extras=True) for kind in (ConfigFields, RSDFields))
    assert told == {name: fields[name] for name in RSDConfig.model_fields}


def test_typed_options_are_those_of_loading() -> None:
    taken = get_type_hints(RSDPipeline.from_pretrained)
    del taken["return"]
    assert get_type_hints(TrioOptions) == taken
