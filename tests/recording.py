"""A recorder for the CPU with a CUDA graph's rules: what Python decides is decided once, while recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from rsd_integrations.backends.torch.forwards import Compute
from rsd_integrations.backends.torch.recording import Recorded

__all__ = ["Recordings"]


class Recordings:
    """Records work as a list of tensor operations; counts what it records and replays."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        # Nothing is computed meanwhile, so nothing can be looked at.
        graph: Any = make_fx(work, tracing_mode="fake", _allow_non_fake_inputs=True)()
        # Numbers of the host would be part of the recording.
        assert torch.ops.aten.lift_fresh_copy.default not in [node.target for node in graph.graph.nodes]
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            graph()

        return replay

    def launcher(self, slots: int, capacity: int) -> Callable[[Compute], Recorded]:
        """For a ``SlotRunner`` of this size."""
        return lambda compute: Recorded(compute, self, slots=slots, capacity=capacity)
