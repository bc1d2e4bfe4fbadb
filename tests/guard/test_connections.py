"""Connections of clients that are slow on purpose, on loopback with bare sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from stillhouse.guard import connections
from stillhouse.guard.asgi import SAFE, Message, Receive, Send
from stillhouse.guard.connections import SETTINGS, TimedConnection

LIMIT_S = 0.4
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


class Echo:
    """An application that says how much it got, and remembers who left."""

    def __init__(self) -> None:
        self.left = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        size, more = 0, True
        if scope["path"] == "/early":
            more = False
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            size, more = size + len(message["body"]), message["more_body"]
        body = bytes(64 << 20) if scope["path"] == "/much" else str(size).encode()
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(app: Any) -> Iterator[tuple[int, uvicorn.Server]]:
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=TimedConnection, ws="none", lifespan="off", log_level="critical",
        **{**SETTINGS, "timeout_keep_alive": 1},
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield bound.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Echo:
    for name in ("HEADERS_S", "BODY_S", "UNREAD_S"):
        monkeypatch.setattr(connections, name, LIMIT_S)
    return Echo()


@pytest.fixture
def port(app: Echo) -> Iterator[int]:
    with serving(app) as (found, _):
        yield found


def trickle(port: int, first: bytes, drop: bytes, *, seconds: float = 4.0) -> tuple[bytes, float]:
    """Sends `first`, then `drop` ten times a second, until the server closes: what it said, and
    when it closed."""
    started, said = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(0.1)
        if first:
            connection.sendall(first)
        while time.monotonic() - started < seconds:
            try:
                part = connection.recv(65_536)
                if not part:
                    return said, time.monotonic() - started
                said += part
            except TimeoutError:
                pass
            except ConnectionError:
                return said, time.monotonic() - started
            try:
                if drop:
                    connection.sendall(drop)
            except ConnectionError:
                return said, time.monotonic() - started
    raise AssertionError(f"still open after {seconds} s: {said!r}")


def answer(said: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("first", "drop", "status"),
    [
        (b"", b"", None),  # nothing at all
        (b"POST / HTTP/1.1\r\n", b"", 408),  # half of the headers
        (b"POST / HTTP/1.1\r\n", b"x: y\r\n", 408),  # and more of them, for ever
        (POST, b"", 408),
        (POST.replace(b"10", b"1000"), b"x", 408),
        (POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked"), b"1\r\nx\r\n", 408),
    ],
)
def test_a_slow_request_is_ended(
    first: bytes, drop: bytes, status: int | None, port: int, app: Echo
) -> None:
    said, after = trickle(port, first, drop)
    assert 0.5 * LIMIT_S < after < LIMIT_S + 1
    if status is None:
        assert said == b""
        return
    found, headers, body = answer(said)
    assert found == status
    assert json.loads(body) == {"error": "the request did not come in time"}
    assert headers["connection"] == "close"
    assert {k: v for k, v in headers.items() if k in SAFE} == SAFE
    until, reading = time.monotonic() + 2, int(first.endswith(b"\r\n\r\n"))
    while app.left != reading and time.monotonic() < until:
        time.sleep(0.01)
    assert app.left == reading  # who reads the body is told that it ends


def test_a_request_after_another_has_its_own_time(port: int) -> None:
    whole = POST + b"0123456789"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(3)
        for _ in range(5):  # longer than the limit, together
            connection.sendall(whole[:50])
            time.sleep(0.2)
            connection.sendall(whole[50:])
            said = b""
            while not said.endswith(b"\r\n\r\n10"):
                said += connection.recv(65_536)
            assert b"200 OK" in said
        connection.sendall(b"P")  # the next one's headers never come
        started = time.monotonic()
        assert b"408" in connection.recv(65_536)
        assert time.monotonic() - started < LIMIT_S + 1


def test_a_body_that_goes_on_after_its_answer_is_ended(port: int) -> None:
    said, after = trickle(port, POST.replace(b"/ ", b"/early ").replace(b"10", b"1000"), b"x")
    assert b"200" in said
    assert b"408" not in said
    assert after < LIMIT_S + 1


def test_an_idle_connection_is_closed(port: int) -> None:
    said, after = trickle(port, POST + b"0123456789", b"")
    assert b"200" in said
    assert 0.8 < after < 2.5  # the keep-alive limit, here 1 s


def test_pipelined_requests_are_all_answered(port: int) -> None:
    said, _ = trickle(port, (POST + b"0123456789") * 3, b"")
    assert said.count(b"200 OK") == 3


def test_an_answer_that_nobody_reads_is_given_up(app: Echo) -> None:
    with serving(app) as (port, server):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
            until = time.monotonic() + 5
            time.sleep(0.2)
            while server.server_state.connections and time.monotonic() < until:
                time.sleep(0.02)
            assert not server.server_state.connections


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"nonsense\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000, 431),
     (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400)],
)  # fmt: skip
def test_what_is_no_http_is_refused_in_the_same_form(sent: bytes, status: int, port: int) -> None:
    found, headers, body = answer(trickle(port, sent, b"")[0])
    assert found == status
    assert json.loads(body).keys() == {"error"}
    assert headers["content-type"] == "application/json"
    assert {k: v for k, v in headers.items() if k in SAFE} == SAFE
