"""Versions of installed packages: installers check those of an extra only where it is asked for."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

_NAME = "rsd-integrations"


def require(module: str, extra: str) -> None:
    """Refuse to go on without an extra, or with versions that do not fit.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        ImportError: a version does not fit.
    """
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # Of a submodule whose package is not there.
        found = None
    if found is None:
        raise ModuleNotFoundError(
            f'{module!r} is not installed. Run: pip install "{_NAME}[{extra}]".', name=module
        )
    for package, needed in misfits(extra).items():
        raise ImportError(
            f"{package} {version(package)} is installed, but {needed} is needed. "
            f'Run: pip install -U "{_NAME}[{extra}]".',
            name=module,
        )


def misfits(extra: str = "") -> dict[str, str]:
    """Installed packages whose versions do not fit, and the versions that would.

    Args:
        extra: whose packages are looked at; by default those that are always needed.
    """
    from packaging.requirements import Requirement  # transformers brings it.

    try:
        lines = requires(_NAME) or []
    except PackageNotFoundError:  # Run from sources that are not installed.
        return {}
    wrong = {}
    for needed in map(Requirement, lines):
        # A requirement that holds without any extra is part of none.
        parts = [
            one for one in ("", extra) if needed.marker is None or needed.marker.evaluate({"extra": one})
        ]
        found = version_of(needed.name) if parts[:1] == [extra] else None
        if found is not None and not needed.specifier.contains(found, prereleases=True):
            wrong[needed.name] = str(needed.specifier)
    return wrong


def version_of(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
