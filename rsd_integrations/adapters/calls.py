"""Parameters of one call over the settings of its model object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rsd_integrations.adapters.checks import check_on_step, without_nones
from rsd_integrations.adapters.settings import OnStep, RSDSettings, TraceSteps
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError
from rsd_integrations.limits import check_timeout
from rsd_integrations.naming import check_known
from rsd_integrations.output import Output
from rsd_integrations.pipeline import RSDPipeline

_MORE = ("timeout", "on_step", "trace_steps")
TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
"""Parameters that offer tools."""

_OUTPUT = (*TOOLS, "response_format")
PER_CALL = (*RSDConfig.model_fields, *_MORE, *_OUTPUT)
"""What a call may change."""


@dataclass(frozen=True)
class CallSettings:
    """The settings of one call."""

    config: RSDConfig
    timeout: float | None
    model: str | None
    on_step: OnStep | None
    trace_steps: TraceSteps
    output: Output

    def model_name(self, models: Mapping[str, str]) -> str:
        """The model's name as answers show it. Names of served models are known only after loading.

        Args:
            models: names by role, after loading.
        """
        return self.model or models["target"]

    def over(self, pipe: RSDPipeline) -> CallSettings:
        """With the threshold that this pipeline recommends, if none was chosen."""
        return replace(self, config=pipe.resolved(self.config))


def call_settings(settings: RSDSettings, given: Mapping[str, Any]) -> CallSettings:
    """The object's settings, with what the call gave in place of its own.

    Raises:
        ConfigError: a parameter is unknown, malformed or out of bounds, or fixed for the object.
    """
    check_known(given, PER_CALL, fixed=type(settings).model_fields)
    given = without_nones(given)
    more = {name: given.get(name, getattr(settings, name)) for name in _MORE}
    if more["trace_steps"] not in ("full", "steps", "off"):
        raise ConfigError(f"trace_steps={more['trace_steps']!r}.", hint="Use 'full', 'steps' or 'off'.")
    check_timeout(more["timeout"])
    return CallSettings(
        config=settings.config.override(
            **{name: given[name] for name in given if name not in (*_MORE, *_OUTPUT)}
        ),
        timeout=more["timeout"],
        model=settings.model,
        on_step=check_on_step(more["on_step"]),
        trace_steps=more["trace_steps"],
        output=Output.of(**{name: given.get(name) for name in _OUTPUT}),
    )
