"""Questions to servers that fail, hang, move away, or are none."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations.backends.vllm import client, http
from rsd_integrations.backends.vllm.address import Address
from rsd_integrations.backends.vllm.client import Servers
from rsd_integrations.errors import BackendError, ConfigError, RefusedError, UnreachableError
from rsd_integrations.pocket import pocket_paths
from tests.vllm.double import Double, Fault, double, encrypt

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(client, "_LONGEST_PAUSE", 0.05)


@pytest.fixture
def server() -> Iterator[Double]:
    with double(pocket_paths().draft) as made:
        yield made


@pytest.fixture
def other() -> Iterator[Double]:
    with double(pocket_paths().draft) as made:
        yield made


def status(code: int, body: Any = None, **headers: str) -> Fault:
    def fault(handler: Any) -> bool:
        handler.say(code, {"error": {"message": "as\nit is"}} if body is None else body, **headers)
        return True

    return fault


def drop(handler: Any) -> bool:
    handler.drop()
    return True


def hang(handler: Any) -> bool:
    handler.hang(20)
    return True


def ask(*urls: str, keys: tuple[int, ...] = (0,), path: str = "/v1/models", **options: Any) -> list[Any]:
    """Questions one after the other."""
    options = {"attempts": 3, "patience": 0, **options}

    async def asked() -> list[Any]:
        servers = Servers(Address.of("draft", list(urls), options))
        try:
            return [await servers.ask(path, key=key) for key in keys]
        finally:
            await servers.aclose()

    return asyncio.run(asked())


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504, 507, 524, 530, 599])
def test_what_passes_is_tried_again(server: Double, code: int) -> None:
    server.faults += [status(code), status(code, retry_after="0.01")]
    assert ask(server.url)[0]["data"][0]["id"] == server.names[0]
    assert len(server.asked) == 3


def test_a_dropped_connection_is_tried_again(server: Double) -> None:
    server.faults += [drop]
    assert ask(server.url)
    assert len(server.asked) == 2


def test_each_further_try_is_logged(server: Double, caplog: pytest.LogCaptureFixture) -> None:
    """Why, but not what the server says of the question, nor a key."""
    quoting = status(503, {"error": {"message": "cannot serve PROMPT"}})
    server.faults += [quoting, status(429)]
    assert ask(server.url)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"the draft's server at {server.url} answered {code} to /v1/models; trying again"
        for code in (503, 429)
    ]
    caplog.clear()
    assert ask(NOWHERE, server.url, headers={"X-Key": "connect"})
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        f"the draft's server at {NOWHERE} cannot be reached: ClientConnectorError Cannot *** to"
    )
    assert line.endswith("; trying again")


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422, 501, 505])
def test_what_is_refused_is_not(server: Double, code: int) -> None:
    server.faults += [status(code)]
    with pytest.raises(BackendError, match=rf"draft's server at {server.url} answered {code} .*as it is"):
        ask(server.url)
    assert len(server.asked) == 1


def test_a_wrong_address_says_what_is_wrong_with_it(server: Double) -> None:
    """It is no matter of the model's name or kind, as with questions that follow."""
    server.faults += [status(404)] * 2
    with pytest.raises(
        RefusedError, match=r"answered 404 to /v1/models: as it is\. Give the base URL .*/v1/"
    ):
        ask(f"{server.url}/v1/chat/completions")
    with pytest.raises(RefusedError, match=r"answered 404 to /pooling: .*--runner pooling"):
        ask(server.url, path="/pooling")


def test_tries_end(server: Double) -> None:
    server.faults += [status(503)] * 9
    with pytest.raises(BackendError, match=r"answered 503 to /v1/models: as it is \(3 tries\)"):
        ask(server.url)
    assert len(server.asked) == 3
    told = r"127.0.0.1:9 cannot be reached: ClientConnectorError.*\(2 tries\).*raise attempts.*"
    with pytest.raises(BackendError, match=told + r': draft_kwargs={"attempts": 20}\.'):
        ask(NOWHERE, attempts=2)


@pytest.mark.parametrize("code", [429, 500])
def test_what_is_too_much_or_goes_wrong_is_no_matter_of_patience(server: Double, code: int) -> None:
    server.faults += [status(code)] * 9
    with pytest.raises(BackendError, match=r"\(3 tries\).*raise attempts, or lower max_concurrency"):
        ask(server.url, patience=60)


def test_another_replica_takes_over_and_is_kept(server: Double) -> None:
    assert len(ask(NOWHERE, server.url, keys=(0, 0, 2, 4))) == 4
    assert len(server.asked) == 4


def test_a_request_stays_with_its_replica(server: Double, other: Double) -> None:
    ask(server.url, other.url, keys=(0, 1, 2, 3, 4, 4, 4))
    assert [len(one.asked) for one in (server, other)] == [5, 2]


@pytest.mark.parametrize("code", [503, 521, 522, 523, 530])
def test_a_replica_that_is_not_there_is_left_alone_for_a_while(
    server: Double, other: Double, code: int
) -> None:
    """Whoever says so: 521 and above are Cloudflare's."""
    server.faults += [status(code)]
    ask(server.url, other.url, keys=(0, 0, 0))
    assert [len(one.asked) for one in (server, other)] == [1, 3]


@pytest.mark.parametrize("code", [429, 529])
def test_too_many_requests_are_no_reason_to_leave(server: Double, other: Double, code: int) -> None:
    """Its cache is there, and the others have their own."""
    server.faults += [status(code)]
    ask(server.url, other.url, keys=(0, 0))
    assert [len(one.asked) for one in (server, other)] == [3, 0]


def test_a_replica_is_asked_again_behind_a_while(
    server: Double, other: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_DOWN", 0.0)
    server.faults += [drop]
    ask(server.url, other.url, keys=(0, 0))
    assert len(server.asked) == 3


def test_an_answer_that_takes_too_long_is_no_reason_to_ask_again(server: Double) -> None:
    """It would take as long, and the server may be at it still."""
    server.faults += [hang]
    with pytest.raises(BackendError, match=r"did not answer /v1/models within 0\.5 s"):
        ask(server.url, timeout=0.5)
    assert server.left.wait(10)
    assert len(server.asked) == 1


def test_the_key_and_headers_are_shown_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with double(pocket_paths().draft, key="sesame") as guarded:
        with monkeypatch.context() as environment:
            environment.setenv("VLLM_API_KEY", "sesame")
            assert ask(guarded.url)
            with pytest.raises(BackendError, match="401"):
                ask(guarded.url, api_key="of its own")
        guarded.asked.clear()
        assert ask(guarded.url, api_key="sesame", headers={"x-team": "a"})
        assert guarded.asked[0][1]["headers"]["x-team"] == "a"
        for wrong in ({}, {"api_key": "secret-1"}):
            with pytest.raises(BackendError, match=r"answered 401 .*Unauthorized.*api_key") as failed:
                ask(guarded.url, **wrong)
            assert "secret-1" not in str(failed.value)
    address = Address.of("prm", "http://x", {"api_key": "secret-1", "headers": {"a": "secret-2"}})
    assert "secret" not in repr(address)


@pytest.mark.parametrize("body", [b"<html>", b"\xff\xfe", b""])
def test_what_is_no_json_is_shown(server: Double, body: bytes) -> None:
    server.faults += [status(200, body)]
    with pytest.raises(BackendError, match="answered with no JSON"):
        ask(server.url)
    server.faults += [status(418, body)]
    with pytest.raises(BackendError, match="answered 418"):
        ask(server.url)


@pytest.mark.parametrize(
    ("files", "connections"), [(20_000, 256), (1024, 256), (256, 64), (64, 16), (-1, 256)]
)
def test_connections_leave_room_for_other_files(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 is macOS's, 1024 most Linux systems' limit."""
    pytest.importorskip("resource", reason="Windows knows no such limit")
    monkeypatch.setattr("resource.getrlimit", lambda kind: (files, -1))
    assert Address.of("draft", "http://x", {}).max_concurrency == connections
    assert Address.of("draft", "http://x", {"max_concurrency": 7}).max_concurrency == 7


def test_no_more_questions_at_once_than_were_allowed(server: Double) -> None:
    go_on = threading.Event()

    async def asked() -> None:
        servers = Servers(Address.of("draft", server.url, {"max_concurrency": 2, "timeout": 60}))
        server.faults += [lambda handler: not go_on.wait(60)] * 2
        questions = [asyncio.ensure_future(servers.ask("/v1/models")) for _ in range(5)]
        while len(server.asked) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)  # More would have come by then.
        assert len(server.asked) == 2
        go_on.set()
        await asyncio.gather(*questions)
        assert len(server.asked) == 5
        await servers.aclose()

    asyncio.run(asked())


def test_whoever_waits_to_ask_again_holds_nobody_up(server: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_PAUSE", 600.0)
    monkeypatch.setattr(client, "_LONGEST_PAUSE", 600.0)

    async def asked() -> None:
        servers = Servers(Address.of("draft", server.url, {"max_concurrency": 1}))
        server.faults += [status(429)]
        first = asyncio.ensure_future(servers.ask("/v1/models"))
        while server.faults:
            await asyncio.sleep(0.001)
        await servers.ask("/v1/models")
        assert not first.done()
        first.cancel()
        await servers.aclose()

    asyncio.run(asked())


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's, which take no time."""
    monkeypatch.setattr(client, "_LONGEST_PAUSE", 9.0)
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    return made


def test_servers_say_how_long_to_wait(server: Double, pauses: list[float]) -> None:
    server.faults += [
        status(429, retry_after="3"),
        status(429, retry_after="45"),
        status(429, retry_after="100"),
        status(429, retry_after="?"),
    ]
    ask(server.url, attempts=5)
    assert pauses == [3.0, 45.0, 60.0, 0.08]


def test_a_server_that_is_gone_is_looked_for_before_it_says(server: Double, pauses: list[float]) -> None:
    """Else its patience would be over with one such pause."""
    server.faults += [status(503, retry_after="3"), status(503, retry_after="45")]
    ask(server.url)
    assert pauses == [3.0, 9.0]


def test_a_server_that_is_started_anew_is_waited_for() -> None:
    server = Double(pocket_paths().draft, started=False)
    later = threading.Timer(0.5, server.start)
    later.start()
    try:
        assert ask(server.url, attempts=1, patience=60)
    finally:
        later.join()
        server.stop()


class Clock:
    """In place of the client's, moved on by what servers do."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def passing(self, seconds: float, fault: Fault) -> Fault:
        def passed(handler: Any) -> bool:
            self.now += seconds
            return fault(handler)

        return passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(client, "time", made)
    return made


def test_patience_begins_when_the_server_goes(server: Double, clock: Clock) -> None:
    """In the middle of an answer that had taken longer already. Then it ends."""
    server.faults += [clock.passing(100, status(503)), status(503)]
    assert ask(server.url, attempts=1, patience=60)
    assert len(server.asked) == 3
    server.faults += [clock.passing(25, status(503))] * 9
    with pytest.raises(UnreachableError, match=r"answered 503 .*\(4 tries\).*raise patience"):
        ask(server.url, attempts=1, patience=60)


def test_an_outage_is_logged_now_and_then(
    server: Double, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Else every try of hundreds of questions would have its line."""
    away = status(503)
    server.faults += [*[away] * 4, clock.passing(60, away), away, status(429)]
    assert ask(server.url, patience=600)
    told = f"the draft's server at {server.url} answered {{}} to /v1/models; trying again".format
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [told(503), told(503) + " (3 more since this was logged last)", told(429)]


def test_waiting_for_a_server_is_no_try_of_the_question(server: Double) -> None:
    server.faults += [*[status(503)] * 6, status(500), status(429)]
    assert ask(server.url, patience=60)
    assert len(server.asked) == 9


def test_one_question_looks_whether_a_replica_is_there_again(
    server: Double, other: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others do not hang on it meanwhile."""

    async def asked() -> None:
        servers = Servers(Address.of("draft", [server.url, other.url], {"timeout": 30}))
        servers._down[server.url] = 0.0  # It was away, long ago.
        server.faults += [hang]
        first = asyncio.ensure_future(servers.ask("/v1/models"))
        while not server.asked:
            await asyncio.sleep(0.001)
        for _ in range(3):
            await servers.ask("/v1/models")
        assert [len(one.asked) for one in (server, other)] == [1, 3]
        first.cancel()
        await servers.aclose()

    asyncio.run(asked())


def test_whoever_looked_and_was_cancelled_lets_the_next_one_look(server: Double, other: Double) -> None:
    async def asked() -> None:
        servers = Servers(Address.of("draft", [server.url, other.url], {"timeout": 30}))
        servers._down[server.url] = 0.0
        server.faults += [hang]
        first = asyncio.ensure_future(servers.ask("/v1/models"))
        while not server.asked:
            await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.wait([first])
        await servers.ask("/v1/models")
        assert [len(one.asked) for one in (server, other)] == [2, 0]
        await servers.aclose()

    asyncio.run(asked())


@pytest.mark.parametrize("fault", [drop, None])
def test_a_replica_that_is_back_is_asked_by_all(server: Double, other: Double, fault: Any) -> None:
    """Also where whoever looked found a stale connection, or read a stream that tells nothing more."""

    async def asked() -> None:
        servers = Servers(Address.of("draft", [server.url, other.url], {"timeout": 30}))
        servers._down[server.url] = 0.0
        unknown = {"model": "none"}  # Each server refuses it, so it is there.
        if fault:
            server.faults += [fault]
            with pytest.raises(RefusedError):
                await servers.ask("/v1/completions", unknown)
        else:
            with pytest.raises(UnreachableError):
                [event async for event in servers.stream("/v1/completions", unknown, key=0)]
        before = len(server.asked)
        for _ in range(3):
            await servers.ask("/v1/models")
        assert (len(server.asked) - before, len(other.asked)) == (3, 0)
        await servers.aclose()

    asyncio.run(asked())


def test_a_replica_that_hangs_gets_few_requests(server: Double, other: Double) -> None:
    """It has more to do than the other, which answers."""

    async def asked() -> None:
        servers = Servers(Address.of("draft", [server.url, other.url], {"timeout": 30}))
        server.faults += [hang] * 9
        hanging = []
        for _ in range(9):
            question = asyncio.ensure_future(servers.ask("/v1/models", key=servers.next_key()))
            hanging += [question] * (not (await asyncio.wait([question], timeout=0.5))[0])
        assert len(hanging) == 1
        assert [len(one.asked) for one in (server, other)] == [1, 8]
        assert [servers.next_key() % 2 for _ in range(3)] == [1, 1, 1]
        hanging[0].cancel()
        await asyncio.wait(hanging)
        assert {servers.next_key() % 2 for _ in range(2)} == {0, 1}
        await servers.aclose()

    asyncio.run(asked())


def test_a_question_that_goes_wrong_does_not_go_on_for_ever(server: Double, other: Double) -> None:
    """Nor to other replicas, as if its own were not there."""
    server.faults += [status(500)] * 9
    with pytest.raises(BackendError, match=r"answered 500 .*\(3 tries\)"):
        ask(server.url, other.url, patience=60)
    assert [len(one.asked) for one in (server, other)] == [3, 0]


def test_a_stale_connection_is_no_reason_to_leave_a_replica(server: Double, other: Double) -> None:
    server.faults += [drop]
    ask(server.url, other.url, keys=(0, 0), attempts=1)
    assert [len(one.asked) for one in (server, other)] == [3, 0]


def test_another_replica_answers_for_one_that_hangs(
    server: Double, other: Double, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own question as well as those behind it."""
    server.faults += [hang]
    assert ask(server.url, other.url, keys=(0, 0), timeout=1.0) == [other.card()] * 2
    assert [len(one.asked) for one in (server, other)] == [1, 2]
    told = f"the draft's server at {server.url} did not answer /v1/models within 1 s; trying another"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_what_takes_too_long_twice_is_asked_of_no_third(server: Double, other: Double) -> None:
    """It would hold up one replica after the other."""
    with double(pocket_paths().draft) as third:
        server.faults += [hang]
        other.faults += [hang]
        with pytest.raises(
            BackendError, match=rf"at {other.url} did not answer .*within 0\.5 s\. Raise timeout"
        ):
            ask(server.url, other.url, third.url, timeout=0.5)
        assert [len(one.asked) for one in (server, other, third)] == [1, 1, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_keeps_no_question_at_work(server: Double) -> None:
    """A server sees that one was cancelled though the child lives, and the parent gets its other answers."""
    go_on = threading.Event()

    async def asked() -> None:
        servers = Servers(Address.of("draft", server.url, {"timeout": 60}))
        server.faults += [lambda handler: not go_on.wait(60)]
        kept = asyncio.ensure_future(servers.ask("/v1/models"))
        while len(server.asked) < 1:
            await asyncio.sleep(0.001)
        server.faults += [hang]
        cancelled = asyncio.ensure_future(servers.ask("/v1/models"))
        while len(server.asked) < 2:
            await asyncio.sleep(0.001)
        held, end = os.pipe()
        child = os.fork()
        if not child:
            os.close(end)
            os.read(held, 1)  # Until the parent closes its end.
            os._exit(0)
        try:
            cancelled.cancel()
            assert await asyncio.to_thread(server.left.wait, 10)
            go_on.set()
            assert await kept == server.card()
        finally:
            go_on.set()
            os.close(end)
            os.close(held)
            os.waitpid(child, 0)
            await servers.aclose()

    asyncio.run(asked())


def test_a_question_that_cannot_be_sent_tells_no_secrets(server: Double) -> None:
    address = Address.of("draft", server.url, {"attempts": 2})
    object.__setattr__(address, "headers", {"x": "secret\n1"})  # Past what is checked.

    async def asked() -> None:
        servers = Servers(address)
        with pytest.raises(BackendError, match="cannot be sent") as failed:
            await servers.ask("/v1/models")
        assert "secret" not in str(failed.value) + repr(failed.value.__cause__)
        await servers.aclose()

    asyncio.run(asked())


def test_a_server_that_has_moved_says_where(server: Double) -> None:
    server.faults += [status(301, {}, location="https://elsewhere/")]
    with pytest.raises(BackendError, match=r"answered 301 .*it is at https://elsewhere/"):
        ask(server.url)


def test_a_certificate_that_is_not_accepted_is_an_error_at_once(
    server: Double, other: Double, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits for it waits in vain; but another replica takes over."""
    url = encrypt(server, tmp_path)
    told = rf"at {url} cannot be reached: .*CERTIFICATE_VERIFY_FAILED.* \(1 try\)\. .*SSL_CERT_FILE"
    with pytest.raises(UnreachableError, match=told):
        ask(url, attempts=5, patience=60)
    assert not caplog.records
    assert ask(url, other.url, keys=(0, 0), patience=60) == [other.card()] * 2
    assert len(caplog.records) == 1
    assert not server.asked


def test_a_server_without_tls_that_is_asked_for_it_says_so(server: Double) -> None:
    url = server.url.replace("http:", "https:")
    with pytest.raises(UnreachableError, match=rf"{url} cannot be reached: .*SSL.* http:// or by https://"):
        ask(url)


STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


@pytest.mark.parametrize(
    "fault",
    [
        status(400, {"error": {"message": f"no {STEERING} way"}}),
        status(400, f"no {STEERING} way".encode()),
        status(503, {"error": f"no {STEERING} way"}),
        status(307, b"", location="http://no/\x1b[31m\x9b31m/way"),
    ],
)
def test_what_a_server_says_cannot_steer_a_terminal(server: Double, fault: Fault) -> None:
    """Errors are logged, and tracebacks printed."""
    server.faults += [fault] * 3
    with pytest.raises(BackendError, match=r"no.*way") as failed:
        ask(server.url)
    assert str(failed.value).isprintable()


def test_the_environment_s_proxy_is_named(server: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    with pytest.raises(BackendError, match="cannot be reached through the proxy that the environment names"):
        ask(server.url, attempts=1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert ask(server.url)
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.setenv("ALL_PROXY", "socks5://name:secret@x")
    with pytest.raises(ConfigError, match="proxy cannot be used: it is of the kind 'socks5'") as failed:
        ask(server.url)
    assert "secret" not in str(failed.value)


def test_questions_go_through_the_environment_s_proxy(
    server: Double, other: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double stands in for a proxy: it is asked for the whole address."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", other.url.removeprefix("http://"))
    with pytest.raises(BackendError, match="answered 404"):
        ask(server.url)
    assert [path for path, _ in other.asked] == [f"{server.url}/v1/models"]
    assert server.asked == []


@pytest.mark.parametrize("code", [200, 400, 301])
def test_a_key_that_a_server_repeats_is_not_told(server: Double, code: int) -> None:
    def echo(handler: Any) -> bool:
        shown = handler.headers["Authorization"]
        body = b"you sent " + shown.encode() if code == 200 else {"error": {"message": f"you sent {shown}"}}
        handler.say(code, body, **({"location": f"https://else/?key={shown}"} if code == 301 else {}))
        return True

    server.faults += [echo]
    with pytest.raises(BackendError, match=r"\*\*\*") as failed:
        ask(server.url, api_key="sesame-street")
    told = str(failed.value) + repr(failed.value.__cause__)
    assert "sesame" not in told and "street" not in told


@pytest.mark.parametrize("before", [280, 287, 290, 294])
def test_a_key_that_is_cut_off_where_it_is_quoted_is_not_told(server: Double, before: int) -> None:
    """Of what a server says 300 characters are shown."""
    message = "x" * before + "sesame-street"
    server.faults += [status(400, {"error": {"message": message}})]
    with pytest.raises(BackendError) as failed:
        ask(server.url, api_key="sesame-street")
    assert "sesame" not in str(failed.value)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """One that wants another login than the environment's; what it was sent, behind what it is to say."""
    sent: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            with suppress(OSError):  # It was closed.
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        told = sent[0] if sent else b""
                        sent.append(connection.recv(9999))
                        connection.sendall(b"HTTP/1.1 407 No " + told + b"\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            address = f"http://user:pr%40xy-secret@127.0.0.1:{listening.getsockname()[1]}"
            monkeypatch.setenv(name, address)
            monkeypatch.setenv(name.lower(), address)
        yield sent
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_s_login_is_shown_to_it_alone(proxy: list[bytes], scheme: str) -> None:
    with pytest.raises(BackendError, match="407") as failed:
        ask(f"{scheme}://vllm.example.test", attempts=1)
    assert base64.b64encode(b"user:pr@xy-secret") in proxy[0]
    whole = "".join(traceback.format_exception(failed.value))
    assert "secret" not in whole


@pytest.mark.parametrize("name", ["X-Api-Key", "x_session_token", "X.Api.Key"])
def test_a_key_in_any_spelling_of_a_header_is_not_told(server: Double, name: str) -> None:
    server.faults += [status(400, {"error": {"message": "wrong key open-sesame"}})]
    with pytest.raises(BackendError, match=r"wrong key \*\*\*"):
        ask(server.url, headers={name: "open-sesame"})


def test_what_is_no_secret_of_a_question_changes_no_answer(server: Double) -> None:
    headers = {"x-tokenizer": server.names[0], "x-max-tokens": "max_model_len", "x-key": "EMPTY"}
    assert ask(server.url, headers=headers, api_key="max_model_len")[0] == server.card()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_login_that_a_proxy_repeats_is_not_told(proxy: list[bytes], scheme: str) -> None:
    """It is in the reason of its refusal, which errors of aiohttp tell."""
    proxy.append(b"Basic " + base64.b64encode(b"user:pr@xy-secret"))
    with pytest.raises(BackendError, match=r"\*\*\*") as failed:
        ask(f"{scheme}://vllm.example.test", attempts=1)
    assert "dXNlcj" not in "".join(traceback.format_exception(failed.value))


@pytest.mark.parametrize("wrong", ["http://user:pa/ss@proxy:3128", "http://:8080", "http://x:99999"])
def test_a_proxy_that_is_no_url_is_refused(
    server: Double, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, wrong)
    with pytest.raises(ConfigError, match=r"proxy cannot be used: it is no URL\. .*HTTP_PROXY") as refused:
        ask(server.url)
    assert "pa/ss" not in "".join(traceback.format_exception(refused.value))


def test_a_proxy_may_want_a_key_alone(proxy: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, os.environ["HTTP_PROXY"].replace("user:", ":"))
    with pytest.raises(BackendError, match="407"):
        ask("http://vllm.example.test", attempts=1)
    assert base64.b64encode(b":pr@xy-secret") in proxy[0]


def test_answers_come_unpacked(server: Double) -> None:
    """A megabyte may unpack to a thousand, while the loop stands still."""
    for headers in ({}, {"accept-encoding": "gzip"}):
        assert ask(server.url, headers=headers)
        assert server.asked[-1][1]["headers"]["Accept-Encoding"] == "identity"
    server.faults += [status(200, gzip.compress(b"[]"), Content_Encoding="gzip")]
    with pytest.raises(BackendError, match=r"answered with no JSON but '\\x1f"):
        ask(server.url)


def test_questions_through_a_proxy_ask_for_that_as_well(proxy: list[bytes]) -> None:
    with pytest.raises(BackendError):
        ask("http://vllm.example.test", attempts=1)
    assert b"Accept-Encoding: identity" in proxy[0]


def test_an_answer_without_an_end_is_left(server: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_LONGEST_ANSWER", 1 << 20)

    def endless(handler: Any) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b" " * (1 << 21))
        handler.hang(20)
        return True

    server.faults += [endless]
    with pytest.raises(BackendError, match=rf"at {server.url} answered /v1/models with more than 1 MiB"):
        ask(server.url)
    assert server.left.wait(10)
    assert len(server.asked) == 1
    server.faults += [status(200, b" " * ((1 << 20) - 2) + b"{}"), status(200, b" " * (1 << 20) + b"7")]
    assert ask(server.url) == [{}]
    with pytest.raises(BackendError, match="more than"):
        ask(server.url)


def stream(url: str, **options: Any) -> list[Any]:
    """The events of one."""

    async def streamed() -> list[Any]:
        servers = Servers(Address.of("draft", url, options))
        try:
            return [event async for event in servers.stream("/v1/completions", {}, key=0)]
        finally:
            await servers.aclose()

    return asyncio.run(streamed())


def events(*sent: bytes, then: Callable[[Any], Any]) -> Fault:
    """A stream, and what its server does then."""

    def fault(handler: Any) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with suppress(ConnectionError):  # Whoever asked has left.
            handler.wfile.write(b"".join(sent))
        then(handler)
        handler.close_connection = True
        return True

    return fault


ABORTED = {"choices": [{"token_ids": [5], "finish_reason": "abort", "stop_reason": None}]}
"""What a server says to questions that it is at while it is shut down."""


def test_an_answer_that_is_broken_off_is_asked_of_another_replica(
    server: Double, other: Double, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults += [status(200, ABORTED)]
    assert ask(server.url, other.url, keys=(0, 0)) == [other.card()] * 2
    assert [len(one.asked) for one in (server, other)] == [1, 2]
    told = f"the draft's server at {server.url} broke off its answer to /v1/models; trying again"
    assert [record.getMessage() for record in caplog.records] == [told]


def cut(handler: Any) -> bool:
    """An answer that ends with its connection, and is not all there."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"data": [{"id": "x')
    handler.close_connection = True
    return True


def test_an_answer_that_ends_with_its_connection_too_early_is_asked_again(
    server: Double, caplog: pytest.LogCaptureFixture
) -> None:
    """Some proxies say nowhere how long it is to be."""
    server.faults += [cut]
    assert ask(server.url) == [server.card()]
    told = f"the draft's server at {server.url} broke off its answer to /v1/models; trying again"
    assert [record.getMessage() for record in caplog.records] == [told]
    server.faults += [cut] * 9
    with pytest.raises(
        UnreachableError, match=r"broke off its answer to /v1/models: no JSON but .*\(3 tries\)"
    ):
        ask(server.url)


def test_answers_that_are_always_broken_off_are_an_error(server: Double) -> None:
    server.faults += [status(200, ABORTED)] * 9
    told = r"broke off its answer to /v1/models: finish_reason 'abort' \(3 tries\)\..*only starting"
    with pytest.raises(UnreachableError, match=told):
        ask(server.url)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (status(200, b"data: " + json.dumps(ABORTED).encode() + b"\n\n"), "broke off its answer to"),
        (hang, "did not answer"),
    ],
    ids=["aborts", "hangs"],
)
def test_a_replica_that_breaks_off_a_stream_or_hangs_is_left(
    server: Double, other: Double, fault: Fault, why: str
) -> None:
    async def asked() -> None:
        servers = Servers(Address.of("draft", [server.url, other.url], {"timeout": 1.0}))
        server.faults += [fault]
        with pytest.raises(UnreachableError, match=f"{why} /v1/completions"):
            [event async for event in servers.stream("/v1/completions", {}, key=0)]
        await servers.ask("/v1/models")
        await servers.aclose()

    asyncio.run(asked())
    assert [len(one.asked) for one in (server, other)] == [1, 1]


def test_an_event_without_an_end_is_left(server: Double) -> None:
    """One may hold a prompt of a hundred thousand tokens, which the first repeats."""
    ids = [151_000] * 100_000
    sent = f"data: {ids}\n\ndata: ".encode(), b"7" * (1 << 24)
    server.faults += [events(*sent, then=lambda handler: handler.hang(20))]
    with pytest.raises(UnreachableError):
        stream(server.url)
    assert server.left.wait(10)
    server.faults += [events(f"data: {ids}\n\n".encode(), then=lambda handler: None)]
    assert stream(server.url) == [ids]


@pytest.mark.parametrize("sent", [b": ping\n\n", b"data: {}\n\n"])
def test_a_stream_without_an_end_is_late(
    server: Double, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """However often something comes."""
    monkeypatch.setattr(client, "_CONNECT", 0.5)

    def on_and_on(handler: Any) -> None:
        with suppress(ConnectionError):
            for _ in range(400):
                handler.wfile.write(sent)
                time.sleep(0.05)
            return
        server.left.set()

    server.faults += [events(then=on_and_on)]
    with pytest.raises(UnreachableError, match=r"did not answer /v1/completions within 0\.5 s"):
        stream(server.url, timeout=0.5)
    assert server.left.wait(10)


def test_an_event_that_is_nested_too_deep_is_no_answer(server: Double) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    server.faults += [events(b"data: " + deep + b"\n\n", then=lambda handler: None)]
    with pytest.raises(UnreachableError):
        stream(server.url)


def test_scores_of_long_texts_are_not_too_long(server: Double) -> None:
    """Two logits, at their longest, of each of a hundred thousand tokens."""
    rows = [[-1.2345678901234567e-05] * 2] * 100_000
    server.faults += [status(200, {"data": [{"data": rows}]})]
    assert ask(server.url)[0]["data"][0]["data"] == rows


def test_an_answer_that_comes_drop_by_drop_is_late(server: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_CONNECT", 0.5)
    left = threading.Event()

    def drip(handler: Any) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            for _ in range(200):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            left.set()
        return True

    server.faults += [drip]
    with pytest.raises(BackendError, match=r"did not answer /v1/models within 0\.5 s"):
        ask(server.url, timeout=0.5)
    assert left.wait(10)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (status(429), "answered 429 to /v1/completions"),
        (
            events(b"data: {no json\n\n", then=lambda handler: None),
            "answered /v1/completions with an event that is no JSON",
        ),
        (
            events(
                b'data: {"choices": []}\n\ndata: {"error": {"message": "cannot PROMPT"}}\n\n',
                then=lambda handler: None,
            ),
            "answered /v1/completions with an error in mid-stream",
        ),
    ],
    ids=["refused", "no JSON", "an error"],
)
def test_a_broken_stream_is_logged_once_with_its_reason(
    server: Double, caplog: pytest.LogCaptureFixture, fault: Any, why: str
) -> None:
    """The draft writes ahead of each step's score: a line for each step would fill the logs."""
    server.faults += [fault] * 2

    async def asked() -> None:
        servers = Servers(Address.of("draft", [server.url], {}))
        for _ in range(2):
            with pytest.raises(UnreachableError, match=why):
                async for _ in servers.stream("/v1/completions", {}, key=0):
                    pass
        await servers.aclose()

    asyncio.run(asked())
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"the draft's server at {server.url} {why}, as it was to write ahead of a step's score"]
