"""What names a pipeline's models: told apart, told to be the same, shown, pickled."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping
from types import FunctionType, MethodType
from typing import Any

from rsd_integrations.adapters.secrets import without_secrets
from rsd_integrations.errors import ConfigError
from rsd_integrations.functions import RewardFunction
from rsd_integrations.types import Role

POCKET = "pocket"
"""The ``pipeline`` that is the embedded trio."""

LIVE = "live:"
"""Prefix of the names of sources that only this process has."""

_CODE = (type, FunctionType, RewardFunction)
_EQUAL = (FunctionType, MethodType, RewardFunction)
"""Types of objects that are the same if they are equal: each access to a method makes a new object."""

Spec = Mapping[str, Any]
"""A live ``pipeline`` alone; or ``draft``, ``target`` and ``prm``, or ``POCKET`` and what replaces models of
it; and further arguments of the loader."""


def is_portable(spec: Spec) -> bool:
    """Whether a spec is data from which another process could load the same."""
    return not is_live(spec) and all(_is_plain(value) for _, value in signature(spec))


def check_pickles(spec: Spec, what: str) -> None:
    """Refuse what another process could not load. A PRM format's class and a reward function are pickled by
    their names, as any class or function.

    Args:
        spec: of the models.
        what: the thing that is pickled, for the message.

    Raises:
        ConfigError: it cannot be pickled.
    """
    held = {name: value for name, value in signature(spec) if not _is_plain(value) and not _has_name(value)}
    code = [name for name in held if name == "prm_format" or isinstance(held[name], _CODE)]
    if is_live(spec) or len(code) < len(held):
        raise ConfigError(
            f"{what} over a live pipeline or loaded models cannot be pickled.",
            hint="Name the models by hub id or folder, or use the pocket trio.",
        )
    if code:
        more = " A format may be passed by the name that register_prm_format knows it by, there too."
        raise _unknown_elsewhere(what, code[0], held[code[0]], more if code[0] == "prm_format" else "")


def check_function_pickles(name: str, value: Any, what: str) -> None:
    """Refuse a function of a setting that another process could not find.

    Raises:
        ConfigError: it cannot be pickled.
    """
    if callable(value) and not _pickles(value):
        raise _unknown_elsewhere(what, name, value)


def _unknown_elsewhere(what: str, name: str, value: Any, more: str = "") -> ConfigError:
    return ConfigError(
        f"{what} with {name}={value!r} cannot be pickled.",
        hint=f"Define it in a module by a name of its own.{more}",
    )


def is_live(spec: Spec) -> bool:
    """Whether it names a pipeline that only this process has."""
    named = spec.get("pipeline")
    return isinstance(named, str) and named.startswith(LIVE)


def _has_name(value: Any) -> bool:
    """Whether it is a class or function that its module has under its name, or settings around one."""
    return isinstance(value, _CODE) and _pickles(value)


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def label(model: Any) -> str:
    """A model's name, by what was given for it."""
    if isinstance(model, tuple) and model:
        model = model[0]
    if _is_plain(model):
        return str(model)
    names = (getattr(model, name, "") for name in ("name_or_path", "label", "__qualname__"))
    return next((str(name) for name in names if name), type(model).__name__)


def signature(spec: Spec) -> list[tuple[str, Any]]:
    """What tells these models from others: not secrets, and not how a path or dtype was spelled."""
    return sorted((plain(without_secrets(spec)) or {}).items())


def named_models(spec: Spec, *roles: Role) -> dict[str, Any]:
    """Where the configs and tokenizers of these roles' models come from."""
    if "pipeline" in spec:
        from rsd_integrations.pocket import pocket_paths

        spec = {**vars(pocket_paths()), **spec}
    return {name: spec[name] for role in roles for name in (role, f"{role}_kwargs") if name in spec}


def _is_plain(value: Any) -> bool:
    """Whether it is data: numbers, strings, paths, dtypes, and containers of these."""
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float) or _goes_by_name(value)


def plain(value: Any) -> Any:
    """Data as it is saved: paths and dtypes by their names. What is no data stays what it is."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return str(value).removeprefix("torch.") if _goes_by_name(value) else value


def _goes_by_name(value: Any) -> bool:
    # By the class's name, because torch is not imported here.
    of_torch = type(value).__name__ in ("dtype", "device") and type(value).__module__ == "torch"
    return of_torch or hasattr(value, "__fspath__")


def identity(value: Any) -> Hashable:
    """A key, equal for equal plain values; objects are told apart as such (the source keeps them alive)."""
    if isinstance(value, Mapping):
        return tuple((name, identity(value[name])) for name in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return tuple(identity(item) for item in value)
    if isinstance(value, set) or not (_is_plain(value) or isinstance(value, _EQUAL)):
        return object, id(value)
    try:
        hash(value)
    except TypeError:  # It holds an object that cannot be a key.
        return object, id(value)
    return type(value), value
