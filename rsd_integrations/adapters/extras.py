"""The frameworks are extras of the package."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require"]


def require(module: str, extra: str) -> None:
    """Ask for an extra that is not installed.

    Raises:
        ModuleNotFoundError: it is not.
    """
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # Of a submodule, whose package is not there.
        found = None
    if found is None:
        raise ModuleNotFoundError(
            f'{module!r} is not installed. Run: pip install "rsd-integrations[{extra}]".', name=module
        )
