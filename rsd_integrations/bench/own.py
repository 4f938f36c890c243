"""A user's own code, named on the command line: "module:name"."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from rsd_integrations.errors import ConfigError


def find_own(option: str, name: str, kind: str) -> Any:
    """The object that a name stands for. Modules are also looked for in the folder where the command runs.

    Args:
        option: the option that gives the name, for the messages.
        name: "module:name".
        kind: what it should be, for the messages.

    Raises:
        ConfigError: there is no such module, or it has no such name.
    """
    module, _, wanted = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), wanted)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # The last two: ".module".
        raise ConfigError(
            f"{option}={name!r} cannot be loaded: {error}.",
            hint=f"Name a module (in this folder or installed) and a {kind} in it: module:{kind}.",
        ) from error
    finally:
        sys.path.remove(here)
