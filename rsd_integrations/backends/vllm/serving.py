"""What a role's servers say they serve, and what of it is read on this side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from rsd_integrations.backends.shared.describe import positions, text_config
from rsd_integrations.backends.shared.sources import Source
from rsd_integrations.backends.vllm.address import Address
from rsd_integrations.backends.vllm.client import Servers
from rsd_integrations.errors import BackendError, ConfigError, ModelError, UnreachableError
from rsd_integrations.waiting import in_a_thread

_PAUSE = 0.25
"""Seconds before replicas are asked again if none of them was there, doubled each time."""

_QUICK = 10.0
"""Seconds within which a server has to say what it serves."""

_ANY_LENGTH = 1 << 20
"""Tokens, for a window whose size nothing tells."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Served:
    """What a role's servers say they are, and what is read of the model on this side."""

    address: Address
    name: str
    window: int
    longest: int | None
    files: Source
    there: tuple[Address, ...]
    """The address of each replica that answered."""


def served_by(address: Address, options: dict[str, Any], max_length: int | None) -> Served:
    """What its servers serve.

    Args:
        options: for reading config and tokenizer on this side.
        max_length: most tokens of prompt and answer; None: as many as the servers take.

    Raises:
        BackendError: no server answers.
        ConfigError: they do not serve one and the same model, or not the one that is named; or code is
            trusted that a server would choose.
        ModelError: its config or tokenizer cannot be read on this side.
    """
    options = dict(options)
    source = options.pop("source", None)
    if source is None and options.get("trust_remote_code"):
        raise ConfigError(
            f"{address.role}_kwargs: trust_remote_code={options['trust_remote_code']!r} without a 'source' "
            "would run code from wherever the server says.",
            hint="Name the 'source' whose code you trust: a folder or hub id of config and tokenizer.",
        )
    cards = _cards(address)
    card = next(iter(cards.values()))
    try:
        files = Source.of(address.role, source or card.root, options)
    except ModelError as error:
        if source is not None:
            raise
        raise ModelError(
            f"{address.urls[0]} serves {card.name!r} from {card.root!r}, which cannot be read on this side: "
            f"{error.message}",
            hint=f"Give {address.role}_kwargs={{'source': ...}}: a folder or hub id of config and tokenizer.",
        ) from error
    told = [one.length for one in cards.values() if one.length]
    longest = min(told) if told else positions(text_config(files.config))
    window = min(size for size in (longest, max_length, _ANY_LENGTH) if size)
    there = tuple(replace(address, urls=(url,)) for url in cards)
    return Served(address, card.name, window, longest, files, there)


@dataclass(frozen=True)
class _Card:
    """What a server says of a model. ``length``: of its window, where it tells."""

    name: str
    root: str
    length: int | None


def _cards(address: Address) -> dict[str, _Card]:
    """The card of each replica that answers, by URL. As long as one is there, the others may come later.

    Raises:
        BackendError: none answers.
        ConfigError: they do not serve one and the same model.
    """
    quick = replace(address, timeout=min(address.timeout, _QUICK))
    cards = _there(quick) if len(address.urls) == 1 else _there_at_last(quick)
    names = [card.name for card in cards.values()]
    if len(set(names)) > 1:
        raise ConfigError(
            f"the replicas of {address.role} serve different models: {names!r}.",
            hint=f"Say which: {address.role}_kwargs={{'model': ...}}.",
        )
    return cards


def _there(address: Address) -> dict[str, _Card]:
    """The card of each replica that answers, by URL.

    Raises:
        BackendError: none answers.
    """
    cards: dict[str, _Card] = {}
    failed: UnreachableError | None = None
    for url in address.urls:
        one = replace(address, urls=(url,))
        try:
            cards[url] = at_once(partial(_asked, one), one)
        except UnreachableError as error:
            failed = failed or error
    if failed and not cards:
        raise failed
    return cards


def _there_at_last(address: Address) -> dict[str, _Card]:
    """The same in ``attempts`` rounds of one question to each replica: all of them may be starting."""
    once = replace(address, attempts=1)
    for turn in range(address.attempts - 1):
        with suppress(UnreachableError):
            return _there(once)
        time.sleep(_PAUSE * 2 ** min(turn, 4))
    return _there(once)


async def _asked(address: Address, servers: Servers) -> _Card:
    said = await servers.ask("/v1/models")
    with servers.hiding():
        return _card(address, said)


def _card(address: Address, said: Any) -> _Card:
    """The card of the model that the address names, else of the only one that is no adapter of another."""
    where = f"{address.role}={address.urls[0]!r}"
    try:
        models = {str(card["id"]): dict(card) for card in said["data"]}
        for card in models.values():
            if not isinstance(card.get("max_model_len"), int | None):
                raise TypeError("no number of tokens")
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"{address.urls[0]} answered {str(said)[:200]!r} to /v1/models.",
            hint="Check that it is a vLLM server.",
        ) from error
    name = address.model
    if name is None:
        whole: dict[str, str] = {}
        for served, card in models.items():
            if not card.get("parent"):
                whole.setdefault(str(card.get("root") or served), served)  # One model may have several names.
        if len(whole) != 1:
            raise ConfigError(
                f"{where} serves {sorted(models)!r}.",
                hint=f"Say which: {address.role}_kwargs={{'model': ...}}.",
            )
        name = next(iter(whole.values()))
    if name not in models:
        raise ConfigError(
            f"{where} does not serve {name!r} but {sorted(models)!r}.",
            hint=f"Give one of these as {address.role}_kwargs={{'model': ...}}.",
        )
    # An adapter's tokenizer and config are those of the model that it adapts.
    own = models[name]
    base = models.get(str(own.get("parent"))) or own
    return _Card(name, str(base.get("root") or own.get("parent") or name), base.get("max_model_len"))


def at_once(ask: Callable[[Servers], Awaitable[Made]], address: Address) -> Made:
    """Ask servers and wait for the answer, whether or not an event loop is running here."""

    async def asked() -> Made:
        servers = Servers(replace(address, patience=0))
        try:
            return await ask(servers)
        finally:
            await servers.aclose()

    return in_a_thread(lambda: asyncio.run(asked()), "rsd-servers", ended_with=False)
