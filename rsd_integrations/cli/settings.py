"""Options that hold JSON, and how a command line says how to decode."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from rsd_integrations.config import RSDConfig, refused
from rsd_integrations.errors import ConfigError
from rsd_integrations.naming import nearest

__all__ = ["json_object", "read_config"]


def json_object(option: str, text: str, *, example: str) -> dict[str, Any]:
    """What an option holds.

    Raises:
        ConfigError: it is no JSON object. The text is not told, for it may hold a secret.
    """
    hint = f"Write it as {_quoted(example)}."
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option} is no JSON: {error}.", hint=hint) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{option} is no JSON object but a {type(found).__name__}.", hint=hint)
    return found


def _quoted(text: str) -> str:
    """As the usual shell takes it whole. cmd.exe knows no single quotes; PowerShell 7 takes these, too."""
    return '"' + text.replace('"', '""') + '"' if os.name == "nt" else f"'{text}'"


def read_config(text: str | None, *, swept: Collection[str] = (), **options: Any) -> RSDConfig:
    """How to decode: by options of their own, and by ``--config`` for all others.

    Args:
        text: of ``--config``.
        swept: what the command itself sets.
        options: those of their own; None: not given.

    Raises:
        ConfigError: ``--config`` is no JSON object, or sets what is wrong, swept, or has an option.
        pydantic.ValidationError: the value of an option is wrong.
    """
    more = {} if text is None else json_object("--config", text, example='{"top_p": 0.8, "stop": ["END"]}')
    known = [name for name in RSDConfig.model_fields if name not in swept]
    written = {name: "--" + name.replace("_", "-") for name in options}
    for name in more:
        if name not in RSDConfig.model_fields:
            raise ConfigError(f"--config: unknown setting {name!r}.", hint=nearest(name, known, written))
        if name in swept:
            raise ConfigError(f"--config sets {name!r}, which this sets itself.", hint="Leave it out.")
        if name in options:
            raise ConfigError(f"--config sets {name!r}, which has an option.", hint=f"Use {written[name]}.")
    try:
        return RSDConfig(**{name: value for name, value in options.items() if value is not None}, **more)
    except ValidationError as error:
        if more.keys().isdisjoint(error.errors()[0]["loc"]):
            raise
        raise refused(error, "--config: ") from error
