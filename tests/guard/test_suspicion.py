"""Evidence against clients: honest ones are safe however often they are looked at, and however
their odd questions hang together."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from stillhouse.guard import suspicion
from stillhouse.guard.settings import Odds
from stillhouse.guard.simulated import HONEST, bursty, independent, interleaved
from stillhouse.guard.suspicion import (
    STAKES_S,
    Evidence,
    bet,
    blocks_of,
    flagged_at,
    joined,
    limit,
    worth,
)

ALONE = Odds(alpha=0.01, tolerance=0.1, burst=1)
BURSTS = Odds(alpha=0.01, tolerance=0.1, burst=50)
CLIENTS, ASKED = 2000, 2500
NEVER = np.full(len(STAKES_S), -np.inf)


def at_most(alpha: float, clients: int = CLIENTS) -> int:
    """So many flagged clients are more with a probability of one in a million, at alpha."""
    return int(stats.binom.isf(1e-6, clients, alpha))


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def flagged(odd_CN: np.ndarray, odds: Odds) -> int:
    return int((flagged_at(odd_CN, odds) > 0).sum())


def middle(odd_CN: np.ndarray, odds: Odds) -> float:
    """After how many questions half of them are found."""
    found_C = flagged_at(odd_CN, odds)
    return float(np.median(np.where(found_C == 0, np.inf, found_C)))


# the bet


def test_at_the_start_the_gamblers_have_nothing_and_get_one_in_all() -> None:
    assert worth(NEVER) == -math.inf
    paid = [1 / (n * (n + 1)) for n in range(1, 100_000)]
    assert sum(paid) == pytest.approx(1, abs=1e-4)
    assert sum(paid) <= 1


def test_the_bet_by_hand() -> None:
    """Of a half that is given: the mean over stakes f of 1 - f + f X / p, at p = 0.1."""
    for share, gain in ((1.0, 0.5 + 0.5 / 0.1), (0.0, 0.5), (0.1, 1.0), (0.6, 0.5 + 0.5 * 6)):
        log_wealth = bet(NEVER, 1, np.array(share), 0.1)
        assert math.exp(worth(log_wealth)) == pytest.approx(gain / 2)


def test_of_single_questions_a_bet_is_a_likelihood_ratio() -> None:
    p = 0.1
    rates = p + (1 - p) * STAKES_S
    for share, ratio in ((1.0, rates / p), (0.0, (1 - rates) / (1 - p))):
        assert np.exp(bet(NEVER, 1, np.array(share), p)) == pytest.approx(ratio / 2)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.9, 1.0])
def test_the_bet_is_never_less_than_the_likelihood_ratio_of_a_block(share: float) -> None:
    """By convexity; so blocks win no less than their questions would one by one."""
    p = 0.15
    q = p + (1 - p) * STAKES_S
    ratio = (q / p) ** share * ((1 - q) / (1 - p)) ** (1 - share)
    assert (2 * np.exp(bet(NEVER, 1, np.array(share), p)) >= ratio - 1e-12).all()


@pytest.mark.parametrize("odds", [ALONE, BURSTS, Odds(burst=3, tolerance=0.3)])
def test_an_honest_block_is_a_fair_bet_at_the_worst(odds: Odds) -> None:
    """Whatever the distribution of the share, at its greatest mean the expectation of wealth is
    what it was with what came in."""
    expected = blocks_of(odds.tolerance, odds.burst).expected
    for low, high in itertools.product(np.linspace(0, expected, 5), np.linspace(expected, 1, 5)):
        if low == high:
            continue
        chance = (expected - low) / (high - low)
        for number, before in ((1, NEVER), (9, np.log(STAKES_S))):
            mean = sum(
                part * np.exp(bet(before, number, np.array(share), expected))
                for part, share in ((chance, high), (1 - chance, low))
            )
            assert mean == pytest.approx(np.exp(before) + 1 / (number * (number + 1)))


# the blocks


def test_independent_questions_are_blocks_of_one_at_the_tolerance() -> None:
    blocks = blocks_of(0.1, 1)
    assert (blocks.length, blocks.tests, blocks.gap) == (1, 1, 0)
    assert blocks.expected == pytest.approx(0.1)


@pytest.mark.parametrize("burst", [1.5, 2, 5, 20, 50, 333])
def test_what_a_block_is_expected_to_have_is_what_a_burst_leaves(burst: float) -> None:
    """Of a chain that is in a burst at the end of a test's last block, step by step."""
    share, blocks = 0.1, blocks_of(0.1, burst)
    begins, odd, total = share / (1 - share) / burst, 1.0, 0.0
    for place in range(1, blocks.gap + blocks.length + 1):
        odd = odd * (1 - 1 / burst) + (1 - odd) * begins
        total += odd if place > blocks.gap else 0.0
    found = total / blocks.length
    assert found <= blocks.expected <= found + 0.03
    assert blocks.expected < 0.1 + 0.08  # the power that it costs


# what is promised


@pytest.mark.parametrize("alpha", [1e-3, 0.05])
@pytest.mark.parametrize("name", HONEST)
def test_honest_clients_are_flagged_no_more_often_than_alpha(name: str, alpha: float) -> None:
    odd_CN = HONEST[name](rng(), (CLIENTS, ASKED))
    assert odd_CN.mean() == pytest.approx(0.05, abs=0.055)
    assert flagged(odd_CN, Odds(alpha=alpha, burst=50)) <= at_most(alpha)


@pytest.mark.parametrize(("length", "least"), [(5, 0.15), (20, 0.3), (50, 0.4)])
def test_a_test_of_single_questions_would_flag_them(length: float, least: float) -> None:
    """So the promise above is the blocks'."""
    odd_CN = bursty(rng(), (300, ASKED), 0.05, length)
    assert flagged(odd_CN, Odds(burst=1)) > least * 300


def test_the_promise_is_kept_where_it_is_hardest() -> None:
    """Whole blocks are odd or not, at just the share that is expected at most; and the test is not
    so timid that nothing happens."""
    odds, blocks = Odds(alpha=0.05, burst=50), blocks_of(0.1, 50)
    whole = independent(rng(), (CLIENTS, 10 * blocks.tests), blocks.expected)
    found = flagged(np.repeat(whole, blocks.length, axis=1), odds)
    assert 0.002 * CLIENTS < found <= at_most(0.05)


@pytest.mark.parametrize("length", [2, 5, 20])
def test_bursts_as_long_as_is_said_at_the_tolerance_itself(length: float) -> None:
    odd_CN = bursty(rng(), (CLIENTS, int(100 * length)), 0.1, length)
    assert 0 < flagged(odd_CN, Odds(alpha=0.05, burst=length)) <= at_most(0.05)


def test_independent_questions_at_the_tolerance_itself() -> None:
    found = flagged(independent(rng(), (CLIENTS, ASKED), 0.1), Odds(alpha=0.05, burst=1))
    assert 0.002 * CLIENTS < found <= at_most(0.05)


# who is found


@pytest.mark.parametrize(("share", "alone", "bursts"), [(0.9, 10, 1100), (0.5, 40, 1700)])
def test_thieves_are_found(share: float, alone: int, bursts: int) -> None:
    odd_CN = independent(rng(), (200, 3 * bursts), share)
    assert middle(odd_CN, Odds(burst=1)) <= alone
    assert middle(odd_CN, Odds(burst=50)) <= bursts
    assert flagged(odd_CN, Odds(burst=50)) == 200


def test_a_thief_who_steals_while_one_test_looks_away_is_found_by_another() -> None:
    """Odd blocks just where the first test has none."""
    blocks = blocks_of(BURSTS.tolerance, BURSTS.burst)
    turn = np.arange(6000) // blocks.length % blocks.tests
    odd_CN = independent(rng(), (50, 6000), np.where(turn == 0, 0.03, 0.9))
    assert flagged(odd_CN, BURSTS) == 50


@pytest.mark.parametrize(("odds", "late"), [(ALONE, 40), (BURSTS, 2200)])
def test_a_long_honest_time_hides_nobody(odds: Odds, late: int) -> None:
    honest = bursty(rng(), (100, 20_000), 0.03, 1.0 if odds is ALONE else 20.0)
    then = independent(rng(), (100, 2 * late), 0.9)
    found_C = flagged_at(np.concatenate([honest, then], axis=1), odds)
    assert ((found_C == 0) | (found_C > 20_000)).mean() > 0.95
    assert np.median(found_C) <= 20_000 + late
    assert (found_C > 0).all()


# as questions come


@pytest.mark.parametrize("odds", [ALONE, BURSTS, Odds(alpha=0.05, burst=7)])
def test_one_by_one_in_parts_and_all_at_once_is_the_same(odds: Odds) -> None:
    odd_CN = independent(rng(), (4, 1500), 0.4)
    whole = flagged_at(odd_CN, odds)
    for odd_N, at in zip(odd_CN, whole, strict=True):
        evidence, first = Evidence(), 0
        for place, odd in enumerate(odd_N.tolist(), 1):
            evidence, suspect = joined(evidence, [odd], odds)
            first = first or (place if suspect else 0)
        assert first == at > 0
        parts, told = Evidence(), False
        for part in np.array_split(odd_N, 11):
            parts, suspect = joined(parts, part.tolist(), odds)
            parts = Evidence(**json.loads(json.dumps(vars(parts))))  # as the registry keeps it
            told |= suspect
        assert told
        assert parts.asked == evidence.asked == 1500
        assert parts.odd == odd_N.sum()
        mine, theirs = parts.under(odds), evidence.under(odds)
        assert np.allclose(mine.log_wealth, theirs.log_wealth)
        assert (mine.asked, mine.blocks, mine.last) == (theirs.asked, theirs.blocks, theirs.last)


def test_bets_under_other_settings_are_others() -> None:
    """Money won at a lower tolerance is nothing at a higher one; and what was is there again."""
    low, high = Odds(tolerance=0.05, burst=1), Odds(tolerance=0.3, burst=1)
    before, _ = joined(Evidence(), [False, True] * 40, low)
    after, suspect = joined(before, [True], high)
    assert not suspect
    assert len(after.under(high).log_wealth) == 1
    assert after.under(high).blocks == 1
    assert after.under(low) == before.under(low)
    assert (after.asked, after.odd) == (81, 41)


def test_after_a_flag_that_was_taken_back_the_test_is_stricter() -> None:
    assert limit(ALONE, 1) == pytest.approx(math.log(2 / 0.01))
    assert sum(math.exp(-limit(BURSTS, window)) for window in range(1, 10_000)) * (
        blocks_of(0.1, 50).tests
    ) == pytest.approx(0.01, rel=1e-3)
    k = next(k for k in range(1, 50) if joined(Evidence(), [True] * k, ALONE)[1])
    assert not joined(Evidence(window=50), [True] * k, ALONE)[1]


def test_what_the_owner_is_told() -> None:
    blocks = blocks_of(BURSTS.tolerance, BURSTS.burst)
    round_ = blocks.length * blocks.tests
    evidence, _ = joined(Evidence(), [False] * 3 * round_ + [True] * round_, BURSTS)
    assert evidence.said(BURSTS) == (
        f"{round_} of {4 * round_} new questions are odd, {round_} of the {round_} latest"
    )
    assert joined(Evidence(), [True] * 5, ALONE)[0].said(ALONE) == "5 of 5 new questions are odd"
    assert joined(Evidence(), [True] * 5, BURSTS)[0].said(BURSTS) == "5 of 5 new questions are odd"


# what it is tried on


def test_simulated_bursts_are_as_long_as_they_say() -> None:
    odd_CN = bursty(rng(), (400, 4000), 0.1, 20)
    assert odd_CN.mean() == pytest.approx(0.1, abs=0.01)
    begun = (odd_CN[:, 1:] & ~odd_CN[:, :-1]).sum()
    assert odd_CN.sum() / begun == pytest.approx(20, rel=0.1)


def test_two_with_one_key_ask_what_each_asked() -> None:
    one, other = np.ones((5, 50), dtype=bool), np.zeros((5, 50), dtype=bool)
    assert 0.3 < interleaved(rng(), one, other).mean() < 0.7
    assert suspicion.STAKES_S.max() < 1  # nobody stakes all
