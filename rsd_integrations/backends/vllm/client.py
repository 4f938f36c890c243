"""Asking a role's servers: replicas, retries, errors that say what to do."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any

from rsd_integrations.backends.vllm.address import Address
from rsd_integrations.backends.vllm.http import (
    Answer,
    Away,
    Http,
    Late,
    Stale,
    TooLong,
    Unsendable,
    Untrusted,
)
from rsd_integrations.errors import BackendError, RefusedError, RSDError, UnreachableError
from rsd_integrations.raising import Converting
from rsd_integrations.text.printable import printable

_log = logging.getLogger(__name__)

_AGAIN, _NEVER = frozenset({408, 425, 429}), frozenset({501, 505})
"""Statuses below 500 after which the same question, asked again, may be answered; those above after which it
will not be. The rest from 500 on pass, of which gateways have many of their own."""

_GONE = frozenset({502, 503, 521, 522, 523, 530})
"""Statuses of a server that is not there (yet), rather than of one that failed or is overloaded. From 521 on
they are Cloudflare's."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
"""Seconds before the second try, doubled for each further one."""

_LONGEST_RETRY = 60.0
"""Seconds to wait at most if a server says how long."""

_DOWN = 10.0
"""Seconds for which a server that could not be reached is asked only if no other is left."""

_QUIET = 10.0
"""Seconds for which a warning is not logged again: an outage is one of all questions."""

_CONNECT, _CONNECT_IF_OTHERS = 10.0, 3.0
"""Seconds to connect: without other replicas, and with."""


class _Busy(Exception):
    """An answer after which the same question may be asked again, in ``retry`` seconds."""

    def __init__(self, told: str, said: str, status: int, retry: float) -> None:
        super().__init__(f"{told}: {said}")
        self.told = told
        """Without what the server said, which may quote the question."""
        self.status = status
        self.retry = retry


class Servers:
    """The replicas of one model, asked over HTTP. Used on one event loop.

    A request stays with one of them, where its prefix is cached; the others are for when that one is gone.
    Cancelling a question closes its connection, which frees the server.

    Args:
        address: where they are.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._quiet: dict[str, float] = {}
        """Until when each warning is not logged again."""
        self._untold = Counter[str]()
        """How often each was not."""
        self._down: dict[str, float] = {}
        self._busy = Counter[str]()
        """Questions that each server is at."""
        self._keys = count()
        self._slots = asyncio.Semaphore(address.max_concurrency)
        connect = _CONNECT if len(address.urls) == 1 else _CONNECT_IF_OTHERS
        self._http = Http(
            address.urls, address.all_headers, min(connect, address.timeout), float(address.timeout)
        )

    def next_key(self) -> int:
        """The key of a new request. It goes to the replica that has the least to do, in turn where they are
        equal. So one that has stopped answering holds few requests.
        """
        key = next(self._keys)
        keys = range(key, key + len(self._address.urls))
        return min(keys, key=lambda one: self._busy[self._server(one)])

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: int = 0,
    ) -> Any:
        """The JSON that a server answers.

        Args:
            path: of the question.
            body: what is posted; None: a GET.
            key: of the request: equal keys go to one server.

        Raises:
            RefusedError: a server refused it.
            BackendError: no server answered.
        """
        with self.hiding():
            return await self._answer(path, body, key)

    def hiding(self) -> Converting[RSDError]:
        """Keep secrets out of errors that are raised within: what they quote of a server may repeat them."""
        return Converting(RSDError, self._hidden)

    def _hidden(self, error: RSDError) -> RSDError | None:
        told = self._http.without_secrets(error.message)
        if told == error.message:
            return None
        made = type(error)(told, hint=error.hint)
        made.__cause__ = None  # It may hold them as well.
        return made

    async def _answer(self, path: str, body: Mapping[str, Any] | None, key: int) -> Any:
        """As ``ask``, with errors that may hold secrets."""
        tries, wrong, pause = 0, 0, _FIRST_PAUSE
        end = math.inf
        stale = late = False
        while True:
            url, tries = self._choose(key), tries + 1
            try:
                return await self._asked(url, path, body)
            except Away as error:
                if isinstance(error, Stale) and not stale:
                    stale = True  # The server may only have closed an idle connection.
                    continue
                failed, retry, gone = self._unreachable(url, error.__cause__ or error), 0.0, True
                told, hint, final = failed, error.hint, isinstance(error, Untrusted)
            except _Busy as error:
                failed, retry, gone = str(error), error.retry, error.status in _GONE
                told, hint, final = error.told, "", False
            except Late as error:
                if late or not self._another(url):
                    raise self._late(url, path) from error.__cause__
                late = True  # Once: a question that takes too long everywhere would go round and round.
                self._warn(url, f"{self._too_late(path)}; trying another")
                continue
            now = time.monotonic()
            if gone:
                self._leave(url)
                # From the first such try on, however long the question had been at work or waited before.
                end = min(end, now + self._address.patience)
            # A try that found no server there says nothing against the question.
            wrong += not gone
            spent = (tries if gone else wrong) >= self._address.attempts
            if (spent and not (gone and now < end)) or (final and not self._another(url)):
                raise UnreachableError(
                    f"the {self._address.role}'s server at {url} {failed} "
                    f"({tries} {'try' if tries == 1 else 'tries'}).",
                    hint=hint or self._remedy(gone),
                )
            self._warn(url, f"{told}; trying again")
            if not (gone and self._another(url)):
                # One that is gone is looked for meanwhile: it has patience, not a number of tries.
                most = _LONGEST_PAUSE if gone else _LONGEST_RETRY
                await asyncio.sleep(max(pause, min(retry, most)))
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def stream(self, path: str, body: Mapping[str, Any], *, key: int) -> AsyncGenerator[Any, None]:
        """What a server answers, piece by piece. Nothing is tried again.

        Args:
            path: as for ``ask``, like the others.

        Raises:
            UnreachableError: no server answered, or not as asked.
        """
        url = self._choose(key)
        try:
            async with self._slot(url), aclosing(self._http.stream(url, path, body)) as events:
                async for event in events:
                    if _is_aborted(event):
                        self._leave(url)
                        raise Away(f"broke off its answer to {path}")
                    yield event
        except (Away, Late, Unsendable) as error:
            if isinstance(error, Late):
                self._leave(url)  # Else the question that takes this one's place would hang there as well.
            failed = self._broken(url, path, error)
            # Whoever wanted it asks anew, and may never tell of this.
            self._warn(url, f"{failed}, as it was to write ahead of a step's score", once=True)
            told = f"the {self._address.role}'s server at {url} {failed}."
            raise UnreachableError(told, hint="Check that it runs and what it logs.") from error

    def _warn(self, url: str, what: str, *, once: bool = False) -> None:
        """Log it, unless the same was logged just before (``once``: ever), of a question beside this one."""
        told = self._http.without_secrets(f"the {self._address.role}'s server at {url} {what}")
        now = time.monotonic()
        if now < self._quiet.get(told, 0.0):
            self._untold[told] += 1
            return
        self._quiet[told] = math.inf if once else now + _QUIET
        more = self._untold.pop(told, 0)
        _log.warning("%s%s", told, f" ({more} more since this was logged last)" if more else "")

    async def _asked(self, url: str, path: str, body: Mapping[str, Any] | None) -> Any:
        """One try, with one of the slots."""
        try:
            async with self._slot(url):
                answer = await self._http.ask(url, path, body)
        except Late:
            self._leave(url)
            raise
        except TooLong as error:
            raise BackendError(
                f"the {self._address.role}'s server at {url} answered {path} with {error}.",
                hint="Check that it is a vLLM server.",
            ) from None
        except Unsendable:
            raise BackendError(
                f"the question to the {self._address.role}'s server at {url} cannot be sent.",
                hint="Check api_key and headers.",
            ) from None
        if answer.status not in _GONE:
            self._down.pop(url, None)
        if answer.is_success:
            made = _json(answer, url, path)
            if _is_aborted(made):
                raise _Busy(f"broke off its answer to {path}", "finish_reason 'abort'", 503, 0.0)
            return made
        told, said = f"answered {answer.status} to {path}", _told(answer)
        if answer.status in _AGAIN or (answer.status >= 500 and answer.status not in _NEVER):
            raise _Busy(told, said, answer.status, _seconds(answer.headers.get("retry-after")))
        raise self._refused(url, path, f"{told}: {said}", answer.status)

    @asynccontextmanager
    async def _slot(self, url: str) -> AsyncIterator[None]:
        """One of the questions at a time, at this server."""
        self._busy[url] += 1
        until = self._down.get(url)
        try:
            async with self._slots:
                yield
        finally:
            self._busy[url] -= 1
            # Unless whoever asked learns more, nobody saw whether it is back: the next question may look.
            if until is not None and self._down.get(url) == until:
                self._down[url] = time.monotonic()

    def _leave(self, url: str) -> None:
        """Questions go elsewhere for a while."""
        self._down[url] = time.monotonic() + _DOWN

    def _choose(self, key: int) -> str:
        """The server to ask now. Only one question at a time looks whether one is back."""
        found = self._server(key)
        if found in self._down and len(self._address.urls) > 1:
            self._down[found] = time.monotonic() + max(_DOWN, self._address.timeout)
        return found

    def _server(self, key: int) -> str:
        """The request's own server, or the next of those that were there when last asked."""
        urls = self._address.urls
        order = [urls[(key + place) % len(urls)] for place in range(len(urls))]
        now = time.monotonic()
        up = [url for url in order if self._down.get(url, 0.0) <= now]
        # None is known to be up: the one that has been left alone for longest.
        return up[0] if up else min(order, key=lambda url: self._down[url])

    def _another(self, url: str) -> bool:
        """Whether another server is there, as far as is known."""
        now, urls = time.monotonic(), self._address.urls
        return any(other != url and self._down.get(other, 0.0) <= now for other in urls)

    def _unreachable(self, url: str, error: BaseException) -> str:
        proxied = self._http.is_through_a_proxy(url)
        through = " through the proxy that the environment names" if proxied else ""
        return f"cannot be reached{through}: {type(error).__name__} {printable(str(error)[:200])}".rstrip()

    def _remedy(self, gone: bool) -> str:
        if not gone:
            return "See what it logs; raise attempts, or lower max_concurrency if it has too much to do."
        more, value = ("patience", 600) if self._address.patience else ("attempts", 20)
        value = max(value, round(2 * getattr(self._address, more)))
        how = f'{self._address.role}_kwargs={{"{more}": {value}}}'
        return f"Check that it runs and what it logs; raise {more} if it is only starting: {how}."

    def _broken(self, url: str, path: str, error: Exception) -> str:
        """Why a stream has no end."""
        if isinstance(error, Late):
            return self._too_late(path)
        if isinstance(error, Unsendable):
            return "cannot be sent the question"
        return str(error) or self._unreachable(url, error.__cause__ or error)

    def _too_late(self, path: str) -> str:
        return f"did not answer {path} within {self._address.timeout:g} s"

    def _late(self, url: str, path: str) -> BackendError:
        return BackendError(
            f"the {self._address.role}'s server at {url} {self._too_late(path)}.",
            hint="Raise timeout, or lower max_step_tokens or max_concurrency.",
        )

    def _refused(self, url: str, path: str, failed: str, status: int) -> RefusedError:
        key = f"Set VLLM_API_KEY, or give {self._address.role}_kwargs={{'api_key': ...}}."
        hints = {
            401: key,
            403: key,
            404: "Give the base URL of a vLLM server, without /v1/..."
            if path == "/v1/models"
            else "Check the model's name, and the kind of server: PRMs with a head of their own are served "
            "with --runner pooling, language models without.",
        }
        hint = hints.get(status, "See what the server says; its version may differ from those tested.")
        return RefusedError(f"the {self._address.role}'s server at {url} {failed}.", hint=hint)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _json(answer: Answer, url: str, path: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        said = f"no JSON but {answer.text[:80]!r}"
        if not answer.is_whole:
            raise _Busy(f"broke off its answer to {path}", said, 503, 0.0) from error
        raise BackendError(
            f"{url}{path} answered with {said}.", hint="Check that it is a vLLM server."
        ) from error


def _is_aborted(said: Any) -> bool:
    """Whether it is what a server that is being shut down says to questions that it was at."""
    try:
        return any(choice["finish_reason"] == "abort" for choice in said["choices"])
    except (LookupError, TypeError):
        return False


def _told(answer: Answer) -> str:
    """What the server says is wrong, in one line."""
    if moved := answer.headers.get("location"):
        return f"it is at {printable(moved[:200])}"
    try:
        said = answer.json()
        error = said.get("error", said)
        text = str(error.get("message", error) if isinstance(error, Mapping) else error)
    except (ValueError, AttributeError):
        text = answer.text
    return printable(" ".join(text.split())[:300].rstrip(".") or answer.reason)


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0  # A date.
