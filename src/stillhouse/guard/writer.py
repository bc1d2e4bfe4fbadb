"""Writes the log in batches, and decisions about marks at once: one thread a worker.

A question's line may be lost with a worker that is killed, up to `PAUSE_S` of them; a marked answer
never leaves before its decision is committed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
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

KEPT = ("text", "pair", "truth", "served", "target")
PASSED = dict.fromkeys(KEPT) | {"kind": "passed"}  # a question that is no evidence, for good

Row = dict[str, Any]
Decision = tuple[Row, "Future[Row]"]


@dataclass
class Waiting:
    """What is not in the registry yet."""

    lines: list[Row] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lines or self.decisions)


class Writer:
    """`tick` runs between batches (leases go back, flags are read); what it raises of the registry
    is tried again with the next."""

    def __init__(
        self, registry: Registry, odds: Odds, *, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._registry, self._odds, self._tick = registry, odds, tick
        self._waiting = Waiting()
        self._lock = threading.Condition()
        self._wake, self._stop, self._busy = False, False, False
        self._flush, self._logged = False, -math.inf  # whether lines wait no longer, since when
        self.lost = 0  # lines that found no room
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="guard-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def log(self, lines: Sequence[Row]) -> None:
        """Writes lines some time soon. Raises RunError where the database is so long away that no
        more fit."""
        with self._lock:
            if len(self._waiting.lines) + len(lines) > MOST:
                self.lost += len(lines)
                raise RunError("the registry can't be reached, and the log is full")
            self._waiting.lines += lines

    def decide(self, row: Row) -> Future[Row]:
        """Writes a decision about a mark at once, unless there is one of this question already; the
        future has the one that holds, when it is committed."""
        future: Future[Row] = Future()
        future.set_running_or_notify_cancel()  # whoever stops waiting takes nothing back
        with self._lock:
            if self._stop:
                raise RunError("the service is closing")
            self._waiting.decisions.append((row, future))
            self._wake = True
            self._lock.notify()
        return future

    def close(self) -> None:
        """Writes what waits, and ends."""
        with self._lock:
            self._stop = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits until what waits now is written. Raises RunError."""
        until = time.monotonic() + timeout_s
        while True:
            with self._lock:
                if not self._waiting and not self._busy:
                    return
                self._wake = self._flush = True
                self._lock.notify()
            if time.monotonic() > until:
                raise RunError(f"the registry can't be reached: {self.trouble}")
            time.sleep(0.01)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._wake and not self._stop:
                    self._lock.wait(PAUSE_S)
                self._wake, stop = False, self._stop
            try:
                self._write(at_once=stop)
                self._tick()
                self.trouble = None
            except RunError as error:
                self.trouble = str(error)
                if not stop:
                    time.sleep(PAUSE_S)
            except Exception as error:
                self.trouble = f"something could not be written: {type(error).__name__}"
                self._one_by_one()
            if stop:
                self._fail()
                return

    def _write(self, *, at_once: bool) -> None:
        """A transaction of the decisions that wait, and now and then, so that few decisions wait
        for it, one of the lines. They wait on where that fails. A line is never written before the
        decision about its question."""
        now = time.monotonic()
        with self._lock:
            due = at_once or self._flush or now - self._logged >= PAUSE_S
            decisions = Waiting(decisions=self._waiting.decisions[:])
            lines = Waiting(self._waiting.lines[:] if due else [])
            self._flush = False
        if decisions:
            decided = self._transact(decisions)
            with self._lock:
                del self._waiting.decisions[: len(decided)]
            for future, row in decided:
                future.set_result(row)
        if lines:
            self._transact(lines)
            self._logged = now
            with self._lock:
                del self._waiting.lines[: len(lines.lines)]

    def _transact(self, held: Waiting) -> list[tuple[Future[Row], Row]]:
        with self._registry.writing() as connection:
            by_client: dict[str, list[Row]] = {}
            for line in held.lines:
                by_client.setdefault(line["client"], []).append(line)
            in_order = sorted(held.decisions, key=lambda each: each[0]["query"])  # no deadlocks
            decided = [(future, self._decided(connection, row)) for row, future in in_order]
            for client, lines in sorted(by_client.items()):
                self._count(connection, client, lines)
            for at in range(0, len(held.lines), AT_ONCE):
                connection.execute(sa.insert(queries), held.lines[at : at + AT_ONCE])
            return decided

    def _one_by_one(self) -> None:
        """After an error that is not the database's being away: what it refuses is dropped, and the
        rest written."""
        with self._lock:
            held, self._waiting, self._busy = self._waiting, Waiting(), True
        for place, (row, future) in enumerate(held.decisions):
            try:
                ((_, found),) = self._transact(Waiting(decisions=[(row, future)]))
                future.set_result(found)
            except RunError:
                with self._lock:
                    self._waiting.decisions = held.decisions[place:] + self._waiting.decisions
                break
            except Exception as error:
                future.set_exception(RunError(f"a mark can't be written: {type(error).__name__}"))
        for place, line in enumerate(held.lines):
            try:
                self._transact(Waiting(lines=[line]))
            except RunError:
                with self._lock:
                    self._waiting.lines = held.lines[place:] + self._waiting.lines
                break
            except Exception:
                self.lost += 1
        with self._lock:
            self._busy = False

    def _decided(self, connection: sa.Connection, row: Row) -> Row:
        """The decision that holds for a question: this one, if it is the first. What the client has
        asked before, under other settings or of another model, is evidence of nothing: that it was
        not marked then is known, and its answer stays."""
        if row["kind"] != "passed":
            asked = sa.select(queries.c.query).where(
                queries.c.client == row["client"], queries.c.query == row["query"]
            )
            if connection.execute(asked.limit(1)).first() is not None:
                row = row | PASSED
        connection.execute(self._registry.insert(marks).values(row).on_conflict_do_nothing())
        same = [marks.c[name] == row[name] for name in ("client", "query", "key", "model")]
        found = connection.execute(sa.select(marks).where(*same)).one()
        return dict(found._mapping)  # pyright: ignore[reportPrivateUsage]

    def _count(self, connection: sa.Connection, client: str, lines: Sequence[Row]) -> None:
        """Adds a client's new questions to its evidence, and flags it where that is enough. A
        question is new that no worker has in the log. They count in the order they were asked, but
        for what several workers write within a pause of each other."""
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

    def _fail(self) -> None:
        """Ends what still waits for a decision."""
        with self._lock:
            for _, future in self._waiting.decisions:
                future.set_exception(RunError("the service closed before a mark was written"))
            self._waiting.decisions.clear()
