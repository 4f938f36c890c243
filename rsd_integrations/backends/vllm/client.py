"""Asking a role's servers: replicas, retries, errors that say what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from itertools import count
from typing import Any

import httpx

from rsd_integrations.backends.vllm.address import Address
from rsd_integrations.errors import BackendError

__all__ = ["Servers"]

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses behind which the same question may be answered."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
"""Seconds before the second try, doubled for each one more."""

_DOWN = 10.0
"""Seconds for which a server that could not be reached is asked only if no other is left."""


class Servers:
    """The replicas of one model, asked over HTTP. Used on one event loop.

    A request stays with one of them, where its prefix is cached; the others are for when that one is gone.
    Leaving a question (by cancelling) closes its connection, which frees the server.

    Args:
        address: where they are.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._down: dict[str, float] = {}
        self._keys = count()
        self._slots = asyncio.Semaphore(address.max_concurrency)
        self._http = httpx.AsyncClient(
            headers=address.all_headers,
            timeout=httpx.Timeout(address.timeout, connect=min(10.0, address.timeout), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=address.max_concurrency),
        )

    def next_key(self) -> int:
        """For another request: they take the replicas in turn."""
        return next(self._keys)

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: int = 0,
        attempts: int | None = None,
    ) -> Any:
        """The JSON that a server answers.

        Args:
            path: of the question.
            body: what is posted; None: a GET.
            key: of the request: equal keys go to one server.
            attempts: fewer than the address says.

        Raises:
            BackendError: no server answered, or one refused.
        """
        async with self._slots:
            return await self._tried(path, body, key, attempts or self._address.attempts)

    async def _tried(self, path: str, body: Mapping[str, Any] | None, key: int, attempts: int) -> Any:
        pause, failed = _FIRST_PAUSE, ""
        for attempt in range(attempts):
            url = self._choose(key)
            try:
                response = await self._http.request("GET" if body is None else "POST", url + path, json=body)
            except httpx.TimeoutException as error:
                if not isinstance(error, httpx.ConnectTimeout):
                    raise self._late(url, path) from error
                failed = self._unreachable(url, error)
            except httpx.HTTPError as error:
                failed = self._unreachable(url, error)
            else:
                if response.is_success:
                    self._down.pop(url, None)
                    return _json(response, url + path)
                failed = f"answered {response.status_code} to {path}: {_told(response)}"
                if response.status_code not in _AGAIN:
                    raise self._refused(url, failed, response.status_code)
                pause = max(pause, min(_seconds(response.headers.get("retry-after")), _LONGEST_PAUSE))
                if response.status_code >= 500:
                    self._down[url] = time.monotonic() + _DOWN
            if attempt + 1 < attempts and not self._another(key, url):
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        raise BackendError(
            f"the {self._address.role}'s server at {url} {failed} ({attempts} tries).",
            hint="Check that it runs and what it logs; raise attempts if it is only starting.",
        )

    def _choose(self, key: int) -> str:
        """The request's own server, or the next of those that were there when last asked."""
        urls = self._address.urls
        order = [urls[(key + place) % len(urls)] for place in range(len(urls))]
        now = time.monotonic()
        up = [url for url in order if self._down.get(url, 0.0) <= now]
        # None is known to be up: the one that has been left alone for longest.
        return up[0] if up else min(order, key=lambda url: self._down[url])

    def _another(self, key: int, url: str) -> bool:
        """Whether the next question goes to another server, which is there as far as is known."""
        found = self._choose(key)
        return found != url and self._down.get(found, 0.0) <= time.monotonic()

    def _unreachable(self, url: str, error: Exception) -> str:
        self._down[url] = time.monotonic() + _DOWN
        return f"cannot be reached: {type(error).__name__} {error!s:.200}".rstrip()

    def _late(self, url: str, path: str) -> BackendError:
        return BackendError(
            f"the {self._address.role}'s server at {url} did not answer {path} within "
            f"{self._address.timeout:g} s.",
            hint="Raise timeout, or lower max_step_tokens or max_concurrency.",
        )

    def _refused(self, url: str, failed: str, status: int) -> BackendError:
        hints = {
            401: f"Give {self._address.role}_kwargs={{'api_key': ...}}.",
            403: f"Give {self._address.role}_kwargs={{'api_key': ...}}.",
            404: "Check the model's name, and that it is a vLLM server of the right kind (see the README).",
        }
        hint = hints.get(status, "See what the server says; its version may differ from those tested.")
        return BackendError(f"the {self._address.role}'s server at {url} {failed}.", hint=hint)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _json(response: httpx.Response, url: str) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise BackendError(
            f"{url} answered with no JSON but {response.text[:80]!r}.", hint="Check that it is a vLLM server."
        ) from error


def _told(response: httpx.Response) -> str:
    """What the server says is wrong, in one line."""
    try:
        said = response.json()
        error = said.get("error", said)
        text = str(error.get("message", error) if isinstance(error, Mapping) else error)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(text.split())[:300].rstrip(".") or response.reason_phrase


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0  # A date.
