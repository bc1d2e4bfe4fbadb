"""A small API on loopback that counts what it answers, and misbehaves when told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, str | None], dict[str, Any]]


@dataclass
class Server:
    """`trouble`: what befalls request number 0, 1, ... ("": nothing). `paid`: queries answered,
    whether or not the answer arrived."""

    answer: Answer
    trouble: Sequence[str] = ()
    url: str = ""
    requests: int = 0
    paid: list[tuple[str, str | None]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self.lock:
            number, self.requests = self.requests, self.requests + 1
            self.headers.append({k.lower(): v for k, v in handler.headers.items()})
        trouble = self.trouble[number] if number < len(self.trouble) else ""
        status, _, retry = trouble.partition(":")
        if status in ("429", "400", "401"):
            self.send(handler, int(status), {"error": f"no {status}"}, retry=retry or "0.01")
            return
        pairs = body.get("pairs") or [None] * len(body["texts"])
        found = [self.answer(t, p) for t, p in zip(body["texts"], pairs, strict=True)]
        with self.lock:
            self.paid += list(zip(body["texts"], pairs, strict=True))
        if trouble == "500":
            self.send(handler, 500, {"error": "oops"})
            return
        if trouble == "slow":
            time.sleep(0.5)
        self.send(handler, 200, {"out": found}, cut=trouble == "cut", bad=trouble == "no json")

    @staticmethod
    def send(
        handler: BaseHTTPRequestHandler, status: int, value: object, *,
        retry: str | None = None, cut: bool = False, bad: bool = False,
    ) -> None:  # fmt: skip
        data = b"<html>" if bad else json.dumps(value).encode()
        try:
            handler.send_response(status)
            if retry:
                handler.send_header("retry-after", retry)
            handler.send_header("content-length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2] if cut else data)
        except BrokenPipeError:
            pass  # the client has given up


@contextmanager
def serving(answer: Answer, trouble: Sequence[str] = ()) -> Iterator[Server]:
    server = Server(answer, trouble)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.respond(self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/answer"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@contextmanager
def saying(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Iterator[str]:
    """An API that always says this, byte for byte; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/answer"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
