"""What clients may still ask: budgets in queries, money and tokens, and rates, kept across workers.

A worker takes from the registry for a few questions at a time, and spends that by itself. What it
holds when it is killed, or when the database goes away, is lost to the client: at most `LEASE`
questions and `TOKEN_LEASE` tokens a worker, and never more than a budget.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from stillhouse.core.errors import StillhouseError
from stillhouse.extract.prices import Tariff
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import LimitsConfig
from stillhouse.guard.tables import clients

LEASE = 64  # questions that a worker holds for a client at most
TOKEN_LEASE = 16_384  # and tokens
IDLE_S = 2.0  # how long it holds them unused
UNLIMITED = 1 << 62

Clock = Callable[[], float]


class Denied(StillhouseError):
    """A question that is not answered: 402 for a budget that is spent, 429 for a rate."""

    def __init__(self, message: str, *, status: int, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_s = status, retry_s


@dataclass(frozen=True)
class Charge:
    """What questions cost: how many they are, units of the price list, and tokens that the model
    reads for them (none before it has read them)."""

    queries: int = 0
    units: int = 0
    tokens: int = 0

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            self.queries + other.queries, self.units + other.units, self.tokens + other.tokens
        )

    def __sub__(self, other: Charge) -> Charge:
        return self + Charge(-other.queries, -other.units, -other.tokens)

    def covers(self, other: Charge) -> bool:
        mine, theirs = self, other
        return (
            mine.queries >= theirs.queries
            and mine.units >= theirs.units
            and mine.tokens >= theirs.tokens
        )


@dataclass
class Lease:
    """What a worker holds for a client, and when that was last used, by a clock nobody sets."""

    held: Charge = Charge()
    used: float = 0.0


@dataclass(frozen=True)
class Bucket:
    """A rate limit's: what may be spent now, how fast it fills up (None: no limit) and how far."""

    level: float
    rate: float | None
    most: float
    what: str  # questions or tokens

    @classmethod
    def of(
        cls, what: str, level: float | None, rate: float | None, *, burst_s: float, since_s: float
    ) -> Bucket:
        """A bucket that had a level (None: it was full) so many seconds ago."""
        if rate is None:
            return cls(math.inf, None, math.inf, what)
        most = max(1.0, rate * burst_s)
        level = most if level is None else min(most, level + rate * since_s)
        return cls(level, rate, most, what)

    def check(self, count: int) -> None:
        """Raises Denied for more than is in it now, or ever."""
        if not count or self.rate is None or count <= self.level:
            return
        if count > self.most:
            raise Denied(
                f"{count:,} {self.what} at once are more than a rate of {self.rate:g} a second "
                f"allows: ask {int(self.most):,} at most",
                status=413,
            )
        raise Denied(
            f"the rate of {self.rate:g} {self.what} a second is exceeded",
            status=429, retry_s=(count - self.level) / self.rate,
        )  # fmt: skip

    def spare(self, count: int, most: int) -> int:
        """What may be leased beyond what is asked for: others share a rate."""
        return most if self.rate is None else max(0, int(self.level - count) // 4)

    def without(self, count: int) -> float | None:
        """What is kept of its level."""
        return None if self.rate is None else self.level - count


class Purses:
    """The clients' purses as one worker holds them. `clock`: the time of day that rates are kept by
    (left out: the database's, which workers on several machines share); `idle_clock`: what leases
    are measured by."""

    def __init__(
        self, registry: Registry, limits: LimitsConfig, tariff: Tariff,
        *, clock: Clock | None = None, idle_clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self._registry, self._limits, self._tariff = registry, limits, tariff
        self._clock, self._idle_clock = clock, idle_clock
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._taking: dict[str, threading.Lock] = {}

    def held(self, client: str, count: int, units: int, tokens: int = 0) -> bool:
        """Takes from what is held here, without asking the registry; whether that was enough."""
        charge = Charge(count, units, tokens)
        with self._lock:
            lease = self._held.get(client)
            if lease is None or not lease.held.covers(charge):
                return False
            lease.held -= charge
            lease.used = self._idle_clock()
            return True

    def take(
        self, client: str, count: int, units: int, tokens: int = 0, *, per_s: float | None = None
    ) -> None:
        """Charges a client for so many questions, units and tokens. `per_s`: a rate below its own,
        for one that is flagged. Raises Denied."""
        charge = Charge(count, units, tokens)
        with self._lock:
            turn = self._taking.setdefault(client, threading.Lock())
        with turn:  # what is held here goes back and is taken anew: one at a time
            if (per_s is None or not count) and self.held(client, count, units, tokens):
                return
            with self._lock:
                lease = self._held.pop(client, None)
            mine = Charge() if lease is None else lease.held
            try:
                taken = self._exchange(client, mine, charge, per_s)
            except Denied:
                self._hold(client, mine)
                raise
            self._hold(client, taken - charge)

    def refund(self, client: str, count: int, units: int, tokens: int = 0) -> None:
        """Gives a charge back: to what is held here, and if that is more than a lease, with all of
        it to the registry as soon as this worker looks after it."""
        self._hold(client, Charge(count, units, tokens))
        with self._lock:
            lease = self._held.get(client)
            if lease is not None and not Charge(LEASE, UNLIMITED, TOKEN_LEASE).covers(lease.held):
                lease.used = -math.inf

    def _hold(self, client: str, charge: Charge) -> None:
        with self._lock:
            lease = self._held.setdefault(client, Lease())
            lease.held += charge
            lease.used = self._idle_clock()

    def _exchange(self, client: str, mine: Charge, charge: Charge, slower: float | None) -> Charge:
        """Gives a lease back and takes another, of `charge` at least: how much. A charge of tokens
        alone leaves the questions of the lease as they are. Raises Denied."""
        wanted = (
            charge if charge.queries else replace(charge, queries=mine.queries, units=mine.units)
        )
        denied: Denied | None = None
        with self._registry.writing() as connection:
            row = connection.execute(
                sa.select(clients, self._moment())
                .where(clients.c.id == client)
                .with_for_update(key_share=True)
            ).one()
            if row.revoked is not None:
                raise Denied("this key was revoked", status=401)
            questions, tokens = self._buckets(row, mine, slower)
            spent = Charge(row.charged, row.units, row.token_charge) - mine
            taken = wanted
            try:
                if charge.queries:
                    questions.check(charge.queries)
                tokens.check(charge.tokens)
                taken = self._more(row, spent, charge, wanted, (questions, tokens))
            except Denied as error:
                if row.filled is None or row.filled <= row.moment:
                    raise
                # a clock was ahead, or is behind now: from here on the bucket fills up again
                denied, taken = error, mine
            now = spent + taken
            connection.execute(
                sa.update(clients)
                .where(clients.c.id == client)
                .values(
                    charged=now.queries, units=now.units, token_charge=now.tokens,
                    tokens=questions.without(taken.queries),
                    token_bucket=tokens.without(taken.tokens), filled=row.moment,
                )
            )  # fmt: skip
        if denied is not None:
            raise denied
        return taken

    def _more(
        self, row: Any, spent: Charge, charge: Charge, wanted: Charge,
        buckets: tuple[Bucket, Bucket],
    ) -> Charge:  # fmt: skip
        """What is taken: `wanted`, and beyond it what a worker may hold. Raises Denied where a
        budget has no room."""
        limits, (questions, tokens) = self._limits, buckets
        left = _left(limits.queries if row.queries is None else row.queries, spent.queries)
        if charge.queries > left:
            raise Denied(
                f"of the budget of {spent.queries + left:,} questions {left:,} are left", status=402
            )
        room = self._room(row, spent.units)
        if room is not None and charge.units > room:
            raise Denied(self._spent(row, spent.units), status=402)
        budget = limits.tokens if row.token_budget is None else row.token_budget
        unread = _left(budget, spent.tokens)
        if charge.tokens > unread or not unread:
            raise Denied(
                f"of the budget of {spent.tokens + unread:,} tokens {unread:,} are left, and this "
                f"has {charge.tokens:,}" if unread
                else f"the budget of {spent.tokens:,} tokens is spent",
                status=402,
            )  # fmt: skip
        more = tokens.spare(charge.tokens, TOKEN_LEASE)
        more_tokens = max(0, min(TOKEN_LEASE - charge.tokens, more, unread - charge.tokens))
        count = charge.queries
        if not count:
            return wanted + Charge(tokens=more_tokens)
        spare = max(0, min(LEASE - count, questions.spare(count, LEASE), left - count))
        each = -(-charge.units // count)  # of questions like these
        if room is not None:
            spare = min(spare, (room - charge.units) // max(1, each))
        return wanted + Charge(spare, spare * each, more_tokens)

    def _moment(self) -> Any:
        """The time of day, as a column."""
        if self._clock is not None or self._registry.is_sqlite:
            return sa.literal((self._clock or time.time)(), sa.Float).label("moment")
        seconds = sa.extract("epoch", sa.func.clock_timestamp())
        return sa.cast(seconds, sa.Float(53)).label("moment")

    def _buckets(self, row: Any, back: Charge, slower: float | None) -> tuple[Bucket, Bucket]:
        """A client's buckets now, of questions and of tokens, with what goes back. One that was
        filled at a time to come was filled now: a clock was wrong, and nobody waits for it."""
        limits = self._limits
        own = limits.per_s if row.per_s is None else row.per_s
        rate = min((each for each in (own, slower) if each is not None), default=None)
        read = limits.tokens_per_s if row.tokens_per_s is None else row.tokens_per_s
        passed = 0.0 if row.filled is None else max(0.0, row.moment - row.filled)
        held = None if row.tokens is None else row.tokens + back.queries
        held_tokens = None if row.token_bucket is None else row.token_bucket + back.tokens
        how = {"burst_s": limits.burst_s, "since_s": passed}
        return (
            Bucket.of("questions", held, rate, **how),
            Bucket.of("tokens", held_tokens, read, **how),
        )

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
        now = self._idle_clock()
        with self._lock:
            back = {
                client: lease.held
                for client, lease in self._held.items()
                if not idle_only or now - lease.used >= IDLE_S
            }
            for client in back:
                del self._held[client]
        back = {client: held for client, held in back.items() if held != Charge()}
        if not back:
            return
        with self._registry.writing() as connection:
            for client, held in sorted(back.items()):  # in one order: no deadlocks
                connection.execute(
                    sa.update(clients)
                    .where(clients.c.id == client)
                    .values(
                        charged=clients.c.charged - held.queries,
                        units=clients.c.units - held.units,
                        token_charge=clients.c.token_charge - held.tokens,
                        tokens=clients.c.tokens + held.queries,
                        token_bucket=clients.c.token_bucket + held.tokens,
                    )
                )


def _left(budget: int | None, spent: int) -> int:
    return UNLIMITED if budget is None else max(0, budget - spent)
