"""What waits for the model, and what of it makes a good piece of work."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate, takewhile

from stillhouse.core.types import Example
from stillhouse.guard.model import Part, Tokenized, Truth
from stillhouse.guard.pace import Pace

READ_AT_ONCE = 4_000  # characters that are read in one piece, or one question
ALIKE, NEAR = 1.25, 16  # rows of one pass: no longer than by this factor, or so many tokens


@dataclass(order=True)
class Ready:
    """A row that waits for a pass: of which question, and which of its rows."""

    length: int
    question: int
    place: int


@dataclass(eq=False)
class Request:
    """Questions of one client that are answered together. weight: the tokens that still wait, those
    of questions that were not read yet by a guess. charge: called with the tokens when all is read;
    unless it says True, the request is parked until `go`."""

    client: str
    examples: Sequence[Example]
    charge: Callable[[int], bool]
    weight: int
    answered: Future[list[Truth]] = field(default_factory=Future)
    parked: Future[int] = field(default_factory=Future)
    reads: list[Tokenized] = field(default_factory=list)
    ready: list[Ready] = field(default_factory=list)  # rising length
    parts: list[list[Part | None]] = field(default_factory=list)
    left: int = 0  # rows without an answer

    @property
    def unread(self) -> bool:
        return len(self.reads) < len(self.examples)


@dataclass(eq=False)
class Client:
    """used: seconds of the model, on the scheduler's clock, up to its last piece."""

    used: float = 0.0
    requests: deque[Request] = field(default_factory=deque)
    questions: int = 0
    weight: int = 0

    @property
    def has_work(self) -> bool:
        return any(request.unread or request.ready for request in self.requests)


def next_questions(client: Client, pace: Pace) -> tuple[Request, int] | None:
    """A request whose questions are read next, and how many of them: the oldest's, but for a
    client whose rows fill a pass already or whose next question is long."""
    ready = sum(row.length for each in client.requests for row in each.ready)
    request = next((each for each in client.requests if each.unread), None)
    if request is None:
        return None
    few = request.examples[len(request.reads) :]
    if ready and (_characters(few[0]) > READ_AT_ONCE or not pace.allows(ready)):
        return None
    sizes = accumulate(map(_characters, few))
    return request, max(1, sum(1 for _ in takewhile(lambda size: size <= READ_AT_ONCE, sizes)))


def next_ahead(clients: Iterable[Client]) -> tuple[Client, Request] | None:
    """A short request that is read before the others' next pass, so that it can share it: of a
    client that has no rows ready."""
    for client in sorted(clients, key=lambda client: client.used):
        if any(request.ready for request in client.requests):
            continue
        request = next((each for each in client.requests if each.unread), None)
        few = () if request is None else request.examples[len(request.reads) :]
        if request is not None and sum(map(_characters, few)) <= READ_AT_ONCE:
            return client, request
    return None


def _characters(example: Example) -> int:
    return len(example.text) + len(example.pair or "")


def next_rows(
    first: Client, clients: Iterable[Client], pace: Pace, *, most: int, brief: bool = False
) -> list[tuple[Request, Ready]]:
    """The rows of the next pass: the first client's shortest of its oldest request, and more of
    similar length, its own before others', who bring no more than it does (a few rows of many
    are no reason for one row to wait longer). brief: the first client's own make a short pass, as
    others come between. They leave what is ready."""
    lead = next(request for request in first.requests if request.ready)
    shortest = lead.ready[0].length
    low = min(int(shortest / ALIKE), shortest - NEAR)
    high = max(int(shortest * ALIKE), shortest + NEAR)
    others = sorted((c for c in clients if c is not first), key=lambda client: client.used)
    found: list[tuple[Request, Ready]] = []
    longest, others_bring = 0, 1 << 62  # tokens that another client may bring, or a row
    for client in (first, *others):
        brought = 0
        for request in client.requests:
            begin = end = bisect_left(request.ready, low, key=lambda row: row.length)
            while end < len(request.ready) and len(found) < most:
                row = request.ready[end]
                tokens = (len(found) + 1) * max(longest, row.length)
                short = brief and client is first
                slow = bool(found) and not pace.allows(tokens, brief=short)
                if slow or row.length > high or (brought and brought + row.length > others_bring):
                    break
                longest = max(longest, row.length)
                brought += row.length
                found.append((request, row))
                end += 1
            del request.ready[begin:end]
        if client is first:
            others_bring = brought
    return found
