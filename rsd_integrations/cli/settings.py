"""Options that hold JSON, and the decoding settings of a command line."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from rsd_integrations.config import RSDConfig, refused
from rsd_integrations.errors import ConfigError
from rsd_integrations.naming import nearest

__all__ = ["json_object", "quoted", "read_config"]


def json_object(option: str, text: str, *, example: str) -> dict[str, Any]:
    """The JSON object that an option holds.

    Raises:
        ConfigError: it is no JSON object. The message does not quote the text, which may hold a secret.
    """
    hint = f"Write it as {quoted(example)}."
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option} is no JSON: {error}.", hint=hint) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{option} is no JSON object but a {type(found).__name__}.", hint=hint)
    return found


def quoted(text: str) -> str:
    """Quoted for the usual shell. cmd.exe knows no single quotes; PowerShell 7 takes double ones, too."""
    return '"' + text.replace('"', '""') + '"' if os.name == "nt" else f"'{text}'"


def read_config(text: str | None, *, swept: Collection[str] = (), **options: Any) -> RSDConfig:
    """The decoding settings: some from options of their own, all others from ``--config``.

    Args:
        text: of ``--config``.
        swept: settings that the command itself makes.
        options: settings that have an option of their own; None: not given.

    Raises:
        ConfigError: ``--config`` is no JSON object, or a setting in it is unknown, wrong, swept, or has an
            option of its own.
        pydantic.ValidationError: the value of an option is wrong.
    """
    more = {} if text is None else json_object("--config", text, example='{"top_p": 0.8, "stop": ["END"]}')
    known = [name for name in RSDConfig.model_fields if name not in swept]
    written = {name: "--" + name.replace("_", "-") for name in options}
    for name in more:
        if name not in RSDConfig.model_fields:
            raise ConfigError(f"--config: unknown setting {name!r}.", hint=nearest(name, known, written))
        if name in swept:
            raise ConfigError(f"--config sets {name!r}, which the command sets itself.", hint="Leave it out.")
        if name in options:
            raise ConfigError(f"--config sets {name!r}, which has an option.", hint=f"Use {written[name]}.")
    try:
        return RSDConfig(**{name: value for name, value in options.items() if value is not None}, **more)
    except ValidationError as error:
        if more.keys().isdisjoint(error.errors()[0]["loc"]):
            raise
        raise refused(error, "--config: ") from error
