"""Which objects share a pipeline: those whose names mean the same models here and now."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from rsd_integrations.adapters.secrets import hidden, revealed
from rsd_integrations.adapters.specs import Spec, identity, signature
from rsd_integrations.errors import ConfigError
from rsd_integrations.given import is_object
from rsd_integrations.opening import are_servers
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.prm.registry import registered
from rsd_integrations.types import ROLES, Role

if TYPE_CHECKING:
    from rsd_integrations.backends.vllm.address import Address

_SENT = ("api_key", "headers")
"""Options of servers that go with each question."""


def source_key(spec: Spec) -> Hashable:
    """Equal for specs of the same models here and now. It is for this process alone: it depends on the
    working directory, the registered PRM formats and, over servers, on (hidden) keys and headers.

    A hub token makes no difference: it is used once, and the models are the same whoever loaded them.

    Raises:
        ConfigError: some models are servers and some are not.
    """
    named = dict(signature(spec))
    if isinstance(spec.get("pipeline"), RSDPipeline):
        return identity(named)
    servers = _addresses(spec)
    for role in ROLES:
        for name in (role, f"{role}_kwargs"):
            if name in named:
                named[name] = _placed(named[name])
    named.update({role: address.urls for role, address in servers.items()})
    sent = [frozenset(hidden(address.all_headers, secret=True).items()) for address in servers.values()]
    return identity(named), tuple(sent), _formats(spec)


def is_served(spec: Spec) -> bool:
    """Whether its models are named by servers' URLs.

    Raises:
        ConfigError: some are and some are not.
    """
    return "pipeline" not in spec and are_servers(*(spec[role] for role in ROLES))


def _placed(named: Any) -> Any:
    """Names with each folder by its real path: "draft" is another one in another working directory."""
    if isinstance(named, Mapping):
        return {name: _placed(value) for name, value in named.items()}
    if type(named) in (list, tuple):
        return type(named)(map(_placed, named))
    return os.path.realpath(named) if isinstance(named, str) and os.path.isdir(named) else named


def _addresses(spec: Spec) -> dict[Role, Address]:
    """Where servers are and what is sent to them; roles that objects play have none."""
    if not is_served(spec):
        return {}
    given = {role: revealed(spec.get(f"{role}_kwargs")) for role in ROLES}
    sent = {
        role: {name: one[name] for name in _SENT if name in one} if isinstance(one, Mapping) else {}
        for role, one in given.items()
    }
    try:
        from rsd_integrations.backends.vllm.address import Address

        return {
            role: Address.of(role, spec[role], sent[role])
            for role in ROLES
            if not is_object(role, spec[role])
        }
    except (ImportError, ConfigError):  # Loading will say so.
        return {}


def _formats(spec: Spec) -> tuple[type, ...]:
    """The classes that the PRM's format may be, which are looked up when it is loaded."""
    return () if is_object("prm", spec.get("prm")) else registered(spec.get("prm_format", "auto"))
