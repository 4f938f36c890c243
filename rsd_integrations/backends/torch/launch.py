"""How forwards are to be launched, by the options that users give."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rsd_integrations.backends.torch.forwards import Compiled, Compute, Launcher
from rsd_integrations.backends.torch.recording import Recorded, recorder_for
from rsd_integrations.errors import ConfigError


def launcher_of(
    model: torch.nn.Module, *, compile: bool, cuda_graphs: bool | None, slots: int, capacity: int
) -> Callable[[Compute], Launcher] | None:
    """Makes the launcher of a model's forwards; None where they are simply called.

    Args:
        compile: whether by ``torch.compile``.
        cuda_graphs: whether recorded; None: where a model is on one CUDA device.

    Raises:
        ConfigError: CUDA graphs were asked for, and the model is not on one CUDA device.
    """
    devices = {parameter.device for parameter in model.parameters()}
    device = next(iter(devices)) if len(devices) == 1 and cuda_graphs is not False else None
    first = None if device is None else recorder_for(device)
    if device is None or first is None:
        if cuda_graphs:
            places = ", ".join(sorted(map(str, devices)))
            raise ConfigError(
                f"cuda_graphs=True, but the model is on {places}.",
                hint="Put it on one CUDA device, or leave cuda_graphs out.",
            )
        return Compiled if compile else None

    unused = [first]

    def recorded(compute: Compute) -> Launcher:
        # By a new recorder: an old one's memory is gone with its graphs.
        recorder = unused.pop() if unused else recorder_for(device)
        assert recorder is not None
        launched = Compiled(compute).compute if compile else None
        return Recorded(compute, recorder, slots=slots, capacity=capacity, launched=launched)

    return recorded
