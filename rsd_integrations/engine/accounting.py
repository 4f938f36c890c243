"""Usage of one generation from what the story and the sessions counted: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_integrations.protocols import ModelInfo, Tally
from rsd_integrations.types import FLOPs, RoleUsage, Usage


@dataclass(frozen=True, slots=True)
class RoleCount:
    """What one role did: see ``RoleUsage`` for the fields."""

    info: ModelInfo
    tally: Tally
    generated: int
    discarded: int

    def summarise(self) -> RoleUsage:
        """The same with its FLOPs."""
        return RoleUsage(
            parameters=self.info.parameters,
            generated=self.generated,
            discarded=self.discarded,
            forwarded=self.tally.forwarded,
            flops=_flops(self.info, self.generated, self.tally),
        )


def _flops(info: ModelInfo, counted_by_paper: int, tally: Tally) -> FLOPs:
    return FLOPs(
        paper=2.0 * info.parameters * counted_by_paper,
        total=2.0 * info.parameters * tally.forwarded + float(info.pair_flops) * tally.pairs,
    )


def usage(
    draft: RoleCount,
    target: RoleCount,
    prm: RoleCount,
    *,
    prompt_tokens: int,
    completion_tokens: int,
) -> Usage:
    """Compare the three roles with the target alone, which would process every token but the last once."""
    roles = [role.summarise() for role in (draft, target, prm)]
    flops = roles[0].flops + roles[1].flops + roles[2].flops
    alone = Tally()
    if completion_tokens:
        alone.add(0, prompt_tokens + completion_tokens - 1, target.info.sliding_window)
    target_only = _flops(target.info, completion_tokens, alone)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        draft=roles[0],
        target=roles[1],
        prm=roles[2],
        flops=flops,
        target_only_flops=target_only,
        flops_ratio=flops.share_of(target_only),
    )
