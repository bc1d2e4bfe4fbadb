"""A request of the service as it comes: read and checked beside the event loop, and given up when
its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from stillhouse.core.errors import DataError
from stillhouse.core.types import Example
from stillhouse.guard.purses import Denied
from stillhouse.guard.wire import Question

AT_ONCE = 32_768  # bytes or characters that are gone through in the event loop itself
MANY = 100  # errors that are looked at
LEFT = 499  # the status of a request whose client left; nobody gets it

ASKED = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Question"}}},
    }
}  # what FastAPI would say of a body that it reads itself

T = TypeVar("T")
Check = Callable[[Sequence[Example]], None]


class Beside:
    """Work that goes through many characters, in a thread of its own, since nobody else is answered
    while the event loop does it. A client's is done one at a time, so that clients take turns; and
    the threads in which the registry is asked are left to that."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="heavy")
        self._turns: dict[str, asyncio.Lock] = {}

    async def do(self, client: str, size: int, work: Callable[[], T]) -> T:
        """What `work` returns, which goes through so many characters."""
        if size <= AT_ONCE:
            return work()
        turn = self._turns.setdefault(client, asyncio.Lock())
        try:
            async with turn:
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            if not turn.locked():
                self._turns.pop(client, None)

    def close(self) -> None:
        """Does nothing more, after what is under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def asked(
    request: Request, check: Check, *, beside: Beside, client: str, most: int
) -> list[Example]:
    """A request's questions, at most so many, which `check` let pass. The key was looked at before:
    nobody without one has a body read. Raises RequestValidationError, DataError; what `check`
    raises."""
    body = await request.body()
    return await beside.do(client, len(body), lambda: _questions(body, check, most))


def _questions(body: bytes, check: Check, most: int) -> list[Example]:
    try:
        question = Question.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > MANY:
            raise DataError("the request is none: give text, or texts") from None
        first = error.errors(include_url=False, include_input=False)[0]
        raise RequestValidationError([{**first, "loc": ("body", *first["loc"])}]) from None
    count = 1 if question.texts is None else len(question.texts)
    if count > most:  # of a million, not one is looked at
        raise DataError(f"{count:,} questions at once, {most:,} are allowed")
    examples = question.examples()
    check(examples)
    return examples


def describe_questions(app: FastAPI) -> None:
    """Puts the form of questions into the service's description."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        schema["components"]["schemas"]["Question"] = Question.model_json_schema()
        return schema

    app.openapi = openapi


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled when the client leaves. The request's body was read.
    Raises Denied; what `work` raises."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Denied("the client left", status=LEFT)
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
