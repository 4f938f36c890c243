"""What options hold: JSON, lists of numbers, and the decoding settings of a command line."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Collection
from math import inf
from typing import Any

from pydantic import ValidationError

from rsd_integrations.config import RSDConfig, refused
from rsd_integrations.errors import ConfigError
from rsd_integrations.naming import nearest


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
    """As the usual shell takes it. cmd.exe knows no single quotes; PowerShell 7 takes double ones, too."""
    if os.name != "nt":
        return shlex.quote(text)
    return '"' + text.replace('"', '""') + '"' if re.search(r'[\s"&|<>^]', text) else text


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


def numbers(option: str, given: str, kind: Any, *, hint: str = "Separate them by commas.") -> list[Any]:
    """Numbers above 0, each once; shares (floats) up to 1.

    Raises:
        ConfigError: there is none, or one is no such number.
    """
    most, what = (1.0, "numbers above 0 and up to 1") if kind is float else (inf, "whole numbers above 0")
    try:
        found = list(dict.fromkeys(kind(part) for part in given.split(",") if part.strip()))
    except ValueError:
        found = []
    if not found or not all(0 < number <= most for number in found):
        raise ConfigError(f"{option} {given!r} must be {what}.", hint=hint)
    return found


def read_sweep(thresholds: str) -> list[float]:
    """The thresholds as numbers. An empty list means the PRM's default alone.

    Raises:
        ConfigError: one is no number in (0, 1].
    """
    if not thresholds.strip():
        return []
    hint = "Separate them by commas; 0 (draft only) and above 1 (target only) are measured anyway."
    return numbers("--thresholds", thresholds, float, hint=hint)
