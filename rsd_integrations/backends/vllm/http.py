"""One try of one question over HTTP (aiohttp): an answer, or an exception where there is none.

aiohttp and not httpx: for each question httpx takes 2 to 4 ms of the event loop's time, more than all the
other work for it, and aiohttp 0.2 ms (dev/vllm.md).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from rsd_integrations.errors import ConfigError
from rsd_integrations.secrecy import is_secret

_IDLE = 2.0
"""Seconds after which an idle connection is closed. A server (after 5 s) might do so just as we ask."""

_SCHEME = re.compile(r"(bearer|basic|token)\s+", re.IGNORECASE)

_SHORTEST_SECRET = 6
"""Characters. Shorter values are placeholders ("EMPTY"), and would be found in any text."""

_LONGEST_ANSWER = 1 << 26
"""Bytes. Two logits of each of a million tokens are 48 MiB, a million tokens' ids 8 MiB."""

_LONGEST_EVENT = 1 << 22
"""Bytes, of which aiohttp takes twice as many. The first event repeats the prompt's tokens."""

_UNPACKED = {"Accept-Encoding": "identity"}
"""A megabyte may unpack to a thousand, while the event loop stands still. So nothing is unpacked here."""


class Away(Exception):
    """Nobody answers. ``hint``: what to do, if waiting will not help."""

    hint = ""


class Stale(Away):
    """The connection ended in mid-question."""


class Untrusted(Away):
    """Its certificate is not accepted, nor will it be later."""

    hint = (
        "If a CA of your own signed its certificate, set SSL_CERT_FILE before Python starts, to a file "
        "of that CA's certificates and the public ones (`python -m certifi` says where they are); else "
        "check for which name and until when it is valid."
    )


class NoTLS(Away):
    """TLS was not agreed upon."""

    hint = "Check whether it is to be asked by http:// or by https://."


class Late(Exception):
    """No answer came in time."""


class Unsendable(Exception):
    """HTTP cannot carry the question."""


class TooLong(Exception):
    """The answer is longer than any honest one."""


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether it did what it was asked for."""
        return 200 <= self.status < 300

    @property
    def is_whole(self) -> bool:
        """Whether it said where it ends; else it may have been cut off where its connection ended."""
        return "Content-Length" in self.headers or "Transfer-Encoding" in self.headers

    @property
    def text(self) -> str:
        """The body, whatever it is."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it is no JSON.
        """
        return _json(self.body)


def _json(data: bytes) -> Any:
    """What it says.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _event(data: bytes, path: str) -> Any:
    try:
        event = _json(data)
    except ValueError:  # Its text quotes what the server wrote.
        raise Away(f"answered {path} with an event that is no JSON") from None
    if isinstance(event, dict) and event.get("error"):  # It may quote the question.
        raise Away(f"answered {path} with an error in mid-stream")
    return event


class Http:
    """Connections to some servers. Used on one event loop.

    Args:
        urls: of the servers, for the proxies of the environment.
        headers: of every question.
        connect: seconds to connect.
        timeout: seconds an answer may take, all of its pieces together.

    Raises:
        ConfigError: the environment names a proxy that cannot be used.
    """

    def __init__(
        self, urls: Iterable[str], headers: Mapping[str, str], connect: float, timeout: float
    ) -> None:
        self._proxies = {url: _proxy(url) for url in urls}
        self._headers = {"Content-Type": "application/json", **headers}
        logins = [proxy.headers for proxy in self._proxies.values() if proxy is not None]
        self._secrets = _secrets([headers, *logins])
        self._timeout = aiohttp.ClientTimeout(
            total=connect + timeout, sock_connect=connect, sock_read=timeout
        )
        self._session: aiohttp.ClientSession | None = None

    def is_through_a_proxy(self, url: str) -> bool:
        """Whether the environment names a proxy for a server."""
        return self._proxies[url] is not None

    def without_secrets(self, text: str) -> str:
        """A text that quotes servers and proxies, with stars for the secrets that these may have repeated.

        If the quotation was cut off within a secret, its beginning (from 6 characters) is hidden, too.
        """
        for secret in self._secrets:
            first, *rest = text.split(secret[:_SHORTEST_SECRET])
            known = secret[_SHORTEST_SECRET:]
            same = [commonprefix([part, known]) for part in rest]  # noqa: RUF071 (by characters, as is meant)
            text = "***".join([first, *map(str.removeprefix, rest, same)])
        return text

    async def ask(self, url: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        """Post a body, or, if that is None, send a GET. Cancelling closes the connection.

        Raises:
            Away, Late, Unsendable, TooLong: there is no answer; ``__cause__`` says why.
        """
        async with self._asked(url, path, body) as response:
            read = bytearray()
            async for piece in response.content.iter_any():
                read += piece
                if len(read) > _LONGEST_ANSWER:
                    raise TooLong(f"more than {_LONGEST_ANSWER >> 20} MiB")
            return Answer(response.status, response.reason or "", response.headers, bytes(read))

    async def stream(self, url: str, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Post a body, and give the JSON of each server-sent event as it comes.

        Raises:
            Away, Late, Unsendable: as ``ask``; Away also, with the reason, for an answer that is no
                success, and for events that are no JSON or tell an error.
        """
        async with self._asked(url, path, body) as response:
            if response.status != 200:
                raise Away(f"answered {response.status} to {path}")
            async for line in response.content:
                data = line.removeprefix(b"data:").strip()
                if data and data != b"[DONE]" and data != line.strip():
                    yield _event(data, path)

    @contextlib.asynccontextmanager
    async def _asked(
        self, url: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        options: dict[str, Any] = {"allow_redirects": False, "timeout": self._timeout, "headers": _UNPACKED}
        if (proxy := self._proxies[url]) is not None:
            # The proxy gets its login with a request for a tunnel (https), or else with the question itself.
            tunnel = url.startswith("https:")
            login: dict[str, Any] = {"headers": {**_UNPACKED, **proxy.headers}}
            options |= {"proxy": proxy.address, **({"proxy_headers": proxy.headers} if tunnel else login)}
        try:
            async with self._open().request(
                "GET" if data is None else "POST", url + path, data=data, **options
            ) as response:
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise Untrusted from error
        except aiohttp.ClientConnectorSSLError as error:
            raise NoTLS from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Away from error
        except asyncio.TimeoutError as error:
            raise Late from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError) as error:
            raise Stale from error
        except ValueError:  # Its text quotes what was to be sent: a key, perhaps.
            raise Unsendable from None
        except (aiohttp.ClientError, HttpProcessingError) as error:  # The latter for events without an end.
            raise Away from error

    def _open(self) -> aiohttp.ClientSession:
        """The connections, made where they are used first: they belong to that event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=0, keepalive_timeout=_IDLE),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                read_bufsize=_LONGEST_EVENT,
                auto_decompress=False,
            )
        return self._session

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


_connected = WeakSet[ResponseHandler]()
"""What reads and writes each connection of this process."""


class _Connector(aiohttp.TCPConnector):
    """Tells what it connects."""

    async def connect(self, *args: Any, **options: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*args, **options)
        if connection.protocol is not None:
            _connected.add(connection.protocol)
        return connection


def _let_go() -> None:
    """In a forked child: give up its share of the parent's connections, without sending anything. While it
    has one, a server does not notice that a question was cancelled.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for one in list(_connected):
        socket = None if one.transport is None else one.transport.get_extra_info("socket")
        if socket is not None and socket.fileno() >= 0:
            # Not closed: whoever has this one may close it again, when its number is another file's.
            os.dup2(nothing, socket.fileno(), inheritable=False)
    os.close(nothing)


if hasattr(os, "register_at_fork"):  # Not on Windows.
    os.register_at_fork(after_in_child=_let_go)


@dataclass(frozen=True)
class _Proxy:
    """The login is in ``headers`` and not in ``address``, which errors show."""

    address: str
    headers: dict[str, str]


def _proxy(url: str) -> _Proxy | None:
    """What the environment names (HTTP_PROXY and the like) for a server.

    Raises:
        ConfigError: it cannot be used.
    """
    parts, proxies = urlsplit(url), getproxies()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if not named or proxy_bypass(parts.hostname or ""):
        return None
    scheme, _, rest = named.rpartition("://")
    if scheme not in ("", "http") or not rest:
        raise ConfigError(
            f"the environment's proxy cannot be used: it is of the kind {scheme or named!r}, not http.",
            hint="Unset HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, or name the servers in NO_PROXY.",
        )
    try:
        address = URL(f"http://{rest}")
    except ValueError:
        raise ConfigError(
            "the environment's proxy cannot be used: it is no URL.",
            hint="Check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY; %-encode special characters of a password.",
        ) from None
    headers = {}
    if address.user is not None or address.password is not None:
        login = f"{address.user or ''}:{address.password or ''}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    return _Proxy(str(address.with_user(None)), headers)


def _secrets(headers: Iterable[Mapping[str, str]]) -> list[str]:
    """Values of secret headers, without the scheme ("Bearer"); longest first, as one may begin another."""
    told = [value for some in headers for name, value in some.items() if is_secret(re.sub("[_.]", "-", name))]
    keys = {_SCHEME.sub("", value) for value in told}
    return sorted((key for key in keys if len(key) >= _SHORTEST_SECRET), key=len, reverse=True)
