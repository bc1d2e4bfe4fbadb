"""Evidence against clients: honest ones are safe however often they are looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stillhouse.guard import suspicion
from stillhouse.guard.suspicion import WINDOW, Evidence, Odds, capital, is_suspect, joined

ODDS = Odds(alpha=0.01, tolerance=0.1)


def flagged_at(odd_N: np.ndarray, odds: Odds = ODDS) -> int | None:
    """After how many questions a client is flagged."""
    evidence = Evidence()
    for place, odd in enumerate(odd_N.tolist(), 1):
        evidence, suspect = joined(evidence, 1, int(odd), odds)
        if suspect:
            return place
    return None


def test_at_the_start_the_bet_is_worth_one() -> None:
    assert capital(Evidence(), 0.1) == 0.0


def test_the_bet_by_hand() -> None:
    """One odd question: the mean of q / p over the rates, which is (1 + p) / 2 p."""
    assert math.exp(capital(Evidence(1, 1), 0.1)) == pytest.approx(1.1 / 0.2)
    assert math.exp(capital(Evidence(1, 0), 0.1)) == pytest.approx(0.45 / 0.9)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.05, 0.1])
def test_the_bet_is_fair_at_the_tolerance_and_loses_below(rate: float) -> None:
    """The expectation of one step, from any state, is at most what it was."""
    for asked, odd in [(0, 0), (3, 1), (50, 9), (400, 45)]:
        now = math.exp(capital(Evidence(asked, odd), 0.1))
        won = math.exp(capital(Evidence(asked + 1, odd + 1), 0.1))
        lost = math.exp(capital(Evidence(asked + 1, odd), 0.1))
        assert rate * won + (1 - rate) * lost <= now * (1 + 1e-9)


@pytest.mark.slow
def test_honest_clients_are_flagged_no_more_often_than_alpha(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looked at after every question, over four windows, at the tolerance itself."""
    monkeypatch.setattr(suspicion, "WINDOW", 60)
    monkeypatch.setattr(suspicion, "RATES", 4)
    odds, rng = Odds(alpha=0.1, tolerance=0.2), np.random.default_rng(0)
    flagged = [flagged_at(rng.random(240) < 0.2, odds) is not None for _ in range(250)]
    assert np.mean(flagged) <= 0.1 + 3 * (0.1 * 0.9 / 250) ** 0.5
    assert np.mean(flagged) > 0  # the bet is not so timid that nothing ever happens


def test_a_thief_is_flagged_soon() -> None:
    rng = np.random.default_rng(1)
    found = [flagged_at(rng.random(200) < 0.95) for _ in range(50)]
    assert all(each is not None and each <= 12 for each in found)


def test_a_thief_who_mixes_half_is_flagged_too() -> None:
    rng = np.random.default_rng(2)
    found = [flagged_at(rng.random(400) < 0.5) for _ in range(50)]
    assert all(each is not None and each <= 60 for each in found)


def test_a_long_honest_time_hides_nobody() -> None:
    rng = np.random.default_rng(3)
    honest, then = rng.random(5 * WINDOW) < 0.03, rng.random(200) < 0.95
    found = flagged_at(np.concatenate([honest, then]))
    assert found is not None
    assert 5 * WINDOW < found <= 5 * WINDOW + 30


def test_a_full_window_is_closed_and_the_next_is_stricter() -> None:
    after, suspect = joined(Evidence(WINDOW - 1, 3), 1, 0, ODDS)
    assert after == Evidence(window=2)
    assert not suspect
    k = next(k for k in range(1, 50) if is_suspect(Evidence(k, k), ODDS))
    assert not is_suspect(Evidence(k, k, window=50), ODDS)


def test_evidence_that_fills_a_window_still_counts() -> None:
    _, suspect = joined(Evidence(WINDOW - 5, 300), 10, 10, ODDS)
    assert suspect
