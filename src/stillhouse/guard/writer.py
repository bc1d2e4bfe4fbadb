"""Writes the log in batches, and decisions about marks at once: one thread a worker.

A question's line may be lost with a worker that is killed, up to `PAUSE_S` of them; a marked answer
never leaves before its decision is committed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from stillhouse.core.errors import RunError
from stillhouse.guard.registry import Registry, flag
from stillhouse.guard.suspicion import Evidence, Odds, joined
from stillhouse.guard.tables import clients, marks, queries

PAUSE_S = 0.2
MOST = 20_000  # lines that wait for the database
AT_ONCE = 1_000  # lines of one statement

Row = dict[str, Any]
Decision = tuple[Row, "Future[Row]"]


@dataclass
class Waiting:
    """What is not in the registry yet. seen: of each client, new questions and odd ones."""

    lines: list[Row] = field(default_factory=list)
    controls: list[Row] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.lines or self.controls or self.decisions or self.seen)


class Writer:
    """`tick` runs between batches (leases go back, flags are read); what it raises of the registry
    is tried again with the next."""

    def __init__(
        self, registry: Registry, odds: Odds, *, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._registry, self._odds, self._tick = registry, odds, tick
        self._waiting = Waiting()
        self._lock = threading.Condition()
        self._wake, self._stop = False, False
        self.lost = 0  # lines that found no room
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="guard-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def log(
        self, lines: Sequence[Row], controls: Sequence[Row], seen: tuple[str, int, int] | None
    ) -> None:
        """Writes lines, and what they say of a client, some time soon. Raises RunError where the
        database is so long away that no more fit."""
        with self._lock:
            if len(self._waiting.lines) + len(lines) > MOST:
                self.lost += len(lines)
                raise RunError("the registry can't be reached, and the log is full")
            self._waiting.lines += lines
            self._waiting.controls += controls
            if seen is not None:
                client, asked, odd = seen
                before = self._waiting.seen.get(client, (0, 0))
                self._waiting.seen[client] = before[0] + asked, before[1] + odd

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
                if not self._waiting:
                    return
                self._wake = True
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
                self._write()
                self._tick()
                self.trouble = None
            except Exception as error:
                self.trouble = str(error)
                if not stop:
                    time.sleep(PAUSE_S)
            if stop:
                self._fail()
                return

    def _write(self) -> None:
        """One transaction of what waits; it waits on where that fails."""
        with self._lock:
            waiting, keep = self._waiting, self._waiting
            if not waiting:
                return
            held = Waiting(keep.lines[:], keep.controls[:], keep.decisions[:], dict(keep.seen))
        decided: list[tuple[Future[Row], Row]] = []
        with self._registry.writing() as connection:
            for row, future in held.decisions:
                decided.append((future, self._decided(connection, row)))
            if held.controls:
                self._insert(connection, marks, held.controls)
            if held.lines:
                for at in range(0, len(held.lines), AT_ONCE):
                    connection.execute(sa.insert(queries), held.lines[at : at + AT_ONCE])
            for client, (asked, odd) in sorted(held.seen.items()):
                self._suspect(connection, client, asked, odd)
        with self._lock:
            del waiting.lines[: len(held.lines)]
            del waiting.controls[: len(held.controls)]
            del waiting.decisions[: len(held.decisions)]
            for client, (asked, odd) in held.seen.items():
                now = waiting.seen[client]
                left = now[0] - asked, now[1] - odd
                if any(left):
                    waiting.seen[client] = left
                else:
                    del waiting.seen[client]
        for future, row in decided:
            future.set_result(row)

    def _insert(self, connection: sa.Connection, table: sa.Table, rows: list[Row]) -> None:
        connection.execute(self._registry.insert(table).on_conflict_do_nothing(), rows)

    def _decided(self, connection: sa.Connection, row: Row) -> Row:
        """The decision that holds for a question: this one, if it is the first."""
        self._insert(connection, marks, [row])
        same = [marks.c[name] == row[name] for name in ("client", "query", "key", "model")]
        found = connection.execute(sa.select(marks).where(*same)).one()
        return dict(found._mapping)  # pyright: ignore[reportPrivateUsage]

    def _suspect(self, connection: sa.Connection, client: str, asked: int, odd: int) -> None:
        """Adds to a client's evidence, and flags it where that is enough."""
        row = connection.execute(
            sa.select(clients).where(clients.c.id == client).with_for_update()
        ).one()
        before = Evidence(row.asked, row.odd, row.window)
        after, suspect = joined(before, asked, odd, self._odds)
        connection.execute(
            sa.update(clients)
            .where(clients.c.id == client)
            .values(
                distinct=clients.c.distinct + asked, asked=after.asked, odd=after.odd,
                window=after.window,
            )
        )  # fmt: skip
        if suspect:
            seen = before.asked + asked, before.odd + odd
            flag(connection, client, f"{seen[1]} of {seen[0]} new questions are odd")

    def _fail(self) -> None:
        """Ends what still waits for a decision."""
        with self._lock:
            for _, future in self._waiting.decisions:
                future.set_exception(RunError("the service closed before a mark was written"))
            self._waiting.decisions.clear()
