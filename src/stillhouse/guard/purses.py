"""What clients may still ask: budgets in queries and money and a rate, kept across workers.

A worker takes from the registry for a few questions at a time, and spends that by itself. What it
holds when it is killed is lost to the client: at most `LEASE` questions a worker, and never more
than a budget. What it gives back in time is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import Field

from stillhouse.core.errors import StillhouseError
from stillhouse.core.terms import Config, Positive
from stillhouse.extract.prices import Tariff
from stillhouse.guard.registry import Registry
from stillhouse.guard.tables import clients

LEASE = 64  # questions that a worker holds for a client at most
IDLE_S = 2.0  # how long it holds them unused


class LimitsConfig(Config):
    """What every client may ask, unless it has limits of its own: queries and money in all, and
    questions a second (with as many at once as `burst` seconds bring)."""

    queries: Positive | None = None
    money: Annotated[float, Field(ge=0)] | None = None
    per_s: Annotated[float, Field(gt=0)] | None = None
    burst_s: Annotated[float, Field(gt=0)] = 10.0


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
        self._charged: dict[str, int] = {}
        self._lock = threading.Lock()

    def charged(self, client: str) -> int:
        """Questions that a client was charged for, as far as this worker knows."""
        return self._charged.get(client, 0)

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
        if self.held(client, count, units):
            return
        with self._registry.writing() as connection:
            row = connection.execute(
                sa.select(clients).where(clients.c.id == client).with_for_update()
            ).one()
            if row.revoked is not None:
                raise Denied("this key was revoked", status=401)
            queries, more = self._granted(connection, row, count, units, per_s)
            self._charged[client] = row.charged + queries
        with self._lock:
            lease = self._held.setdefault(client, Lease())
            lease.queries += queries - count
            lease.units += more - units
            lease.used = self._clock()

    def refund(self, client: str, count: int, units: int) -> None:
        """Gives a charge back: to what is held here, and with that to the registry in time."""
        with self._lock:
            lease = self._held.setdefault(client, Lease(used=self._clock()))
            lease.queries += count
            lease.units += units

    def _granted(
        self, connection: sa.Connection, row: Any, count: int, units: int, slower: float | None
    ) -> tuple[int, int]:
        """How many questions and units a worker gets, `count` and `units` at least."""
        tokens, filled, rate = self._tokens(row, slower)
        if count > tokens:
            wait = (count - tokens) / rate if rate else None
            raise Denied(
                f"{count} questions at once are more than the rate allows now ({rate:g} a second)",
                status=429, retry_s=wait,
            )  # fmt: skip
        left = self._left(row)
        if count > left:
            raise Denied(
                f"the budget of {row.charged + left:,} questions has {left:,} left", status=402
            )
        spare = max(0, min(LEASE - count, int(tokens - count) // 4, left - count))
        each = -(-units // count)  # of questions like these
        money = self._limits.money if row.money is None else row.money
        if money is not None:
            room = self._tariff.affordable(money) - row.units
            if units > room:
                spent = f"{self._tariff.currency}{self._tariff.price(row.units):,.2f}"
                raise Denied(
                    f"the budget of {self._tariff.currency}{money:,.2f} is spent: {spent} so far",
                    status=402,
                )
            spare = min(spare, (room - units) // max(1, each))
        queries, more = count + spare, units + spare * each
        connection.execute(
            sa.update(clients)
            .where(clients.c.id == row.id)
            .values(
                charged=clients.c.charged + queries, units=clients.c.units + more,
                tokens=None if rate is None else tokens - queries, filled=filled,
            )
        )  # fmt: skip
        return queries, more

    def _tokens(self, row: Any, slower: float | None) -> tuple[float, float, float | None]:
        """What a client's bucket holds now, when that was, and how fast it fills."""
        now = self._clock()
        own = self._limits.per_s if row.per_s is None else row.per_s
        rate = min((each for each in (own, slower) if each is not None), default=None)
        if rate is None:
            return float("inf"), now, None
        most = max(1.0, rate * self._limits.burst_s)
        if row.tokens is None:
            return most, now, rate
        return min(most, row.tokens + rate * max(0.0, now - row.filled)), now, rate

    def _left(self, row: Any) -> int:
        queries = self._limits.queries if row.queries is None else row.queries
        return 1 << 62 if queries is None else max(0, queries - row.charged)

    def give_back(self, *, idle_only: bool = True) -> None:
        """Returns what this worker holds (and has not used for a while)."""
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
        try:
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
        except BaseException:
            with self._lock:
                for client, lease in back.items():
                    held = self._held.setdefault(client, Lease(used=lease.used))
                    held.queries += lease.queries
                    held.units += lease.units
            raise
        for client, lease in back.items():
            self._charged[client] = self._charged.get(client, 0) - lease.queries
