"""Whose question the model works on next: in small pieces, and fairly between clients.

A piece is a few questions read (tokenised), or one pass of rows of similar length, as short as
`Pace` allows. The next piece is of the client that had least of the model's time so far (start-time
fair queueing, Goyal et al. 1996): time is measured, not guessed from sizes, and whoever comes with
little waits for the piece under way and not for a round of all others. A client that had nothing
waiting begins `PASS_S` ahead of them, once: what it used stays known while others have something.
Rows of several clients share a pass where they are of similar length.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Protocol, runtime_checkable

from stillhouse.core.errors import DataError, RunError
from stillhouse.core.types import Example
from stillhouse.guard.model import InputRow, Part, Tokenized, Truth, whole
from stillhouse.guard.pace import PASS_S, Pace
from stillhouse.guard.purses import Denied
from stillhouse.guard.settings import QueueConfig
from stillhouse.guard.waiting import Client, Ready, Request, next_ahead, next_questions, next_rows

SHARED_S = 10.0  # how long one client's passes stay brief after another came between
RETRY_S = 30.0  # the longest that one who is sent away is told to wait

Now = Callable[[], float]


@runtime_checkable
class Model(Protocol):
    def reads(self, examples: Sequence[Example]) -> list[Tokenized]: ...

    def answer_rows(self, rows: Sequence[InputRow]) -> list[Part]: ...

    def expects(self, example: Example) -> int: ...


class Scheduler:
    """One thread that works for all clients of a model. `rows`: of one pass at most; `tokens`: of
    one request at most."""

    def __init__(
        self, model: Model, queue: QueueConfig = QueueConfig(), *, rows: int = 64,
        tokens: int | None = None, now: Now = time.perf_counter, start: bool = True,
    ) -> None:  # fmt: skip
        self._model, self._queue, self._rows, self._tokens = model, queue, rows, tokens
        self._now, self._pace = now, Pace()
        self._clients: dict[str, Client] = {}
        self._clock = 0.0  # the time used of whose piece began last
        self._shared = -math.inf  # when a client came while another's questions waited
        self._ahead_s = 0.0  # of reading for others since the last pass
        self._questions = self._weight = 0
        self._lock = threading.Condition()
        self._closing = self._stop = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        if start:
            self._thread.start()

    # what comes and goes

    async def ask(
        self, client: str, examples: Sequence[Example],
        *, charge: Callable[[int], bool] = lambda tokens: True,
        charge_later: Callable[[int], None] = lambda tokens: None,
    ) -> list[Truth]:  # fmt: skip
        """The answers. `charge` is told at once how many tokens were read, and says whether they
        are paid for; where not, `charge_later` may take its time, in another thread. Whoever is
        cancelled is worked for no longer. Raises Denied, DataError, RunError; what `charge_later`
        raises."""
        if not examples:
            return []
        request = self.submit(client, examples, charge=charge)
        answered, parked = asyncio.wrap_future(request.answered), request.parked
        try:
            async with asyncio.timeout(self._queue.time_s):
                waits = asyncio.wrap_future(parked)
                await asyncio.wait({answered, waits}, return_when=asyncio.FIRST_COMPLETED)
                if not answered.done():
                    await asyncio.to_thread(charge_later, waits.result())
                    self.go(request)
                return await answered
        except TimeoutError:
            raise Denied(
                f"no answer within {self._queue.time_s:g} seconds: ask fewer or shorter questions "
                "at once, or try again later",
                status=503, retry_s=self._retry_s(),
            ) from None  # fmt: skip
        finally:
            parked.cancel()
            answered.cancel()  # nothing where it is done

    def submit(
        self, client: str, examples: Sequence[Example],
        *, charge: Callable[[int], bool] = lambda tokens: True,
    ) -> Request:  # fmt: skip
        """Lets a request in. Cancelling its future takes it out. Raises Denied where too much
        waits, RunError where the service is closing."""
        request = Request(client, examples, charge, sum(map(self._model.expects, examples)))
        with self._lock:
            if self._closing:
                raise RunError("the service is closing: try again later")
            self._check_room(request)
            mine = self._clients.setdefault(client, Client())
            if any(each.requests for each in self._clients.values() if each is not mine):
                self._shared = self._now()
            if not mine.requests:
                mine.used = max(mine.used, self._clock - PASS_S)
            mine.requests.append(request)
            self._count(request, questions=len(examples), weight=request.weight)
            self._lock.notify()
        request.answered.add_done_callback(lambda _: self._leave(request))
        return request

    def go(self, request: Request) -> None:
        """A parked request's rows may run."""
        with self._lock:
            self._make_ready(request)
            self._lock.notify()

    def drain(self) -> None:
        """Lets nothing more in."""
        with self._lock:
            self._closing = True

    def abandon(self) -> None:
        """Ends what still waits, with an error; the piece under way is the last."""
        self.drain()
        with self._lock:
            waiting = [each for client in self._clients.values() for each in client.requests]
        for request in waiting:
            self._fail(request, RunError("the service is closing: try again later"))

    def close(self) -> None:
        """Ends what waits, and the thread after its piece."""
        self.abandon()
        with self._lock:
            self._stop = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _check_room(self, request: Request) -> None:
        """Raises Denied where too much waits: 429 for a client of which something waits, 503 for
        one that brings too much. Who has less than an equal share of what may wait always has room:
        what others send keeps nobody out."""
        mine = self._clients.get(request.client, Client())
        waiting = sum(bool(each.requests) for each in self._clients.values())
        share = 1 / (waiting + (not mine.requests))
        count, weight = len(request.examples), request.weight
        fits = self._fits(self._questions + count, self._weight + weight, 1)
        if (
            fits
            or not self._questions
            or self._fits(mine.questions + count, mine.weight + weight, share)
        ):
            return
        if mine.requests:
            raise Denied(
                f"{mine.questions:,} questions of yours wait already: ask when they are answered",
                status=429, retry_s=self._retry_s(mine.weight),
            )  # fmt: skip
        raise Denied(
            "the service is overloaded: try again later", status=503, retry_s=self._retry_s()
        )

    def _fits(self, questions: int, weight: int, share: float) -> bool:
        return questions <= share * self._queue.questions and weight <= share * self._queue.tokens

    def _retry_s(self, weight: int | None = None) -> float:
        """About when what waits now is done."""
        waiting = self._weight if weight is None else weight
        return min(RETRY_S, max(1.0, self._pace.seconds(waiting)))

    def _count(self, request: Request, *, questions: int = 0, weight: int = 0) -> None:
        mine = self._clients[request.client]
        mine.questions += questions
        mine.weight += weight
        self._questions += questions
        self._weight += weight

    def _leave(self, request: Request) -> None:
        """Takes a request out that was answered, failed or given up."""
        with self._lock:
            mine = self._clients[request.client]
            mine.requests.remove(request)
            self._count(request, questions=-len(request.examples), weight=-request.weight)
            if not self._questions:  # nobody was kept from anything: all begin anew
                self._clients.clear()
                self._clock = 0.0

    def _is_forgotten(self, client: Client) -> bool:
        """Whether a client has nothing here, and would begin as a new one does."""
        return not client.requests and client.used <= self._clock - PASS_S

    # what is worked on

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._stop and not self._has_work():
                    self._lock.wait()
                if self._stop:
                    return
            self.step()

    def _has_work(self) -> bool:
        return any(client.has_work for client in self._clients.values())

    def step(self) -> bool:
        """Does one piece; whether there was one."""
        with self._lock:
            working = [each for each in self._clients.values() if each.has_work]
            if not working:
                return False
            first = min(working, key=lambda client: client.used)
            self._clock = max(self._clock, first.used)
            for name in [n for n, c in self._clients.items() if self._is_forgotten(c)]:
                del self._clients[name]
            reader, reading = first, next_questions(first, self._pace)
            ahead = reading is None and self._ahead_s < PASS_S and next_ahead(working)
            if ahead:
                reader, reading = ahead[0], (ahead[1], len(ahead[1].examples))
            rows = [] if reading else self._next_rows(first)
        began = self._now()
        if reading is not None:
            self._read(*reading)
            took = self._now() - began
            with self._lock:
                reader.used += took
            self._ahead_s += took if ahead else 0.0
            return True
        self._pass(rows)
        self._ahead_s = 0.0
        took = self._now() - began
        self._share(rows, took)
        return True

    def _next_rows(self, first: Client) -> list[tuple[Request, Ready]]:
        brief = self._now() - self._shared < SHARED_S
        return next_rows(first, self._clients.values(), self._pace, most=self._rows, brief=brief)

    def _read(self, request: Request, count: int) -> None:
        begin = len(request.reads)
        few = request.examples[begin : begin + count]
        try:
            reads = self._model.reads(few)
            so_far = sum(each.tokens for each in (*request.reads, *reads))
            if self._tokens is not None and so_far > self._tokens:
                raise DataError(
                    f"the request has more than {self._tokens:,} tokens: ask fewer at once"
                )
        except Exception as error:
            self._fail(request, error)
            return
        with self._lock:
            request.reads += reads
            more = sum(each.tokens for each in reads) - sum(map(self._model.expects, few))
            if not request.answered.done():
                request.weight += more
                self._count(request, weight=more)
            if request.unread:
                return
        try:
            paid = request.charge(so_far)
        except Exception as error:
            self._fail(request, error)
            return
        if paid:
            self.go(request)
            return
        with suppress(InvalidStateError):  # given up meanwhile
            request.parked.set_result(so_far)

    def _make_ready(self, request: Request) -> None:
        if request.answered.done():
            return
        request.parts = [[None] * len(read.rows) for read in request.reads]
        request.ready = sorted(
            Ready(len(row), question, place)
            for question, read in enumerate(request.reads)
            for place, row in enumerate(read.rows)
        )
        request.left = len(request.ready)

    def _pass(self, rows: Sequence[tuple[Request, Ready]]) -> None:
        """Runs rows, and answers the requests that lack none after it."""
        began = self._now()
        try:
            parts = self._model.answer_rows(
                [request.reads[row.question].rows[row.place] for request, row in rows]
            )
        except Exception as error:
            for request in {request for request, _ in rows}:
                self._fail(request, error)
            return
        longest = max(row.length for _, row in rows)
        with self._lock:
            self._pace.observe(longest * len(rows), self._now() - began)
            for (request, row), part in zip(rows, parts, strict=True):
                request.parts[row.question][row.place] = part
                request.left -= 1
                if not request.answered.done():
                    request.weight -= row.length
                    self._count(request, weight=-row.length)
        for request in {request: None for request, _ in rows}:
            if not request.left:
                self._answer(request)

    def _answer(self, request: Request) -> None:
        parts = [[part for part in each if part is not None] for each in request.parts]
        with suppress(InvalidStateError):  # given up meanwhile
            found = zip(parts, request.reads, strict=True)
            request.answered.set_result([whole(each, read) for each, read in found])

    def _share(self, rows: Sequence[tuple[Request, Ready]], took: float) -> None:
        """Charges the clients of a pass for their part of its time."""
        whole_ = sum(row.length for _, row in rows)
        with self._lock:
            for request, row in rows:
                client = self._clients.get(request.client)
                if client is not None:
                    client.used += took * row.length / max(1, whole_)

    def _fail(self, request: Request, error: Exception) -> None:
        with suppress(InvalidStateError):
            request.answered.set_exception(error)
