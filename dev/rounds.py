"""How many forwards requests side by side take, and what they would come to on a GPU.

There a forward of a few rows takes as long as one of a single row, because it waits for the weights. So the
number of forwards decides, and that can be counted anywhere. The costs are estimates (dev/speed.md).

    python dev/rounds.py [REQUESTS] [LIVE] [ACCEPTANCE] [STEPS] [exact|chance]

"exact" is what `rsd bench speed` does: all steps of 60 tokens. "chance" keeps steps by chance, and each
request has a length of its own.
"""

import asyncio
import random
import sys
from typing import Any

from rsd_integrations import Generation, RSDConfig, RSDPipeline
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.bench.speed_setting import Setting, open_shape

LENGTH = 60
COSTS = {  # Milliseconds of a forward of draft, target and PRM.
    "1.5B/7B, recorded": (3.6, 6.0, 3.8),
    "1.5B/7B, compiled": (1.6, 4.4, 2.4),
    "1.5B/32B, compiled": (1.6, 18.5, 5.5),
}


def count_rows(model: Any, method: str) -> list[int]:
    """The number of rows of each launch from now on."""
    rows: list[int] = []
    own = getattr(model, method)

    def noted(sessions: Any, *work: Any) -> Any:
        rows.append(len(sessions))
        return own(sessions, *work)

    setattr(model, method, noted)
    return rows


def by_chance(number: int, acceptance: float, steps: int) -> dict[str, Any]:
    """Settings of a request with steps of 30 to 86 tokens."""
    length, chance = int(LENGTH * (0.5 + (number * 7 % 16) / 16)), random.Random(number)
    most = steps * LENGTH // length
    limits = {"max_step_tokens": length, "max_tokens": most * length, "max_steps": most}
    return {
        "config": RSDConfig(seed=1, step_delimiter="\0", **limits),
        "weighting": lambda reward: float(chance.random() < acceptance),
    }


async def answers(pipe: RSDPipeline, live: int, asked: dict[str, dict[str, Any]]) -> list[Generation]:
    """Answers to all prompts, ``live`` at a time."""
    free = asyncio.Semaphore(live)

    async def one(prompt: str) -> Generation:
        async with free:
            return await pipe.agenerate(prompt, **asked[prompt])

    return await asyncio.gather(*map(one, asked))


def main(
    requests: str = "16", live: str = "16", share: str = "0.9", steps: str = "10", how: str = "exact"
) -> None:
    """Count and tell."""
    if how not in ("exact", "chance"):
        sys.exit(f"{how!r} is neither exact nor chance")
    setting = Setting(
        "tiny",
        [f"{number:03d} what is it?" for number in range(int(requests))],
        batches=(int(live),),
        steps=int(steps),
        step_tokens=LENGTH,
    )
    SlotRunner.bursts = lambda self, rows: False  # type: ignore[method-assign]  # Bursts are for CPUs.
    pipe, _ = open_shape(setting, device="cpu", dtype="float32", window=2048)
    asked: dict[str, dict[str, Any]] = {}
    for number, (prompt, exact) in enumerate(zip(setting.prompts, setting.shares(float(share)), strict=True)):
        asked[prompt] = {"config": setting.config(), "weighting": exact}
        if how != "exact":
            asked[prompt] = by_chance(number, float(share), int(steps))
    models = pipe.backend
    rows = [
        count_rows(models.draft, "advance"),
        count_rows(models.target, "advance"),
        count_rows(models.prm, "score"),
    ]
    with pipe:
        made = asyncio.run(answers(pipe, int(live), asked))
    tokens = sum(answer.usage.completion_tokens for answer in made)
    for role, counted in zip(("draft", "target", "prm"), rows, strict=True):
        print(f"{role}: {len(counted)} forwards of {sum(counted) / max(1, len(counted)):.1f} rows")
    for name, costs in COSTS.items():
        ours = sum(cost * len(counted) for cost, counted in zip(costs, rows, strict=True))
        print(f"{name}: {tokens / int(live) * costs[1] / ours:.2f} times the target alone")


if __name__ == "__main__":
    main(*sys.argv[1:])
