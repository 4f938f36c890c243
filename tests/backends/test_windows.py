"""Small windows in any role, in any company: an answer ends by its length, never by an error."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.errors import PromptError
from tests.tiny_models import causal, token_classifier, tokenizer

SMALL = 64


def load(small: str, flavours: tuple[str, str, str], **options: Any) -> RSDPipeline:
    positions = {role: SMALL if role == small else 512 for role in ("draft", "target", "prm")}
    toks = [tokenizer(flavour) for flavour in flavours]
    return RSDPipeline.from_pretrained(
        (causal("Qwen2", 0, flavours[0], max_position_embeddings=positions["draft"]), toks[0]),
        (causal("Llama", 1, flavours[1], max_position_embeddings=positions["target"]), toks[1]),
        (token_classifier(0, flavours[2], max_position_embeddings=positions["prm"]), toks[2]),
        device="cpu",
        **options,
    )


def check(generation: Generation) -> None:
    """What holds for every answer."""
    used = generation.usage
    kept = used.draft.generated - used.draft.discarded + used.target.generated - used.target.discarded
    assert kept == used.completion_tokens
    # A rejected step that the target had no room to rewrite is in no step.
    assert used.prm.generated >= sum(step.scored_tokens for step in generation.steps)
    assert generation.text == "".join(step.text for step in generation.steps)


@pytest.mark.parametrize("small", ["draft", "target", "prm"])
@pytest.mark.parametrize(
    "flavours",
    [
        pytest.param(("ascii",) * 3, marks=pytest.mark.slow),
        ("ascii", "ascii-b", "ascii"),
        pytest.param(("ascii-b", "ascii", "ascii-b"), marks=pytest.mark.slow),
    ],
)
def test_a_full_window_ends_an_answer(small: str, flavours: tuple[str, str, str]) -> None:
    with load(small, flavours, max_batch_size=3) as pipe:
        backend: Any = pipe.backend
        models = {"draft": backend.draft, "target": backend.target, "prm": backend.prm}
        assert models[small].info.window == SMALL
        streams = [
            pipe.stream(
                "hello",
                seed=seed,
                weighting="constant",
                acceptance_rate=seed % 5 / 4,
                temperature=1.5,
                step_delimiter=(" ", "e"),
                max_tokens=None,
            )
            for seed in range(10)
        ]
        generations = [stream.result() for stream in streams]
        for generation in generations:
            check(generation)
        assert {generation.finish_reason for generation in generations} <= {"length", "stop"}
        assert "length" in {generation.finish_reason for generation in generations}
        assert [model.runner.pool.free for model in models.values()] == [3, 3, 3]


@pytest.mark.parametrize("small", ["draft", "target", "prm"])
def test_what_cannot_fit_is_refused_with_numbers_and_the_culprit(small: str) -> None:
    with load(small, ("ascii",) * 3) as pipe:
        prompt = len(
            tokenizer("ascii").apply_chat_template(
                [{"role": "user", "content": "hello"}], add_generation_prompt=True
            )["input_ids"]
        )
        message = f"{prompt} prompt tokens . {SMALL} max_tokens do not fit the window of {SMALL} tokens"
        with pytest.raises(PromptError, match=message):
            pipe.generate("hello", max_tokens=SMALL)
        # A model that is not run has no say.
        idle = {"draft": 2.0, "target": 0.0, "prm": 0.0}[small]
        assert pipe.generate("hello", max_tokens=SMALL, threshold=idle).usage.completion_tokens


def test_a_step_the_prm_has_no_room_for_is_the_target_s() -> None:
    with load("prm", ("ascii",) * 3) as pipe:
        generations = [
            pipe.generate(
                "hello",
                seed=seed,
                threshold=0.0,
                weighting="logistic",
                beta=50,
                temperature=1.5,
                step_delimiter=" ",
                max_tokens=None,
            )
            for seed in range(6)
        ]
    unscored = [step for generation in generations for step in generation.steps if step.reward is None]
    assert unscored
    assert {(step.source, step.acceptance_probability) for step in unscored} == {("target", 0.0)}
