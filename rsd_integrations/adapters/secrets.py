"""Secrets among a model's options (a hub token, say): used for loading, and shown to nobody.

They are kept as ``SecretStr`` (or ``Secret``), and left out of everything that is printed, saved, traced or
cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Secret, SecretStr

from rsd_integrations.secrecy import is_secret, may_tell

_Hidden = (SecretStr, Secret)
"""What hides strings, and all else."""


def hidden(options: Any, *, secret: bool = False) -> Any:
    """Options whose secrets print as stars. ``secret``: all their values are, except True and False."""
    if isinstance(options, Mapping):
        return {name: hidden(value, secret=secret or _is_secret(name)) for name, value in options.items()}
    if type(options) in (list, tuple):
        return type(options)(hidden(value, secret=secret) for value in options)
    if isinstance(options, str):
        return SecretStr(options) if secret or may_tell(options) else options
    plain = not secret or options is None or isinstance(options, (bool, *_Hidden))
    return options if plain else Secret(options)


def revealed(options: Any) -> Any:
    """Options as a loader takes them."""
    if isinstance(options, Mapping):
        return {name: revealed(value) for name, value in options.items()}
    if type(options) in (list, tuple):
        return type(options)(revealed(value) for value in options)
    return options.get_secret_value() if isinstance(options, _Hidden) else options


def without_secrets(options: Any) -> Any:
    """Options without their secrets, and without mappings that held nothing else; None for such a mapping.

    Equal whatever the secrets are, so that a token can change and its models stay the same.
    """
    if isinstance(options, Mapping):
        bare = {name: without_secrets(value) for name, value in hidden(options).items()}
        return {name: value for name, value in bare.items() if value is not None} or None
    if type(options) in (list, tuple):
        return type(options)(without_secrets(value) for value in options if not isinstance(value, _Hidden))
    return None if isinstance(options, _Hidden) else options


def has_secrets(options: Any) -> bool:
    """Whether options hold any secret."""
    if isinstance(options, Mapping):
        return any(map(has_secrets, hidden(options).values()))
    return isinstance(options, _Hidden) or (type(options) in (list, tuple) and any(map(has_secrets, options)))


def _is_secret(name: Any) -> bool:
    return isinstance(name, str) and is_secret(name)
