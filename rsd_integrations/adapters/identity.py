"""What traces show of a model object: nothing that has to be loaded, and no secrets."""

from __future__ import annotations

from typing import Any

from rsd_integrations.adapters.settings import RSDSettings
from rsd_integrations.config import RSDConfig

_READ_BY = {"acceptance_rate": "constant", "beta": "logistic"}
"""The only weighting for which a field means anything."""


def identifying_params(settings: RSDSettings) -> dict[str, Any]:
    """What traces show of a model: its models' names and how it generates."""
    # Read and not dumped: a weighting that is a function is shown by its name.
    config = {name: _plain(getattr(settings, name)) for name in RSDConfig.model_fields}
    config["threshold"] = settings.threshold_in_force
    for name, reader in _READ_BY.items():
        if settings.weighting != reader:
            config[name] = None
    models = {f"{role}_model": name for role, name in settings.model_names.items()}
    pipe = settings.source.loaded
    if pipe and settings.threshold is None and settings.uses_threshold:
        config["threshold"] = pipe.recommended_threshold
    return {"model": settings.model or models["target_model"], **models, **config}


def qualified_name(function: Any) -> str:
    """Module and qualified name of a function; its repr if it has no name."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}"


def _plain(value: Any) -> Any:
    if callable(value):
        return qualified_name(value)
    return list(value) if isinstance(value, tuple) else value
