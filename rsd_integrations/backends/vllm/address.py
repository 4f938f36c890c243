"""Where a role's servers are and how they are asked, as users name it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from rsd_integrations.errors import ConfigError
from rsd_integrations.limits import check_count
from rsd_integrations.naming import nearest
from rsd_integrations.secrecy import check_url
from rsd_integrations.types import Role

OPTIONS = ("model", "api_key", "headers", "max_concurrency", "timeout", "attempts", "patience", "ahead")
"""Options of a role's servers, besides those of its tokenizer."""


_MOST, _LEAST, _OTHERS = 256, 16, 64
"""Most and fewest connections of a role, and open files that this process needs for all else."""


def _connections() -> int:
    """As many as requests run at once by default; fewer if three roles may not open so many files (macOS)."""
    try:
        from resource import RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows, which has no such limit.
        return _MOST
    files, _ = getrlimit(RLIMIT_NOFILE)
    return _MOST if files < 0 else max(_LEAST, min(_MOST, (files - _OTHERS) // 3))


@dataclass(frozen=True)
class Address:
    """The servers of one role.

    Args:
        urls: base URLs of its replicas, without "/v1".
        model: the served name; None: the only one that the server lists.
        api_key: sent as a bearer token; None: that of the environment's VLLM_API_KEY, if there is one.
        headers: further ones to send with each question.
        max_concurrency: questions on their way to all replicas together, each with a connection: 256 if this
            process may open so many files, else what is left of them.
        timeout: seconds an answer may take. What a replica does not answer by then is asked of another, once,
            so where there are replicas a question may take twice as long.
        attempts: how often in all a question is asked that a server could not take.
        patience: seconds for which servers that cannot be reached are tried, from when that was found: one
            that restarts needs a minute or more. While a pipeline is made, only ``attempts`` counts.
        ahead: of a draft: whether it writes on behind a step that waits for its reward; None: it does.
    """

    role: Role
    urls: tuple[str, ...]
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_concurrency: int = field(default_factory=_connections)
    timeout: float = 600.0
    attempts: int = 5
    patience: float = 120.0
    ahead: bool | None = None

    @classmethod
    def of(cls, role: Role, urls: Any, options: Mapping[str, Any]) -> Address:
        """Read what users give.

        Raises:
            ConfigError: it is no URL, or an option is out of bounds.
        """
        given = (urls,) if isinstance(urls, str) else urls
        if not isinstance(given, tuple | list) or not given:
            raise ConfigError(f"{role}={urls!r:.200} is no URL.", hint=_URL_HINT)
        made = cls(role, tuple(_base_url(role, url) for url in given), **options)
        made._check()
        return made

    def _check(self) -> None:
        where = f"{self.role}_kwargs"
        for name in ("max_concurrency", "attempts"):
            check_count(f"{where}: {name}", getattr(self, name), 1)
        for name, least in (("timeout", "above"), ("patience", "from")):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not (value > 0 or (value == 0 and least == "from")):
                raise ConfigError(f"{where}: {name}={value!r} is no time.", hint=f"Give seconds {least} 0.")
        if self.ahead is not None and (self.role != "draft" or not isinstance(self.ahead, bool)):
            raise ConfigError(
                f"{where}: ahead={self.ahead!r}.", hint="Give True or False, and to the draft alone."
            )
        for name in ("model", "api_key"):
            if not isinstance(getattr(self, name), str | None):
                shown = "" if name == "api_key" else f"={getattr(self, name)!r}"
                raise ConfigError(f"{where}: {name}{shown} is no text.", hint="Give a string.")
        if not isinstance(self.headers, Mapping):
            raise ConfigError(f"{where}: headers are no mapping of texts.", hint='Write {"name": "value"}.')
        for name, value in self.all_headers.items():
            if not (_may_be_sent(name) and _may_be_sent(value) and _NAME.fullmatch(name)):
                # The value is not shown: it may be a key that was read with a line break behind it.
                raise ConfigError(
                    f"{where}: api_key or headers hold what no header can: a value that is no text, line "
                    "breaks, characters beyond Latin 1, or an invalid name.",
                    hint="Check what was read from a file or the environment.",
                )

    @property
    def all_headers(self) -> dict[str, str]:
        """What is sent with each question."""
        key = os.environ.get("VLLM_API_KEY") if self.api_key is None else self.api_key
        named = any(str(name).lower() == "authorization" for name in self.headers)
        return {**({"Authorization": f"Bearer {key.strip()}"} if key and not named else {}), **self.headers}


_URL_HINT = 'Give the base URL of a vLLM server, such as "http://127.0.0.1:8000", or a list of them.'


_NAME = re.compile(r"(?!content-length$|transfer-encoding$)[\w!#$%&'*+.^`|~-]+", re.ASCII | re.IGNORECASE)
"""Names of headers that may be set."""


def _may_be_sent(text: Any) -> bool:
    return isinstance(text, str) and text.isprintable() and all(ord(sign) < 256 for sign in text)


def _base_url(role: Role, url: Any) -> str:
    if isinstance(url, str):
        check_url(role, url, f"Give {role}_kwargs={{'headers': {{'Authorization': ...}}}}.")
    try:
        parts = URL(url.strip())
        fine = parts.scheme in ("http", "https") and bool(parts.host) and (parts.port or 0) < 2**16
    except (AttributeError, ValueError):
        fine = False
    if not fine:
        raise ConfigError(f"{role}={url!r:.200} is no URL.", hint=_URL_HINT)
    return str(parts).rstrip("/").removesuffix("/v1").rstrip("/")


def split_options(
    role: Role, options: Mapping[str, Any] | None, more: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the servers, and those of tokenizer and config.

    Args:
        more: names of the latter.

    Raises:
        ConfigError: one is unknown.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"{role}_kwargs={options!r:.200} is no mapping.", hint='Write {"model": "..."}.')
    options = options or {}
    for name in options:
        if name not in OPTIONS and name not in more:
            raise ConfigError(f"unknown {role}_kwargs {name!r}.", hint=nearest(str(name), (*OPTIONS, *more)))
    servers = {name: value for name, value in options.items() if name in OPTIONS}
    return servers, {name: value for name, value in options.items() if name in more}
