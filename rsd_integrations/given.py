"""Models that users give as objects of their own: functions that score, writers and scorers."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from typing_extensions import get_protocol_members

from rsd_integrations.errors import ConfigError
from rsd_integrations.functions import FunctionScorer, RemoteFunctionScorer, reward_function
from rsd_integrations.protocols import Backend, Scorer, Writer
from rsd_integrations.remote import RemoteBackend, RemoteScorer, RemoteWriter
from rsd_integrations.types import ROLES, Role

_IN_PROCESS: dict[Role, tuple[str, ...]] = {
    "draft": ("open", "advance", "close"),
    "target": ("open", "advance", "close"),
    "prm": ("open", "score", "close"),
}
_REMOTE: dict[Role, tuple[str, ...]] = {
    "draft": ("open", "write", "aclose"),
    "target": ("open", "write", "aclose"),
    "prm": ("open", "score", "aclose"),
}
"""The methods by which an object is known to do a role's work itself."""

_PROTOCOLS: dict[bool, dict[Role, type]] = {
    False: {"draft": Writer, "target": Writer, "prm": Scorer},
    True: {"draft": RemoteWriter, "target": RemoteWriter, "prm": RemoteScorer},
}
_MAY_LACK = frozenset({"go_on"})
"""What only those are asked for whose sessions say so."""

_running: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""The pipeline that runs each part of a backend, by the part's ``id``."""


def is_object(role: Role, model: Any) -> bool:
    """Whether a model is given as an object that does the role's work, neither as weights nor by name.

    Raises:
        ConfigError: it is a function that takes other arguments than a reward function does.
    """
    return _works(role, model) or (role == "prm" and reward_function(model) is not None)


def taken(role: Role, model: Any, options: Mapping[str, Any] | None, prm_format: Any, *, remote: bool) -> Any:
    """The object that does a role's work, if the model was given as one; None if it has to be loaded.

    Args:
        options: this role's options for loading.
        prm_format: for loading the PRM; "auto" if it is not given.
        remote: whether the other models are behind servers.

    Raises:
        ConfigError: there are options but nothing to load, another pipeline runs the object, or it lacks
            what the role's work needs.
    """
    if not is_object(role, model):
        return None
    late = f"{role}_kwargs" if options else "prm_format" if role == "prm" and prm_format != "auto" else None
    if late is not None:
        raise ConfigError(
            f"{late} is for a {role} that is loaded, but {role} is {model!r:.200}.", hint="Leave it out."
        )
    if _works(role, model):
        _check_whole(role, model, remote=remote)  # Before the others are loaded.
        _check_free(role, model)
        return model
    function = reward_function(model)
    assert function is not None
    return (RemoteFunctionScorer if remote else FunctionScorer)(function)


def check_parts(backend: Backend | RemoteBackend) -> None:
    """Refuse a backend whose parts cannot do their roles' work.

    Raises:
        ConfigError: it is no backend, or a part lacks what its role needs, or was closed.
    """
    if not isinstance(backend, Backend | RemoteBackend):
        raise ConfigError(
            f"{backend!r:.200} is no Backend of three models.",
            hint="Use RSDPipeline.from_pretrained(draft, target, prm), from_vllm or pocket.",
        )
    for role in ROLES:
        part = getattr(backend, role)
        _check_whole(role, part, remote=isinstance(backend, RemoteBackend))
        if getattr(part, "closed", False):
            raise ConfigError(
                f"the {role} {part.info.name!r} was closed with its pipeline.",
                hint="Load it anew: from_pretrained takes objects of yours beside models by name. A pipeline "
                "closes its models as soon as nothing refers to it.",
            )


def _check_whole(role: Role, part: Any, *, remote: bool) -> None:
    """Refuse what lacks something of its role's protocol, whichever call would be the first to need it."""
    works = (_REMOTE if remote else _IN_PROCESS)[role]
    more = get_protocol_members(_PROTOCOLS[remote][role]).difference(works, _MAY_LACK)
    if lacking := [name for name in (*works, *sorted(more)) if not hasattr(part, name)]:
        raise ConfigError(
            f"{role}={part!r:.200} of a {'RemoteBackend' if remote else 'Backend'} has no "
            f"{' and no '.join(map(repr, lacking))}.",
            hint="See Writer and Scorer in rsd_integrations.protocols (RemoteWriter and RemoteScorer in "
            "rsd_integrations.remote). For models by name there is RSDPipeline.from_pretrained.",
        )


def occupy(backend: Backend | RemoteBackend, pipeline: Any) -> None:
    """Note which pipeline runs the parts of a backend: two engines would get in each other's way.

    Args:
        pipeline: has a property ``closed``.

    Raises:
        ConfigError: another pipeline, not yet closed, runs a part.
    """
    parts = {role: getattr(backend, role) for role in ROLES}
    for role, part in parts.items():
        _check_free(role, part)
    _running.update({id(part): pipeline for part in parts.values()})


def _check_free(role: Role, part: Any) -> None:
    other = _running.get(id(part))
    # A pipeline that is still being made has no engine, and so no ``closed`` yet.
    if other is not None and not getattr(other, "closed", False):
        raise ConfigError(
            f"the {role} {part.info.name!r} is at work in another pipeline.",
            hint="Use that one, from as many threads as you like, or close it first.",
        )


def _works(role: Role, model: Any) -> bool:
    """Whether it has the methods of the role, in this process or beside servers."""
    return not isinstance(model, type) and any(
        all(callable(getattr(model, name, None)) for name in kind[role]) for kind in (_IN_PROCESS, _REMOTE)
    )
