"""Secrets among a model's options (a hub token, say): used for loading, and shown to nobody.

They are kept as ``SecretStr``, and left out of everything that is printed, saved, traced or cached.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

__all__ = ["has_secrets", "hidden", "revealed", "without_secrets"]

_SECRET = re.compile(
    # Not "eos_token" and its like, which are text.
    r"((hf|hub|huggingface|use_auth|auth|access|api|bearer|private)_)?token"
    r"|(.+_)?(key|secret|password|passwd|credentials?|authorization|auth)"
    r"|proxies|(.+_)?headers",  # Whose values may hold a password.
    re.IGNORECASE,
)


def hidden(options: Any, *, secret: bool = False) -> Any:
    """Options whose secrets print as stars. ``secret``: all their strings are secrets."""
    if isinstance(options, Mapping):
        return {name: hidden(value, secret=secret or _is_secret(name)) for name, value in options.items()}
    if type(options) in (list, tuple):
        return type(options)(hidden(value, secret=secret) for value in options)
    return SecretStr(options) if secret and isinstance(options, str) else options


def revealed(options: Any) -> Any:
    """Options as a loader takes them."""
    if isinstance(options, Mapping):
        return {name: revealed(value) for name, value in options.items()}
    if type(options) in (list, tuple):
        return type(options)(revealed(value) for value in options)
    return options.get_secret_value() if isinstance(options, SecretStr) else options


def without_secrets(options: Any) -> Any:
    """Options without their secrets, and without what held nothing else; None if nothing is left.

    Equal whatever the secrets are, so that a token can change and its models stay the same.
    """
    if isinstance(options, Mapping):
        bare = {name: without_secrets(value) for name, value in hidden(options).items()}
        return {name: value for name, value in bare.items() if value is not None} or None
    if type(options) in (list, tuple):
        return type(options)(without_secrets(value) for value in options if not isinstance(value, SecretStr))
    return None if isinstance(options, SecretStr) else options


def has_secrets(options: Any) -> bool:
    """Whether options hold any secret."""
    if isinstance(options, Mapping):
        return any(map(has_secrets, hidden(options).values()))
    return isinstance(options, SecretStr) or (
        type(options) in (list, tuple) and any(map(has_secrets, options))
    )


def _is_secret(name: Any) -> bool:
    return isinstance(name, str) and _SECRET.fullmatch(name) is not None
