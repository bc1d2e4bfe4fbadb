"""Writes what was answered before any of it leaves: one thread a worker, whatever waits together
in one transaction.

All answers wait for the same thing, a commit of their lines in the log and of the decisions about
marks among them, and then until as much time has gone by as most commits take: to write a decision
down takes a little longer, and who measures would see which questions are kept.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from stillhouse.core.errors import RunError
from stillhouse.guard.registry import Registry, evidence_of, flag
from stillhouse.guard.settings import Odds
from stillhouse.guard.suspicion import joined
from stillhouse.guard.tables import clients, marks, queries

PAUSE_S = 0.2
MOST = 20_000  # lines that wait for the database
AT_ONCE = 1_000  # lines of one statement
LATEST, MOST_OF = 256, 0.95  # commits that are looked back on, and the share that holds others up

KEPT = ("text", "pair", "read", "truth", "served", "target")
PASSED = dict.fromkeys(KEPT) | {"kind": "passed"}  # a question that is no evidence, for good

Row = dict[str, Any]
Kinds = Mapping[bytes, str]  # what was decided about questions, by name: mark, control, passed


@dataclass
class Answered:
    """What one request leaves: a line a question, and what may be decided about some. written: what
    was decided about these, and before, once it is committed. given_up: nobody waits any more."""

    client: str
    key: str
    model: str
    lines: list[Row]
    decisions: list[Row]
    written: Future[Kinds] = field(default_factory=Future)
    given_up: bool = False
    began: float = field(default_factory=time.monotonic)


class Steady:
    """How long an answer is held up, so that most take the same time, kept or not."""

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=LATEST)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self._took.append(seconds)
        self.seconds = sorted(self._took)[int(MOST_OF * (len(self._took) - 1))]


class Writer:
    """`tick` runs between transactions (leases go back, flags are read); what it raises of the
    registry is tried again with the next."""

    def __init__(
        self, registry: Registry, odds: Odds, *, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._registry, self._odds, self._tick = registry, odds, tick
        self._waiting: list[Answered] = []
        self._lock = threading.Condition()
        self._stop, self._busy = False, False
        self.steady = Steady()
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="guard-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def write(self, answered: Answered) -> Future[Kinds]:
        """Writes a request's lines and decisions as soon as may be. Raises RunError where the
        database is so long away that no more fit, or while closing."""
        answered.written.set_running_or_notify_cancel()  # whoever stops waiting ends no other's
        with self._lock:
            if self._stop:
                raise RunError("the service is closing")
            if sum(len(each.lines) for each in self._waiting) + len(answered.lines) > MOST:
                raise RunError("the registry can't be reached, and the log is full")
            self._waiting.append(answered)
            self._lock.notify_all()
        return answered.written

    def close(self) -> None:
        """Writes what waits, and ends."""
        with self._lock:
            self._stop = True
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits until what waits now is written. Raises RunError."""
        with self._lock:
            if not self._lock.wait_for(lambda: not self._waiting and not self._busy, timeout_s):
                raise RunError(f"the log is not written: {self.trouble or 'the database is slow'}")

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting and not self._stop:
                    self._lock.wait(PAUSE_S)
                stop, group = self._stop, [each for each in self._waiting if not each.given_up]
                self._waiting, self._busy = [], bool(group)
            left = self._written(group)
            try:
                self._tick()
                self.trouble = None if not left else self.trouble
            except RunError as error:
                self.trouble = str(error)
            except Exception as error:
                self.trouble = f"something could not be written: {type(error).__name__}"
            with self._lock:
                self._waiting, self._busy = left + self._waiting, False
                self._lock.notify_all()
                if stop:
                    self._fail()
                    return
                if left:
                    self._lock.wait(PAUSE_S)

    def _written(self, group: list[Answered]) -> list[Answered]:
        """Writes requests in one transaction; which are to be tried again, as the database is away.
        One that the database refuses fails by itself."""
        if not group:
            return []
        try:
            found = self._transact(group)
        except RunError as error:
            self.trouble = str(error)
            return group
        except Exception as error:
            if len(group) > 1:
                return [left for each in group for left in self._written([each])]
            group[0].written.set_exception(
                RunError(f"an answer can't be written down: {type(error).__name__}")
            )
            return []
        for each, kinds in zip(group, found, strict=True):
            self.steady.observe(time.monotonic() - each.began)
            each.written.set_result(kinds)
        return []

    def _transact(self, group: Sequence[Answered]) -> list[Kinds]:
        """The statements are the same ones whether a question is kept or not."""
        by_client: dict[str, list[Answered]] = {}
        for each in group:
            by_client.setdefault(each.client, []).append(each)
        found: dict[int, Kinds] = {}
        with self._registry.writing() as connection:
            for client, requests in sorted(by_client.items()):  # in one order: no deadlocks
                new = self._count(connection, client, [line for r in requests for line in r.lines])
                lines = [line for each in requests for line in each.lines]
                for at in range(0, len(lines), AT_ONCE):
                    connection.execute(sa.insert(queries), lines[at : at + AT_ONCE])
                self._decide(connection, [row for r in requests for row in r.decisions], new)
                for each in requests:
                    found[id(each)] = self._kinds(connection, each)
        return [found[id(each)] for each in group]

    def _decide(
        self, connection: sa.Connection, rows: Sequence[Row], new: Mapping[bytes, Row]
    ) -> None:
        """Writes decisions down, unless there are some about these questions. What the client has
        asked before, under other settings or of another model, is evidence of nothing: that it was
        not marked then is known, and its answer stays."""
        if rows:
            rows = [row if row["query"] in new else row | PASSED for row in rows]
            connection.execute(self._registry.insert(marks).on_conflict_do_nothing(), rows)

    def _kinds(self, connection: sa.Connection, answered: Answered) -> Kinds:
        """What is decided about a request's questions."""
        names = list({line["query"] for line in answered.lines})
        found: dict[bytes, str] = {}
        for at in range(0, len(names), AT_ONCE):
            chosen = sa.select(marks.c.query, marks.c.kind).where(
                marks.c.client == answered.client, marks.c.key == answered.key,
                marks.c.model == answered.model, marks.c.query.in_(names[at : at + AT_ONCE]),
            )  # fmt: skip
            found |= {bytes(name): kind for name, kind in connection.execute(chosen)}
        return found

    def _count(
        self, connection: sa.Connection, client: str, lines: Sequence[Row]
    ) -> dict[bytes, Row]:
        """Adds a client's new questions to its evidence, and flags it where that is enough: those
        that no worker has in the log, each with its first line. They count in the order they were
        asked, but for what several workers write within a moment of each other."""
        row = connection.execute(
            sa.select(clients).where(clients.c.id == client).with_for_update(key_share=True)
        ).one()
        first: dict[bytes, Row] = {}
        for line in sorted(lines, key=lambda each: each["time"]):  # as they were asked
            first.setdefault(line["query"], line)
        names = list(first)
        for at in range(0, len(names), AT_ONCE):
            few = names[at : at + AT_ONCE]
            met = sa.select(queries.c.query).where(
                queries.c.client == client, queries.c.query.in_(few)
            )
            for (name,) in connection.execute(met):
                first.pop(bytes(name), None)
        judged = [bool(line["odd"]) for line in first.values() if line["odd"] is not None]
        after, suspect = joined(evidence_of(row), judged, self._odds)
        connection.execute(
            sa.update(clients)
            .where(clients.c.id == client)
            .values(
                distinct=clients.c.distinct + len(first), asked=after.asked, odd=after.odd,
                bets=after.bets,
            )
        )  # fmt: skip
        if suspect:
            flag(connection, client, after.said(self._odds))
        return first

    def _fail(self) -> None:
        """Ends what still waits."""
        for each in self._waiting:
            each.written.set_exception(RunError("the service closed before this was written"))
        self._waiting = []
