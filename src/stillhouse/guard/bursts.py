"""How long bursts of odd questions are that honest clients ask, learned from the log of clients
whom the owner trusts: what `check.burst` is to be.

A hidden chain changes between calm and bursts; in either, questions are odd with a probability of
its own. Its likelihood is reckoned for each length and several mixtures, every client at its own
share of odd questions. Bursts hold a tenth of the odd questions at least, and three tenths of what
would not be odd otherwise: fewer or thinner ones are not told from none. The upper bound follows
the greatest length whose likelihood is not refuted at 5 % (one-sided: 1.35 below the best, Wilks),
which is that of no bursts where nothing is better. Source: Rabiner 1989 (the forward pass).

Axes: N questions, G grid points, L lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import sqlalchemy as sa

from stillhouse.core.errors import DataError
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import Odds
from stillhouse.guard.simulated import independent
from stillhouse.guard.suspicion import flagged_at
from stillhouse.guard.tables import queries

LENGTHS_L = np.array([2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 1000])
INSIDE = (0.3, 0.5, 0.7, 0.95)  # of the questions in a burst that else were not odd
ALONE = (0.0, 0.3, 0.6, 0.9)  # shares of the odd questions that are in no burst
REFUTED = 1.35  # of the logarithm of the likelihood: half of chi square's 90 %
SEEN = 3.0  # by so much bursts explain the log better than none, where there are some
LEAST, MOST = 1_000, 200_000  # questions
LEAST_ODD = 20
LEAST_OF_ONE = 300  # questions, for a client's share to be worth a word
THIEVES, THIEF_ASKS = 200, 40_000


@dataclass(frozen=True)
class Burstiness:
    """questions, odd: of all clients together; worst: the greatest share of odd ones of a client
    with enough questions, and whose; length: the likeliest mean length of a burst, 1 where there is
    no sign of bursts; bound: what it is at most, at 95 %, None where that can't be told;
    flagged: who would be under the settings that were asked about."""

    questions: int
    odd: int
    clients: int
    worst: tuple[str, float] | None
    length: float
    bound: float | None
    flagged: tuple[str, ...]

    @property
    def share(self) -> float:
        return self.odd / self.questions

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share}

    def advice(self, odds: Odds) -> list[str]:
        """What to set, in sentences."""
        found = [
            f"{self.odd:,} of {self.questions:,} new questions of {self.clients} clients are odd "
            f"({self.share:.1%})."
        ]
        if self.bound is None and self.length == 1:
            found.append(
                "There is no sign of bursts, but the log is too short to tell how long they may "
                "be: ask again when there is more of it."
            )
        elif self.bound is None:
            found.append(
                "Bursts of odd questions may be longer than 1,000: nothing can be promised for "
                "such clients. Show the check their texts (guard learn --customers)."
            )
        else:
            seen = f"Bursts of odd questions are {self.length:g} long in the mean, most likely"
            found.append(
                f"{seen if self.length > 1 else 'There is no sign of bursts'}; {self.bound:g} at "
                "most, at 95 %."
            )
            told = "is enough" if odds.burst >= self.bound else "is too little"
            at_bound = odds.model_copy(update={"burst": self.bound})
            found.append(
                f"guard.check.burst ({odds.burst:g}) {told}: set {self.bound:g} or more. A thief "
                f"who only steals is found {soonest(odds)} at {odds.burst:g}, {soonest(at_bound)} "
                f"at {self.bound:g}."
            )
        if self.worst is not None and self.worst[1] > odds.tolerance:
            found.append(
                f"WARNING: of {self.worst[0]}'s questions {self.worst[1]:.1%} are odd, more than "
                f"guard.check.tolerance ({odds.tolerance:g}): it will be flagged. Raise the "
                "tolerance, or show the check such texts (guard learn --customers)."
            )  # fmt: skip
        if self.flagged:
            found.append(f"With these settings it would have flagged: {', '.join(self.flagged)}.")
        return found


def bursts_of(registry: Registry, names: Sequence[str], odds: Odds) -> Burstiness:
    """What the log says of these clients (of none given: of all that are not flagged). Raises
    DataError where it is too little, UsageError for a client that there is not."""
    rows = [registry.named(name) for name in names] or [
        row for row in registry.clients() if row.role == "client" and row.flagged is None
    ]
    found = {row.name: asked(registry, row.id) for row in rows}
    return measured({name: odd_N for name, odd_N in found.items() if len(odd_N)}, odds)


def asked(registry: Registry, client: str) -> np.ndarray:
    """Whether each of a client's different questions is odd, in the order they were first asked."""
    chosen = (
        sa.select(queries.c.query, queries.c.odd)
        .where(queries.c.client == client, queries.c.odd.is_not(None))
        .order_by(queries.c.time, queries.c.id)
    )
    found: dict[bytes, bool] = {}
    with registry.reading() as connection:
        for query, odd in connection.execute(chosen):
            found.setdefault(bytes(query), bool(odd))
    return np.fromiter(found.values(), dtype=bool)[-MOST:]


def measured(by_client: Mapping[str, np.ndarray], odds: Odds) -> Burstiness:
    """Of who asked what, in order. Raises DataError for too little to learn from."""
    count = sum(len(odd_N) for odd_N in by_client.values())
    odd = int(sum(odd_N.sum() for odd_N in by_client.values()))
    if count < LEAST:
        raise DataError(
            f"the log has {count:,} judged questions of these clients: {LEAST:,} and more are "
            "needed to learn how long bursts are"
        )
    shares = {
        n: float(odd_N.mean()) for n, odd_N in by_client.items() if len(odd_N) >= LEAST_OF_ONE
    }
    length, bound = _fit(list(by_client.values())) if odd >= LEAST_ODD else (1.0, 1.0)
    flagged = [name for name, odd_N in by_client.items() if flagged_at(odd_N[None], odds)[0]]
    worst = max(shares.items(), key=lambda each: each[1], default=None)
    return Burstiness(count, odd, len(by_client), worst, length, bound, tuple(flagged))


def soonest(odds: Odds) -> str:
    """After how many questions half of the thieves are found of whose questions nine in ten are
    odd, in words."""
    asks = min(THIEF_ASKS, int(200 + 40 * odds.burst))
    odd_CN = independent(np.random.default_rng(0), (THIEVES, asks), 0.9)
    found_C = flagged_at(odd_CN, odds)
    middle = int(np.median(np.where(found_C == 0, asks + 1, found_C)))
    return f"after {middle:,} questions" if middle <= asks else f"after more than {asks:,}"


def _fit(streams: Sequence[np.ndarray]) -> tuple[float, float | None]:
    """The likeliest mean length of a burst, and its upper bound: the next length on the grid, for
    the truth may lie between two."""
    grid = np.array(list(product(LENGTHS_L, INSIDE, ALONE)), dtype=float)
    whole_G, none = np.zeros(len(grid)), 0.0
    for odd_N in streams:
        share = float(np.clip(odd_N.mean(), 1e-4, 1 - 1e-4))
        whole_G += _likelihoods(odd_N, share, grid)
        k = int(odd_N.sum())
        none += k * math.log(share) + (len(odd_N) - k) * math.log1p(-share)
    best_L = whole_G.reshape(len(LENGTHS_L), -1).max(1)
    best = max(float(best_L.max()), none)
    length = float(LENGTHS_L[best_L.argmax()]) if best_L.max() > none + SEEN else 1.0
    possible = np.flatnonzero(best_L >= best - REFUTED)
    if not len(possible):
        return length, 1.0
    after = int(possible[-1]) + 1
    return length, float(LENGTHS_L[after]) if after < len(LENGTHS_L) else None


def _likelihoods(odd_N: np.ndarray, share: float, grid: np.ndarray) -> np.ndarray:
    """The logarithm of the probability of a client's questions at each grid point, G x 3: length of
    a burst, how much of the rest of its questions are odd too, part of all odd questions outside of
    bursts. -inf for what can't be, such as bursts that leave no room for calm."""
    length_G, extra_G, alone_G = grid.T
    inside_G, calm_G = share + (1 - share) * extra_G, np.maximum(alone_G * share, 1e-6)
    in_burst_G = (share - alone_G * share) / (inside_G - alone_G * share)
    begins_G = in_burst_G / (1 - in_burst_G) / length_G
    can_be_G = begins_G < 1
    stays_G, begins_G = 1 - 1 / length_G, np.where(can_be_G, begins_G, 0.5)
    given = {True: (inside_G, calm_G), False: (1 - inside_G, 1 - calm_G)}
    found_G, now_G = np.zeros(len(grid)), in_burst_G
    for odd in odd_N.tolist():
        in_G, out_G = given[odd]
        burst_G = now_G * in_G
        whole_G = burst_G + (1 - now_G) * out_G
        found_G += np.log(whole_G)
        now_G = burst_G / whole_G
        now_G = now_G * stays_G + (1 - now_G) * begins_G
    return np.where(can_be_G, found_G, -np.inf)
