"""Call parameters as LangChain passes them, and what its tracing and caching want to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile

from rsd_integrations.adapters.calls import CallSettings, call_settings
from rsd_integrations.adapters.settings import RSDSettings
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError

__all__ = [
    "cache_key",
    "call_of",
    "identifying_params",
    "langsmith_params",
    "profile_of",
    "refuse_tools",
    "with_threads",
]

_CORE = frozenset({"stream"})
"""LangChain's own words for how, not what, to generate."""

BATCH_THREADS = 128
"""Most threads of one ``batch``."""

_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")


def call_of(settings: RSDSettings, stop: list[str] | None, kwargs: Mapping[str, Any]) -> CallSettings:
    """The settings of one call.

    Raises:
        ConfigError: a parameter is unknown, fixed for the object, or asks for tools.
        pydantic.ValidationError: a value is out of bounds.
    """
    given = {name: value for name, value in kwargs.items() if name not in _CORE}
    if asked := [name for name in _TOOLS if given.pop(name, None)]:
        raise refuse_tools(asked[0])
    # LangChain passes stop=None where the caller said nothing.
    return call_settings(settings, given if stop is None else {**given, "stop": stop})


def with_threads(config: Any, inputs: int) -> Any:
    """A batch's config with a thread for each input: threads only wait, and the engine runs them together."""
    if isinstance(config, Mapping) or config is None:
        return {"max_concurrency": min(inputs, BATCH_THREADS) or None, **(config or {})}
    return [with_threads(one, inputs) for one in config]


def refuse_tools(what: str) -> ConfigError:
    """The error for what needs tools or constrained decoding."""
    return ConfigError(
        f"ChatRSD does not take {what} yet.",
        hint="Ask for the format in the prompt, or give tools to another model of the chain.",
    )


def identifying_params(settings: RSDSettings) -> dict[str, Any]:
    """What traces show of a model: its models' names and how it generates."""
    # A callable weighting is told by its name; dumping would try to serialise it.
    config = {name: _plain(getattr(settings, name)) for name in RSDConfig.model_fields}
    models = {f"{role}_model": name for role, name in settings.model_names.items()}
    pipe = settings.source.loaded
    if pipe and settings.threshold is None:
        config["threshold"] = pipe.recommended_threshold
    return {"model": settings.model or models["target_model"], **models, **config}


def langsmith_params(
    settings: RSDSettings, stop: list[str] | None, kwargs: Mapping[str, Any]
) -> LangSmithParams:
    """LangSmith's standard parameters, the call's own first."""
    temperature = kwargs.get("temperature", settings.temperature)
    params = LangSmithParams(
        ls_provider="rsd",
        ls_model_name=str(kwargs.get("model") or settings.model or settings.model_names["target"]),
        ls_model_type="chat",
        ls_temperature=temperature,
    )
    if max_tokens := kwargs.get("max_tokens", settings.max_tokens):
        params["ls_max_tokens"] = max_tokens
    if stops := list(settings.stop if stop is None else stop):
        params["ls_stop"] = stops
    return params


def cache_key(settings: RSDSettings, stop: list[str] | None, kwargs: Mapping[str, Any]) -> str:
    """Names what the answer depends on: the models, wherever they come from, and the settings."""
    call = call_of(settings, stop, kwargs)
    config = {name: _plain(getattr(call.config, name)) for name in RSDConfig.model_fields}
    return json.dumps(["ChatRSD", settings.source.name, call.model, config], sort_keys=True)


def profile_of(settings: RSDSettings) -> ModelProfile:
    """What the model can do, as far as it is known without loading it."""
    pipe = settings.source.loaded
    backend = pipe.backend if pipe else None
    window = min(backend.draft.info.window, backend.target.info.window) if backend else settings.max_length
    return ModelProfile(
        max_input_tokens=window - 1,
        max_output_tokens=settings.max_tokens or window - 1,
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        image_outputs=False,
        audio_outputs=False,
        video_outputs=False,
        tool_calling=False,
        tool_choice=False,
        structured_output=False,
    )


def _plain(value: Any) -> Any:
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}"
    return list(value) if isinstance(value, tuple) else value
