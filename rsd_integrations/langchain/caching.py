"""What an answer depends on, for LangChain's caches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rsd_integrations.adapters.identity import qualified_name
from rsd_integrations.adapters.sources import live_name
from rsd_integrations.config import RSDConfig
from rsd_integrations.langchain.params import call_of

if TYPE_CHECKING:
    from rsd_integrations.langchain.chat_model import ChatRSD


def cache_key(settings: ChatRSD, stop: list[str] | None, kwargs: Mapping[str, Any]) -> str:
    """Names all that an answer depends on: the models and where they come from, settings and form.

    Args:
        settings: of the object.
        stop: of the call.
        kwargs: of the call.
    """
    call = call_of(settings, stop, kwargs)
    fields = {name: getattr(call.config, name) for name in RSDConfig.model_fields}
    config = {name: _identity(value) if callable(value) else value for name, value in fields.items()}
    # Variables have no order of their own, but a template may write what they hold in its order.
    config["chat_template_kwargs"] = dict(sorted(call.config.chat_template_kwargs.items()))
    parts = [settings.source.name, call.model, config, call.output.key, settings.output_version]
    return json.dumps(["ChatRSD", *parts])


def _identity(function: Callable[..., Any]) -> str:
    """A name that no other function has: a cache may outlive the process."""
    return qualified_name(function) if _found(function) else live_name(function)


def _found(function: Any) -> bool:
    """Whether its module has it under its name, which is not so for lambdas, closures and bound methods."""
    if getattr(function, "__module__", None) == "__main__":  # A name that every script has.
        return False
    there: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "").split("."):
        there = getattr(there, part, None)
    return there is function
