"""What clients may still ask: budgets in queries and money and a rate, kept across workers.

A worker takes from the registry for a few questions at a time, and spends that by itself. What it
holds when it is killed, or when the database goes away, is lost to the client: at most `LEASE`
questions a worker, and never more than a budget.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stillhouse.core.errors import StillhouseError
from stillhouse.extract.prices import Tariff
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import LimitsConfig
from stillhouse.guard.tables import clients

LEASE = 64  # questions that a worker holds for a client at most
IDLE_S = 2.0  # how long it holds them unused


class Denied(StillhouseError):
    """A question that is not answered: 402 for a budget that is spent, 429 for a rate."""

    def __init__(self, message: str, *, status: int, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_s = status, retry_s


@dataclass
class Lease:
    """What a worker holds for a client: questions, and units of the price list for them."""

    queries: int = 0
    units: int = 0
    used: float = 0.0


class Purses:
    """The clients' purses as one worker holds them."""

    def __init__(
        self, registry: Registry, limits: LimitsConfig, tariff: Tariff,
        *, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._registry, self._limits, self._tariff = registry, limits, tariff
        self._clock = clock
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._taking: dict[str, threading.Lock] = {}

    def held(self, client: str, count: int, units: int) -> bool:
        """Takes from what is held here, without asking the registry; whether that was enough."""
        with self._lock:
            lease = self._held.get(client)
            if lease is None or lease.queries < count or lease.units < units:
                return False
            lease.queries -= count
            lease.units -= units
            lease.used = self._clock()
            return True

    def take(self, client: str, count: int, units: int, *, per_s: float | None = None) -> None:
        """Charges a client for so many questions and units. `per_s`: a rate below its own, for one
        that is flagged. Raises Denied."""
        with self._lock:
            turn = self._taking.setdefault(client, threading.Lock())
        with turn:  # what is held here goes back and is taken anew: one at a time
            if per_s is None and self.held(client, count, units):
                return
            with self._lock:
                mine = self._held.pop(client, Lease())
            try:
                queries, more = self._exchange(client, mine, count, units, per_s)
            except Denied:
                self._hold(client, mine.queries, mine.units)
                raise
            self._hold(client, queries - count, more - units)

    def refund(self, client: str, count: int, units: int) -> None:
        """Gives a charge back: to what is held here, and if that is more than a lease, with all of
        it to the registry as soon as this worker looks after it."""
        self._hold(client, count, units)
        with self._lock:
            lease = self._held.get(client)
            if lease is not None and lease.queries > LEASE:
                lease.used = -math.inf

    def _hold(self, client: str, count: int, units: int) -> None:
        with self._lock:
            lease = self._held.setdefault(client, Lease())
            lease.queries += count
            lease.units += units
            lease.used = self._clock()

    def _exchange(
        self, client: str, mine: Lease, count: int, units: int, slower: float | None
    ) -> tuple[int, int]:
        """Gives a lease back and takes another, of `count` and `units` at least: how many."""
        with self._registry.writing() as connection:
            row = connection.execute(
                sa.select(clients).where(clients.c.id == client).with_for_update(key_share=True)
            ).one()
            if row.revoked is not None:
                raise Denied("this key was revoked", status=401)
            charged, spent = row.charged - mine.queries, row.units - mine.units
            tokens, filled, rate = self._tokens(row, mine.queries, slower)
            self._check_rate(count, tokens, rate)
            left = self._left(row, charged)
            if count > left:
                raise Denied(
                    f"of the budget of {charged + left:,} questions {left:,} are left", status=402
                )
            more_now = LEASE if rate is None else int(tokens - count) // 4  # others share the rate
            spare = max(0, min(LEASE - count, more_now, left - count))
            each = -(-units // count)  # of questions like these
            room = self._room(row, spent)
            if room is not None:
                if units > room:
                    raise Denied(self._spent(row, spent), status=402)
                spare = min(spare, (room - units) // max(1, each))
            queries, more = count + spare, units + spare * each
            connection.execute(
                sa.update(clients)
                .where(clients.c.id == client)
                .values(
                    charged=charged + queries, units=spent + more,
                    tokens=None if rate is None else tokens - queries, filled=filled,
                )
            )  # fmt: skip
        return queries, more

    def _check_rate(self, count: int, tokens: float, rate: float | None) -> None:
        """Raises Denied for more questions than a rate allows now, or ever at once."""
        if rate is None or count <= tokens:
            return
        most = self._bucket(rate)
        if count > most:
            raise Denied(
                f"{count} questions at once are more than a rate of {rate:g} a second allows: ask "
                f"{int(most)} at most",
                status=413,
            )
        raise Denied(
            f"the rate of {rate:g} questions a second is exceeded",
            status=429, retry_s=(count - tokens) / rate,
        )  # fmt: skip

    def _bucket(self, rate: float) -> float:
        return max(1.0, rate * self._limits.burst_s)

    def _tokens(
        self, row: Any, back: int, slower: float | None
    ) -> tuple[float, float, float | None]:
        """What a client's bucket holds now (with what goes back), when that was, and how fast it
        fills."""
        now = self._clock()
        own = self._limits.per_s if row.per_s is None else row.per_s
        rate = min((each for each in (own, slower) if each is not None), default=None)
        if rate is None:
            return float("inf"), now, None
        most = self._bucket(rate)
        if row.tokens is None:
            return most, now, rate
        return min(most, row.tokens + back + rate * max(0.0, now - row.filled)), now, rate

    def _left(self, row: Any, charged: int) -> int:
        queries = self._limits.queries if row.queries is None else row.queries
        return 1 << 62 if queries is None else max(0, queries - charged)

    def _room(self, row: Any, spent: int) -> int | None:
        """The units that a client's money still buys; None: it has no such budget."""
        money = self._limits.money if row.money is None else row.money
        return None if money is None else self._tariff.affordable(money) - spent

    def _spent(self, row: Any, spent: int) -> str:
        money = self._limits.money if row.money is None else row.money
        sign = self._tariff.currency
        return (
            f"the budget of {sign}{money:,.2f} has no room for this: "
            f"{sign}{self._tariff.price(spent):,.2f} are spent"
        )

    def give_back(self, *, idle_only: bool = True) -> None:
        """Returns what this worker holds (and has not used for a while). What could not be returned
        is lost to the client: whether it was can't be known."""
        now = self._clock()
        with self._lock:
            back = {
                client: lease
                for client, lease in self._held.items()
                if not idle_only or now - lease.used >= IDLE_S
            }
            for client in back:
                del self._held[client]
        back = {client: lease for client, lease in back.items() if lease.queries or lease.units}
        if not back:
            return
        with self._registry.writing() as connection:
            for client, lease in sorted(back.items()):  # in one order: no deadlocks
                connection.execute(
                    sa.update(clients)
                    .where(clients.c.id == client)
                    .values(
                        charged=clients.c.charged - lease.queries,
                        units=clients.c.units - lease.units,
                        tokens=clients.c.tokens + lease.queries,
                    )
                )
