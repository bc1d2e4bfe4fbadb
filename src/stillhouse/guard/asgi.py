"""What ASGI applications are called with, how they are refused, and what bounds a request."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any

from stillhouse.core.errors import RunError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

HEADERS_BYTES = 16_384  # of a request's line and headers
SAFE = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}  # for every response: none of them is to be kept, framed or run
AWAY = "the registry can't be reached: try again later"
FAILED = "the service failed: its owner's log says why"


def refusal(message: str) -> bytes:
    """The body of every refusal, whoever refuses."""
    return json.dumps({"error": message}).encode()


async def refuse(
    send: Send, status: int, message: str, headers: MutableMapping[str, str] | None = None
) -> None:
    body = refusal(message)
    told = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def for_strangers(error: RunError) -> str:
    """What is said of a failure: a sentence that was made for clients, or a general one. What the
    database or the system said may name hosts, users and files."""
    made_for_them = type(error) is RunError and error.__cause__ is None
    return str(error) if made_for_them else AWAY


def retry_after(seconds: float) -> str:
    """In whole seconds: who waits that long is served, so it is never less."""
    return str(max(1, math.ceil(seconds)))


def api_key(headers: Headers, *, password: bool = False) -> str | None:
    """The key of a request: a bearer's, wherever it stands among the Authorization headers; else
    X-API-Key, for the other may be a proxy's; else, with `password`, a browser's."""
    held = list(_authorizations(headers))
    for scheme, value in held:
        if scheme == "bearer":
            return value
    for name, value in headers:
        if name.lower() == b"x-api-key":
            return value.decode("latin-1").strip()
    for scheme, value in held if password else ():
        if scheme == "basic":
            try:
                return base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return None
    return None


def _authorizations(headers: Headers) -> Iterator[tuple[str, str]]:
    for name, value in headers:
        if name.lower() == b"authorization":
            scheme, *rest = value.decode("latin-1").split(None, 1) or [""]
            yield scheme.lower(), rest[0].strip() if rest else ""


class Safe:
    """Gives every response the headers of `SAFE`, and what no handler took an error's own form."""

    def __init__(self, app: App, *, failed: Callable[[], None] = lambda: None) -> None:
        self._app, self._failed = app, failed

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def safe(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                held = list(message.get("headers", []))
                names = {name.lower() for name, _ in held}
                added = [(k.encode(), v.encode()) for k, v in SAFE.items()]
                message["headers"] = [*held, *(each for each in added if each[0] not in names)]
            await send(message)

        try:
            await self._app(scope, receive, safe)
        except Exception:
            if not started:
                self._failed()
                await refuse(safe, 500, FAILED)
            raise  # to the server, which writes it down


class Bounded:
    """Refuses bodies that are too long, whatever their headers say, headers that are, and bodies
    that are no JSON by their own word."""

    def __init__(self, app: App, *, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if found := self._trouble(scope):
            await refuse(send, *found, {"connection": "close"})
            return
        seen, started = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise TooLong
            return message

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, sent)
        except TooLong:
            if not started:
                await refuse(send, 413, self._too_long, {"connection": "close"})

    @property
    def _too_long(self) -> str:
        return f"the request has more than {self._most:,} bytes"

    def _trouble(self, scope: Message) -> tuple[int, str] | None:
        """The status and the sentence of a request that is refused by its headers alone."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > HEADERS_BYTES:
            return 431, f"the request has more than {HEADERS_BYTES:,} bytes of headers"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._most:
            return 413, self._too_long
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return None
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            return 415, "the body is compressed: send it as it is"
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json" and not kind.endswith(b"+json"):
            return 415, "send Content-Type: application/json"
        return None


class TooLong(BaseException):  # past the handlers of the service, which would make it a 500
    pass
