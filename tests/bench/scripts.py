"""Scripted models for held-out problems: the target always right, the draft wrong where told."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket.task import Problem
from rsd_integrations.testing import scripted_pipeline


def trio(
    problems: Sequence[Problem],
    wrong: Collection[int],
    *,
    target_wrong: Collection[int] = (),
    blind: Collection[int] = (),
    draft_cost: int = 10,
) -> RSDPipeline:
    """A pipeline whose models are wrong about the last step of the problems at these positions.

    Args:
        blind: problems whose wrong step the PRM takes for right.
        draft_cost: parameters of draft and PRM; the target has 1000.
    """
    where = {problem.question: position for position, problem in enumerate(problems)}

    def write(prompt: object, index: int, mistaken: Collection[int]) -> str | None:
        problem = problems[where[str(prompt)]]
        if index >= len(problem.steps):
            return None
        if index == problem.events:
            return "The answer is \\boxed{-1}." if where[str(prompt)] in mistaken else problem.steps[index]
        return problem.steps[index] + "\n\n"

    def reward(prompt: object, index: int, step: str) -> float:
        return 0.1 if "-1" in step and where[str(prompt)] not in blind else 0.9

    pipe = scripted_pipeline(
        lambda prompt, index, text: write(prompt, index, wrong),
        lambda prompt, index, text: write(prompt, index, target_wrong),
        reward,
        max_batch_size=16,
    )
    cheap(pipe, draft_cost)
    return pipe


def cheap(pipe: RSDPipeline, parameters: int) -> None:
    """Make draft and PRM small beside the target."""
    from dataclasses import replace

    for model in (pipe.backend.draft, pipe.backend.prm):
        model.info = replace(model.info, parameters=parameters, pair_flops=1)
