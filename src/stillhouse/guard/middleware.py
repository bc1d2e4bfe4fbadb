"""The guard as ASGI middleware, in front of a service that exists already.

The service goes on answering as it does; the middleware finds questions and answers in its JSON, by
the same kind of paths as an audit's endpoint, meters and logs them, and marks a few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import jmespath
import numpy as np
from jmespath.exceptions import JMESPathError

from stillhouse.core.errors import DataError, ModelError, RunError
from stillhouse.core.types import Example
from stillhouse.guard.asgi import (
    App,
    Message,
    Receive,
    Send,
    api_key,
    for_strangers,
    refuse,
    retry_after,
)
from stillhouse.guard.bill import Bill
from stillhouse.guard.guard import Guard
from stillhouse.guard.json_text import read_json, write_json
from stillhouse.guard.model import Truth
from stillhouse.guard.purses import Denied
from stillhouse.guard.settings import Outside


class GuardMiddleware:
    """`app.add_middleware(GuardMiddleware, guard=guard, outside=Outside(...))`, or around any ASGI
    application. The guard's `About` names the model and its choices. Give the guard `reads`, such
    as TokenizerReads("my-model"): the middleware has no tokenizer, and without one marks are drawn
    from what is written, and a token is taken for four characters."""

    def __init__(self, app: App, guard: Guard, outside: Outside) -> None:
        self._app, self._guard, self._outside = app, guard, outside

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                await asyncio.to_thread(self._guard.close)
            return
        if scope["type"] != "http" or not self._is_asked(scope):
            await self._app(scope, receive, send)
            return
        try:
            await self._guarded(scope, receive, send)
        except Denied as error:
            told: dict[str, str] = {}
            if error.retry_s is not None:
                told["retry-after"] = retry_after(error.retry_s)
            if error.status == 401:
                told["www-authenticate"] = "Bearer"
            await refuse(send, error.status, str(error), told)
        except DataError as error:
            await refuse(send, 422, str(error))
        except RunError as error:
            await refuse(send, 503, for_strangers(error), {"retry-after": "5"})

    def _is_asked(self, scope: Message) -> bool:
        """Whether a request is one of the guarded."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        same = path.rstrip("/") == self._outside.path.rstrip("/")  # frameworks forgive one more
        return same and scope["method"] in ("POST", "PUT")

    async def _guarded(self, scope: Message, receive: Receive, send: Send) -> None:
        guard, open_ = self._guard, self._outside.failing == "open"
        again = receive
        try:
            client = await asyncio.to_thread(guard.who, api_key(scope["headers"]) or "")
            if client is None or client.role != "client":
                raise Denied("give an API key: Authorization: Bearer sh_...", status=401)
            body = await self._read(receive)
            again = _again(body, receive)
            examples = await asyncio.to_thread(self._questions, body)
            bill = Bill(guard, client.id, examples)
            try:
                await asyncio.to_thread(self._admit, bill, examples)
            except BaseException:
                bill.refund()
                raise
        except RunError:
            if not open_:
                raise
            await self._app(scope, again, send)
            return
        answered = Held()
        try:
            await self._app(_uncompressed(scope), again, answered.take)
            if not 200 <= answered.status < 300:
                bill.refund()
                await answered.send(send)
                return
            shown = await self._marked(client.id, examples, answered.body)
        except RunError:
            bill.refund()
            if not open_:
                raise
            await answered.send(send)
            return
        except BaseException:
            bill.refund()
            raise
        answered.body, answered.rewritten = shown, True
        await answered.send(send)

    def _admit(self, bill: Bill, examples: Sequence[Example]) -> None:
        """Charges for questions and for their tokens. Raises DataError, Denied, RunError."""
        self._guard.check(examples)
        bill.admit()
        bill.admit_tokens(sum(each.tokens for each in self._guard.reads(examples)))

    async def _marked(self, client: str, examples: Sequence[Example], body: bytes) -> bytes:
        """A service's answers, logged, and some of them marked. That they can be written again is
        known before a mark is. Raises Denied for the service's own faults, RunError."""
        try:
            held = read_json(body)
            each = self._answers(held, len(examples))
            truths = [self._truth(one) for one in each]
            write_json(held)
        except UNREADABLE as error:
            raise _unfit(error) from None
        try:
            finished = await asyncio.to_thread(self._guard.finish, client, examples, truths)
        except ModelError as error:
            raise _unfit(error) from None
        rows = await self._guard.settle_beside(finished)
        for one, row in zip(each, rows, strict=True):
            self._put(one, row)
        return write_json(held)

    async def _read(self, receive: Receive) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DataError("the client left")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._outside.body_bytes:
                raise Denied("the request is too large", status=413)
            if not message.get("more_body"):
                return b"".join(parts)

    def _questions(self, body: bytes) -> list[Example]:
        """Raises DataError."""
        try:
            return self._found(read_json(body))
        except JMESPathError:  # of a path's function, to which a request gives another type
            raise DataError(f"no question at {self._outside.texts or self._outside.text}") from None
        except (ValueError, RecursionError):
            raise DataError("the request is not JSON") from None

    def _found(self, held: Any) -> list[Example]:
        out = self._outside
        if out.texts and isinstance(texts := jmespath.search(out.texts, held), list) and texts:
            pairs = (jmespath.search(out.pairs, held) if out.pairs else None) or [None] * len(texts)
        elif out.text and (text := jmespath.search(out.text, held)) is not None:
            texts, pairs = [text], [jmespath.search(out.pair, held) if out.pair else None]
        else:
            raise DataError(f"no question at {out.texts or out.text}")
        whole = isinstance(pairs, list) and len(texts) == len(pairs)
        if not whole or not all(
            isinstance(text, str) and isinstance(pair, str | None)
            for text, pair in zip(texts, pairs, strict=True)
        ):
            raise DataError("questions are texts, with as many pairs where they have some")
        return [Example(t, p) for t, p in zip(texts, pairs, strict=True)]

    def _answers(self, held: Any, count: int) -> list[dict[str, Any]]:
        each = [held] if self._outside.answers is None else jmespath.search(
            self._outside.answers, held
        )  # fmt: skip
        if not isinstance(each, list) or len(each) != count:
            raise ValueError(f"no {count} answers at {self._outside.answers}")
        return each

    def _truth(self, one: dict[str, Any]) -> Truth:
        """A service's answer as the guard takes it."""
        out, choices = self._outside, self._guard.about.choices
        if out.answer:
            return Truth(text=str(one[out.answer]))
        if out.value:
            return Truth(value=float(one[out.value]))
        if out.probabilities and out.probabilities in one:
            shares = one[out.probabilities]
            return Truth(probabilities_K=np.array([float(shares[name]) for name in choices]))
        sure_K = np.zeros(len(choices))
        sure_K[list(choices).index(str(one[out.label or "label"]))] = 1.0
        return Truth(probabilities_K=sure_K)

    def _put(self, one: dict[str, Any], row: dict[str, Any]) -> None:
        """What the guard shows, where the service had its own."""
        out = self._outside
        names = {
            "probabilities": out.probabilities, "label": out.label, "value": out.value,
            "text": out.answer,
        }  # fmt: skip
        for kind, name in names.items():
            if name is None:
                continue
            if kind in row:
                one[name] = row[kind]
            else:
                one.pop(name, None)


UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
OF_THE_BODY = {
    b"content-length", b"etag", b"last-modified", b"digest", b"content-digest", b"repr-digest",
    b"content-md5", b"signature", b"signature-input", b"server-timing",
}  # fmt: skip


def _unfit(error: Exception) -> Denied:
    """A service's own fault: its clients can't do anything about it."""
    why = str(error) if isinstance(error, ModelError) else type(error).__name__
    return Denied(
        f"the guarded service's answer can't be read ({why}): are the middleware's names right?",
        status=502,
    )


class Held:
    """A response that has not been sent."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 500, [], b""
        self.rewritten = False  # in UTF-8, whatever it was before

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    async def send(self, send: Send) -> None:
        """With the service's own headers, but for those of the body that it had, and the length
        that it has now."""
        kept = [each for each in self.headers if each[0].lower() not in OF_THE_BODY]
        if self.rewritten:
            kept = [_without_charset(*each) for each in kept]
        headers = [*kept, (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _again(body: bytes, receive: Receive) -> Receive:
    """The request's body, to be read once more; after it what comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def _without_charset(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return (name, value.partition(b";")[0]) if name.lower() == b"content-type" else (name, value)


def _uncompressed(scope: Message) -> Message:
    """A request that asks for no compressed answer: it has to be read."""
    headers = [each for each in scope["headers"] if each[0].lower() != b"accept-encoding"]
    return {**scope, "headers": headers}
