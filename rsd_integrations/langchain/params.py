"""Call parameters as LangChain passes them, and what its tracing and caching want to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile

from rsd_integrations.adapters.calls import CallSettings, call_settings
from rsd_integrations.adapters.secrets import has_secrets
from rsd_integrations.adapters.settings import RSDSettings
from rsd_integrations.adapters.specs import POCKET
from rsd_integrations.langchain.errors import langchain_errors

_CORE = frozenset({"stream"})
"""LangChain's own parameters of a call: how to deliver an answer, not how to generate it."""

_SCHEMAS = frozenset({"tools", "response_format"})
"""Parameters in which "key" or "password" is the name of what a model is to write, and no secret."""

PROVIDER = "rsd"
"""Whose models these are, in traces and metadata."""


def call_of(settings: RSDSettings, stop: list[str] | None, kwargs: Mapping[str, Any]) -> CallSettings:
    """The settings of one call.

    Raises:
        ConfigError: a parameter is unknown, malformed or out of bounds, or fixed for the object.
    """
    given = {name: value for name, value in kwargs.items() if name not in _CORE}
    # LangChain passes stop=None where the caller said nothing.
    with langchain_errors():
        return call_settings(settings, given if stop is None else {**given, "stop": stop})


def traced_params(
    settings: RSDSettings, stop: list[str] | None, kwargs: Mapping[str, Any]
) -> tuple[list[str] | None, dict[str, Any]]:
    """A call's stop strings and parameters as traces show them: also those of the object, and no secrets."""
    shown = {
        name: value
        for name, value in kwargs.items()
        # A call that brings one is refused, but traced before that.
        if name in _SCHEMAS or not has_secrets({name: value})
    }
    return (list(settings.stop) or None if stop is None else stop), shown


def langsmith_params(
    settings: RSDSettings, stop: list[str] | None, kwargs: Mapping[str, Any]
) -> LangSmithParams:
    """LangSmith's standard parameters; the call's own go before the object's."""
    temperature = kwargs.get("temperature")
    params = LangSmithParams(
        ls_provider=PROVIDER,
        ls_model_name=str(kwargs.get("model") or settings.model or settings.model_names["target"]),
        ls_model_type="chat",
        ls_temperature=settings.temperature if temperature is None else temperature,
    )
    if max_tokens := kwargs.get("max_tokens", settings.max_tokens):
        params["ls_max_tokens"] = max_tokens
    # A lone string is one entry, as in the call itself, which refuses what is no list of strings.
    stops = settings.stop if stop is None else (stop,) if isinstance(stop, str) else stop
    if isinstance(stops, Sequence) and stops:
        params["ls_stop"] = list(stops)
    return params


class Guess(dict[str, Any]):
    """A profile that nobody set: it follows the settings and, once they are loaded, the models."""


def profile_of(settings: RSDSettings) -> ModelProfile:
    """What the model can do. Until it is loaded it is taken to support tools, but for the pocket trio."""
    source = settings.source
    tools = settings.pipeline != POCKET if source.loaded is None else source.takes_tools
    window = settings.window
    guess = Guess(
        # Room for the answer is kept free.
        max_input_tokens=max(0, window - (settings.max_tokens or 1)),
        max_output_tokens=min(settings.max_tokens or window, window - 1),
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        image_outputs=False,
        audio_outputs=False,
        video_outputs=False,
        tool_calling=tools,
        tool_choice=tools,
        structured_output=True,
    )
    return cast("ModelProfile", guess)
