"""Opens a pipeline of three models, whether they are loaded in this process or named by servers' URLs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import SecretStr

from rsd_integrations.errors import ConfigError
from rsd_integrations.given import is_object
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.secrecy import check_url
from rsd_integrations.types import Role

_OF_SERVERS = ("prm_format", "max_batch_size", "max_length", "draft_kwargs", "target_kwargs", "prm_kwargs")


def are_servers(draft: Any, target: Any, prm: Any, options: Iterable[str] = ()) -> bool:
    """Whether three models are named by their servers' URLs.

    Args:
        draft: a hub id, folder, loaded model, an object that does its work, or a URL or several of them.
        target: likewise.
        prm: likewise, or a function.
        options: names of the options that go with them.

    Raises:
        ConfigError: some are and some are not, a URL is not one of a server, or an option is for models in
            this process.
    """
    given: dict[Role, Any] = {"draft": draft, "target": target, "prm": prm}
    for role, model in given.items():
        _check_shown(role, model)
    # Models given as objects go with servers as well as with loaded models.
    models = {role: model for role, model in given.items() if not is_object(role, model)}
    served = [role for role, model in models.items() if _is_url(model)]
    if not served:
        return False
    if files := [role for role in models if role not in served]:
        name = "names" if len(served) == 1 else "name"
        raise ConfigError(
            f"{' and '.join(served)} {name} servers, {' and '.join(files)} "
            f"{'does' if len(files) == 1 else 'do'} not: {models[files[0]]!r:.200}.",
            hint="Serve all three, or load all three here.",
        )
    if others := [name for name in options if name not in _OF_SERVERS]:
        verb = "is" if len(others) == 1 else "are"
        raise ConfigError(
            f"{', '.join(others)} {verb} for models in this process, and these are servers.",
            hint=f"Set it where they are started, or leave it out. Known here: {', '.join(_OF_SERVERS)}.",
        )
    return True


def open_models(draft: Any, target: Any, prm: Any, **options: Any) -> RSDPipeline:
    """``RSDPipeline.from_vllm`` for URLs, ``from_pretrained`` for all else.

    Raises:
        ConfigError: as for ``are_servers``, or for these two.
        RSDError: as for these two.
    """
    served = are_servers(draft, target, prm, options)
    opens = RSDPipeline.from_vllm if served else RSDPipeline.from_pretrained
    return opens(draft=draft, target=target, prm=prm, **options)


def check_tools(
    draft: Any,
    target: Any,
    *,
    draft_kwargs: Mapping[str, Any] | None = None,
    target_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Refuse models that could not be told of tools, before any weight is loaded.

    Args:
        draft: as for ``RSDPipeline.from_pretrained``, like the other arguments.

    Raises:
        ConfigError: a chat template takes no tools, the target's calls could not be read, or an option is
            unknown.
        ModelError: a tokenizer cannot be loaded.
    """
    from rsd_integrations.backends.shared.tooling import check_tools as check

    check("draft", draft, draft_kwargs)
    check("target", target, target_kwargs)


def _is_url(model: Any) -> bool:
    urls = model if isinstance(model, list | tuple) and model else [model]
    return all(
        isinstance(url, str) and url.strip().lower().startswith(("http://", "https://")) for url in urls
    )


def _check_shown(role: Role, model: Any) -> None:
    """Refuse a URL that may hold a secret: objects that name it would show it.

    Raises:
        ConfigError: it has a user, a password, a query or a fragment.
    """
    for url in model if isinstance(model, list | tuple) else [model]:
        text = url.get_secret_value() if isinstance(url, SecretStr) else url
        if isinstance(text, str):
            check_url(role, text, f"Give {role}_kwargs={{'api_key': ...}}, or 'headers'.")
