"""The library's messages in a shell user's words: a setting that they name as in Python may be an option."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rsd_integrations.cli.settings import quoted

_ONLY_IN_PYTHON = re.compile(
    r",? or an? (?:subclass|callable)\b[^.;]*|, or give \w+_kwargs=\{'api_key': \.\.\.\}"
)
"""Alternatives that cannot be given to an option: objects, and secrets, which a list of processes shows."""

_KWARGS = re.compile(r"\b(draft|target|prm)_kwargs=(\{\"[^{}]*\})")
"""Options of one model: as they are written here they are JSON, too."""

_START = r"(?<![\w./'\"-])"
"""Not within a path, a quotation or a longer name."""


def options_of(command: Any, arguments: Sequence[str]) -> dict[str, str]:
    """The options of the command that was called, by their names in Python.

    Args:
        command: the root of the commands.
        arguments: the command line.
    """
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument, command)
    names = [name for option in command.params for name in option.opts if name.startswith("--")]
    return {name[2:].replace("-", "_"): name for name in names}


def in_options(message: str, options: Mapping[str, str]) -> str:
    """A message with ``--name value`` for ``name=value``, and ``--long-name`` for ``long_name``."""
    message = _ONLY_IN_PYTHON.sub("", message)
    if "draft_kwargs" in options:
        message = _KWARGS.sub(lambda found: f"--{found[1]}-kwargs {quoted(found[2])}", message)
    for name, option in options.items():
        message = re.sub(rf"{_START}{name}=(?:True\b|(?=[\s.,;:)]|$))", option, message)
        message = re.sub(rf"{_START}{name}=", f"{option} ", message)
        if "_" in name:  # A single word may also mean the thing itself ("the draft").
            message = re.sub(rf"{_START}{name}\b", option, message)
    return message
