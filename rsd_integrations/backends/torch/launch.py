"""How forwards are to be launched, as users say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rsd_integrations.backends.torch.forwards import Compiled, Compute, Launcher
from rsd_integrations.backends.torch.recording import Recorded, recorder_for
from rsd_integrations.errors import ConfigError

__all__ = ["LaunchOptions", "check_choice"]


@dataclass(frozen=True)
class LaunchOptions:
    """How forwards are to be launched, as users say it.

    Args:
        compile: by ``torch.compile``.
        cuda_graphs: recorded; None: where a model is on one CUDA device.
        cpu_traces: traced, those that a CPU often runs.
    """

    compile: bool = False
    cuda_graphs: bool | None = None
    cpu_traces: bool = True

    @classmethod
    def of(cls, compile: Any, cuda_graphs: Any, cpu_traces: Any) -> LaunchOptions:
        """Options as given.

        Raises:
            ConfigError: one is no boolean.
        """
        check_choice("compile", compile, True, False)
        check_choice("cuda_graphs", cuda_graphs, True, False, None)
        check_choice("cpu_traces", cpu_traces, True, False)
        return cls(compile, cuda_graphs, cpu_traces)

    def launcher(
        self, model: torch.nn.Module, *, slots: int, capacity: int
    ) -> Callable[[Compute], Launcher] | None:
        """Makes the launcher of a model's forwards; None where they are simply called.

        Raises:
            ConfigError: CUDA graphs were asked for, and the model is not on one CUDA device.
        """
        devices = {parameter.device for parameter in model.parameters()}
        recorder = None
        if len(devices) == 1 and self.cuda_graphs is not False:
            recorder = recorder_for(next(iter(devices)))
        if self.cuda_graphs and recorder is None:
            places = ", ".join(sorted(map(str, devices)))
            raise ConfigError(
                f"cuda_graphs=True, but the model is on {places}.",
                hint="Put it on one CUDA device, or leave cuda_graphs out.",
            )
        if recorder is not None:
            return lambda compute: Recorded(
                compute,
                recorder,
                slots=slots,
                capacity=capacity,
                launched=Compiled(compute).compute if self.compile else None,
            )
        return Compiled if self.compile else None


def check_choice(name: str, value: Any, *known: Any) -> None:
    """Refuse an option that is none of the known.

    Raises:
        ConfigError: it is not.
    """
    if not any(value is one for one in known):
        choices = " or ".join(map(repr, known))
        raise ConfigError(f"{name}={value!r} is no choice.", hint=f"Use {choices}.")
