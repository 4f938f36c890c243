"""Results are plain, frozen and survive JSON."""

from __future__ import annotations

import inspect
import json
import pickle

import pytest
from pydantic import BaseModel, ValidationError

from rsd_integrations import FLOPs, Generation, RSDConfig, Step, StepEvent, Usage
from rsd_integrations import errors as errors_module
from rsd_integrations.errors import ConfigError, DeviceMemoryError, RSDError
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import ToolCall

STEPS = ["é\n\n", "\N{SNOWMAN} {}\n\n", "so"]


def events(**fields: object) -> list[StepEvent]:
    with scripted_pipeline(STEPS, [text.upper() for text in STEPS], [0.9, 0.1]) as pipe:
        return list(pipe.stream("x", seed=1, **fields))


@pytest.mark.parametrize("fields", [{}, {"threshold": 0}, {"threshold": 2}, {"max_tokens": 2}])
def test_events_and_generations_survive_json(fields: dict[str, object]) -> None:
    told = events(**fields)
    for event in told:
        assert StepEvent.model_validate_json(event.model_dump_json()) == event
    generation = told[-1].generation
    assert generation is not None
    assert Generation.model_validate_json(generation.model_dump_json()) == generation
    assert pickle.loads(pickle.dumps(generation)) == generation


def test_results_are_frozen() -> None:
    generation = events()[-1].generation
    assert generation is not None
    with pytest.raises(ValidationError, match="frozen"):
        generation.text = "other"  # type: ignore[misc]


def test_json_holds_what_is_computed_and_older_versions_read_newer_ones() -> None:
    generation = events()[-1].generation
    assert generation is not None
    saved = json.loads(generation.model_dump_json())
    assert saved["acceptance_rate"] == 1 / 3
    assert saved["usage"]["total_tokens"] == generation.usage.total_tokens
    saved["of_a_later_version"] = saved["steps"][0]["this_too"] = 1
    assert Generation.model_validate(saved) == generation


def test_results_with_tool_calls_can_be_keys() -> None:
    call = ToolCall(id="abcdefghi", name="add", arguments={"a": [1]})
    made = [
        Generation(text="", tool_calls=(call.model_copy(),), finish_reason="stop", seed=0, threshold=0.7)
        for _ in range(2)
    ]
    assert len({*made}) == 1


def test_the_acceptance_rate_counts_steps_not_tokens() -> None:
    generation = events()[-1].generation
    assert generation is not None
    assert generation.acceptance_rate == 1 / 3
    assert Generation(text="", finish_reason="stop", seed=0, threshold=0.7).acceptance_rate is None


def test_flops_add_and_divide() -> None:
    assert FLOPs(paper=1, total=2) + FLOPs(paper=3, total=4) == FLOPs(paper=4, total=6)
    assert FLOPs(paper=1, total=2).share_of(FLOPs(paper=2, total=8)) == FLOPs(paper=0.5, total=0.25)
    assert FLOPs(paper=1, total=2).share_of(FLOPs()) is None


@pytest.mark.parametrize("name", errors_module.__all__)
def test_errors_carry_a_hint_and_survive_pickling(name: str) -> None:
    kind = getattr(errors_module, name)
    made = kind("it broke.", hint="Mend it.")
    made.__notes__ = ["in the third batch"]  # As of ``add_note``, from Python 3.11 on.
    error = pickle.loads(pickle.dumps(made))
    assert error.__notes__ == made.__notes__
    assert isinstance(error, RSDError)
    assert type(error) is kind
    assert (error.message, error.hint, str(error)) == ("it broke.", "Mend it.", "it broke. Mend it.")


def test_errors_are_also_what_callers_expect() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(DeviceMemoryError, errors_module.BackendError)
    assert issubclass(errors_module.EngineClosedError, RuntimeError)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (RSDConfig, ["    top_k: Only the k likeliest tokens; None for all.", "(``pipe.generate(prompt"]),
        (Usage, ["    flops: All three models together."]),
        (Step, ["    accepted: Whether the draft's step was kept."]),
        (
            StepEvent,
            [
                "    delta: committed, finished: answer text",
                '\n        happen is left out: no PRM, no "scored"',
            ],
        ),
        (Generation, ["    threshold: The threshold that was in force; None"]),
    ],
)
def test_help_tells_what_the_fields_mean(model: type[BaseModel], words: list[str]) -> None:
    told = inspect.getdoc(model) or ""
    assert told.count("\nAttributes:\n") == 1
    for word in words:
        assert f"\n{word.lstrip(chr(10))}" in told
    summary = told.partition("\n")[0]
    assert summary.endswith(".")
    assert not summary.startswith(" ")


def test_every_field_of_the_config_has_a_meaning() -> None:
    assert [name for name, field in RSDConfig.model_fields.items() if not field.description] == []
