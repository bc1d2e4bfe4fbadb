"""Evidence that a client asks what no customer would, valid however often it is looked at, and for
questions that hang together.

Every new question is odd or not: its membership score is beyond a line. Of an honest client it is
assumed that, whatever it asked so far, the question s later is odd with a probability of at most

    p + (1 - p) (1 - 1 / L)^s,

p the tolerance, L the mean length of a burst: its past is forgotten at least as fast as by one who
changes, without memory, between calm and bursts of nothing but odd questions. At L = 1 that is at
most p whatever came before.

Questions are counted in blocks of m, and K tests take a block each in turn, so that (K - 1) m
questions lie between two blocks of a test. Then the share X of odd ones in its next block is
expected to be at most p', the mean of the above over the block, however they hang together. Against
that a test bets (Ville 1939; Shafer 2021): each of several gamblers stakes a fixed part f of its
money on the block, and is paid X / p' for it, so that its money becomes 1 - f + f X / p' times what
it was. Before a test's n-th block each gambler gets 1 / (n (n + 1)) more, which is 1 in all: who
turns to stealing after a long honest time meets fresh money. For an honest client a test's money
ever reaches K / alpha with a probability of at most alpha / K, and one of the tests does with at
most alpha.

The tests' mean would not do: what lies between two blocks of a test foretells the second of them,
and a mean is looked at there too. In blocks of one question, X is 0 or 1, and 1 - f + f X / p the
likelihood ratio of the rate p + f (1 - p) against p.

Axes: C clients, N questions, K tests, S gamblers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from stillhouse.guard.settings import Odds

STAKES_S = (np.arange(8) + 0.5) / 8
TESTS = 6
PER_BURST = 2  # blocks


@dataclass(frozen=True)
class Blocks:
    """length: m, questions; tests: K; expected: p', the share of odd ones that an honest client's
    block has at most, whatever the test's earlier blocks had."""

    length: int
    tests: int
    expected: float

    @property
    def gap(self) -> int:
        """Questions between two blocks of a test."""
        return (self.tests - 1) * self.length


@lru_cache(maxsize=64)
def blocks_of(tolerance: float, burst: float) -> Blocks:
    """Blocks of half a burst, which a test takes every three bursts: of what was tried, found
    thieves soonest, pure and diluted ones weighed alike. Single questions where none hang together.
    """
    length = math.ceil(burst / PER_BURST)
    tests = TESTS if burst > 1 else 1
    gap = (tests - 1) * length
    remembered = np.mean((1 - 1 / burst) ** np.arange(gap + 1, gap + length + 1))
    return Blocks(length, tests, float(tolerance + (1 - tolerance) * remembered))


@dataclass(frozen=True)
class Bets:
    """One client's tests under some settings. asked, odd: of the open block; blocks: complete ones;
    last: how many questions of the latest `tests` blocks were odd, oldest first; log_wealth: by
    test and gambler, of those tests that have had a block, natural logarithms."""

    asked: int = 0
    odd: int = 0
    blocks: int = 0
    last: Sequence[int] = ()
    log_wealth: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Evidence:
    """Of one client: new questions that were judged, how many were odd; which series of tests it
    is, a further one after each flag that was taken back; and the tests by settings, as JSON."""

    asked: int = 0
    odd: int = 0
    window: int = 1
    bets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def under(self, odds: Odds) -> Bets:
        return Bets(**self.bets.get(_name(odds), {}))

    def as_json(self) -> dict[str, int]:
        """What an owner may look at."""
        return {"asked": self.asked, "odd": self.odd, "window": self.window}

    def said(self, odds: Odds) -> str:
        """In words for the owner."""
        found = f"{self.odd} of {self.asked} new questions are odd"
        blocks, last = blocks_of(odds.tolerance, odds.burst), self.under(odds).last
        latest = len(last) * blocks.length
        if blocks.tests == 1 or len(last) < blocks.tests or latest == self.asked:
            return found
        return f"{found}, {sum(last)} of the {latest} latest"


def _name(odds: Odds) -> str:
    """What bets are kept under: those under other settings are about something else."""
    return f"{odds.tolerance!r}/{odds.burst!r}"


def bet(log_wealth: np.ndarray, number: int, share: np.ndarray, expected: float) -> np.ndarray:
    """A test's wealth by gambler, ... x S, after its block with this number (from 1) and share of
    odd questions (...); -inf before the first."""
    staked = np.logaddexp(log_wealth, -math.log(number * (number + 1)))
    return staked + np.log1p(STAKES_S * (share[..., None] / expected - 1))


def worth(log_wealth: np.ndarray) -> np.ndarray:
    """The natural logarithm of what all gamblers of a test have, of 1 that is given to them."""
    return np.asarray(np.logaddexp.reduce(log_wealth, axis=-1) - math.log(len(STAKES_S)))


def limit(odds: Odds, window: int = 1) -> float:
    """The logarithm of what no honest client lets a test win but for a chance of alpha, of all
    tests and of all series that may follow when flags are taken back."""
    tests = blocks_of(odds.tolerance, odds.burst).tests
    return math.log(tests * window * (window + 1) / odds.alpha)


def joined(before: Evidence, odd: Sequence[bool], odds: Odds) -> tuple[Evidence, bool]:
    """The evidence with more questions, in the order they were asked, and whether one of the blocks
    that they complete makes a suspect."""
    blocks, high = blocks_of(odds.tolerance, odds.burst), limit(odds, before.window)
    bets, suspect = before.under(odds), False
    asked, odd_ones, done, last = bets.asked, bets.odd, bets.blocks, list(bets.last)
    log_wealth = [np.array(each) for each in bets.log_wealth]
    for each in odd:
        asked, odd_ones = asked + 1, odd_ones + bool(each)
        if asked < blocks.length:
            continue
        round_, test = divmod(done, blocks.tests)
        if round_ == 0:
            log_wealth.append(np.full(len(STAKES_S), -np.inf))
        share = np.array(odd_ones / blocks.length)
        log_wealth[test] = bet(log_wealth[test], round_ + 1, share, blocks.expected)
        suspect |= bool(worth(log_wealth[test]) >= high)
        last = [*last, odd_ones][-blocks.tests :]
        asked, odd_ones, done = 0, 0, done + 1
    after = Bets(asked, odd_ones, done, last, [each.tolist() for each in log_wealth])
    kept = {**before.bets, _name(odds): dict(vars(after))}
    found = replace(
        before, asked=before.asked + len(odd), odd=before.odd + sum(map(bool, odd)), bets=kept
    )
    return found, suspect


def flagged_at(odd_CN: np.ndarray, odds: Odds) -> np.ndarray:
    """After how many questions each of many clients is flagged, C; 0 for those that never are."""
    blocks, high = blocks_of(odds.tolerance, odds.burst), limit(odds)
    count = odd_CN.shape[1] // blocks.length
    share_CB = odd_CN[:, : count * blocks.length].reshape(len(odd_CN), count, blocks.length).mean(2)
    found_C = np.zeros(len(odd_CN), dtype=int)
    log_wealth_CKS = np.full((len(odd_CN), blocks.tests, len(STAKES_S)), -np.inf)
    for place in range(count):
        round_, test = divmod(place, blocks.tests)
        of_CS = bet(log_wealth_CKS[:, test], round_ + 1, share_CB[:, place], blocks.expected)
        log_wealth_CKS[:, test] = of_CS
        found_C[(found_C == 0) & (worth(of_CS) >= high)] = (place + 1) * blocks.length
    return found_C
