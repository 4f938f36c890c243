"""Which PRM formats there are, and which one a model needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import isabstract
from typing import Any, TypeVar, get_args

from rsd_integrations.errors import ConfigError, ModelError
from rsd_integrations.limits import check_takes
from rsd_integrations.prm.base import Head, PRMFormat

FormatClass = TypeVar("FormatClass", bound=type[PRMFormat])
FormatMaker = Callable[[Any, Mapping[str, Any]], PRMFormat]

_formats: dict[str, type[PRMFormat]] = {}


def register_prm_format(cls: FormatClass) -> FormatClass:
    """Make a format known by its ``name``; usable as a class decorator.

    ``"auto"`` asks formats in the reverse order of their registration, so a new one is asked first. A class
    that is defined again, as by a notebook's cell that runs twice, replaces its former self.

    Raises:
        ConfigError: it is no concrete ``PRMFormat`` with a name and a head, or the name is taken.
    """
    name = _concrete(cls).name
    if _origin(_formats.get(name, cls)) != _origin(cls):
        raise ConfigError(
            f"a PRM format named {name!r} is registered already: {_formats[name]!r}.",
            hint="Choose another name.",
        )
    _formats[name] = cls
    return cls


def prm_format_names() -> tuple[str, ...]:
    """The names of all formats, sorted."""
    return tuple(sorted(_formats))


def registered(choice: Any) -> tuple[type[PRMFormat], ...]:
    """The classes that a choice by name may mean at this moment: for "auto" all of them, in their order."""
    if not isinstance(choice, str):
        return ()
    return tuple(cls for name, cls in tuple(_formats.items()) if choice in ("auto", name))


def find_prm_format(choice: Any, config: Any, tokenizer: Any) -> PRMFormat:
    """The format of a PRM.

    Args:
        choice: "auto", a name, a ``PRMFormat`` subclass or instance, or a callable that makes one from
            a tokenizer and the options of ``rsd_prm``. "auto" takes the format that ``rsd_prm`` in the
            model's config names, or else the first whose ``detect`` recognises the model.
        config: the model's transformers config.
        tokenizer: the PRM's.

    Raises:
        ConfigError: there is no such format, or its options are wrong.
        ModelError: no format recognises the model, or the tokenizer does not fit the format.
    """
    return _chosen(choice, config, tokenizer).with_config(config)


def _chosen(choice: Any, config: Any, tokenizer: Any) -> PRMFormat:
    if isinstance(choice, PRMFormat):
        return choice
    options = _config_options(config)
    if choice == "auto":
        cls = _named(str(options["format"])) if options else _detect(config, tokenizer)
        return cls(tokenizer, options)
    if isinstance(choice, str | type):
        cls = _named(choice) if isinstance(choice, str) else _concrete(choice)
        return cls(tokenizer, options if _meant(cls, options) else None)
    if callable(choice):
        return _made(choice, tokenizer, options)
    raise ConfigError(f"prm_format is {choice!r}.", hint=_choices())


def _concrete(cls: Any) -> type[PRMFormat]:
    if not (isinstance(cls, type) and issubclass(cls, PRMFormat)) or isabstract(cls):
        raise ConfigError(
            f"{cls!r} is not a concrete subclass of PRMFormat.",
            hint="Subclass rsd_integrations.prm.PRMFormat and define name, head, detect, prompt, step and "
            "reward.",
        )
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name or name == "auto":
        raise ConfigError(f"the PRM format {cls!r} has the name {name!r}.", hint='Set name = "my_format".')
    if getattr(cls, "head", None) not in get_args(Head):
        raise ConfigError(
            f"the PRM format {cls!r} has the head {getattr(cls, 'head', None)!r}.",
            hint=f"Set head = one of {', '.join(map(repr, get_args(Head)))}.",
        )
    return cls


def _origin(cls: type[PRMFormat]) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _named(name: str) -> type[PRMFormat]:
    try:
        return _formats[name]
    except KeyError:
        raise ConfigError(f"there is no PRM format {name!r}.", hint=_choices()) from None


def _meant(cls: type[PRMFormat], options: Mapping[str, Any]) -> bool:
    """Whether the model's options were written for this format."""
    return options.get("format") == cls.name


def _made(maker: FormatMaker, tokenizer: Any, options: Mapping[str, Any]) -> PRMFormat:
    hint = "It is given two arguments: the PRM's tokenizer and the options of rsd_prm, a mapping."
    check_takes(maker, tokenizer, options, what=f"prm_format {maker!r}", hint=hint)
    made = maker(tokenizer, options)
    if not isinstance(made, PRMFormat):
        raise ConfigError(
            f"prm_format {maker!r} returned {type(made).__name__}.", hint="It must return a PRMFormat."
        )
    return made


def _config_options(config: Any) -> Mapping[str, Any]:
    options = getattr(config, "rsd_prm", None) or {}
    if not isinstance(options, Mapping) or (options and "format" not in options):
        raise ConfigError(
            f"rsd_prm in the PRM's config is {options!r}.",
            hint='It must be a mapping such as {"format": "trl", "threshold": 0.9}.',
        )
    return options


def _detect(config: Any, tokenizer: Any) -> type[PRMFormat]:
    for cls in reversed(_formats.values()):
        try:
            if cls.detect(config, tokenizer):
                return cls
        except Exception as error:
            raise ConfigError(
                f"the PRM format {cls.name!r} failed to look at a model: {type(error).__name__}: {error}.",
                hint="Fix its detect, or pass prm_format=.",
            ) from error
    architectures = list(getattr(config, "architectures", None) or ())
    judge = any("CausalLM" in name for name in architectures)
    raise ModelError(
        f"cannot tell the PRM format of {getattr(config, '_name_or_path', '') or 'this model'!r} "
        f"(architectures {architectures!r}, model type {getattr(config, 'model_type', None)!r}).",
        hint=_choices() + (' For a chat model that should judge, "judge".' if judge else ""),
    )


def _choices() -> str:
    names = ", ".join(map(repr, prm_format_names()))
    return f"Pass prm_format= one of {names}, or a subclass of PRMFormat."
