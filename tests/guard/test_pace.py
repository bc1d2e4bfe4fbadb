"""How long a pass takes, from passes that were run."""

from __future__ import annotations

import pytest

from stillhouse.guard.pace import OWN_SHARE, Pace


def test_a_line_is_found() -> None:
    pace = Pace()
    for tokens in (10, 500, 64, 2000, 10, 333):
        pace.observe(tokens, 0.002 + 1e-5 * tokens)
    for tokens in (1, 100, 10_000):
        assert pace.seconds(tokens) == pytest.approx(0.002 + 1e-5 * tokens)


def test_passes_of_one_size_tell_a_share_per_token() -> None:
    pace = Pace()
    for _ in range(3):
        pace.observe(100, 0.01)
    assert pace.seconds(200) == pytest.approx(0.02)


def test_what_is_long_ago_is_forgotten() -> None:
    pace = Pace()
    for passes, slope in ((200, 1e-5), (200, 1e-3)):
        for _ in range(passes):
            for tokens in (10, 1000):
                pace.observe(tokens, slope * tokens)
    assert pace.seconds(500) == pytest.approx(0.5, rel=0.01)


def test_no_pass_takes_less_than_nothing() -> None:
    pace = Pace()
    assert pace.seconds(100) > 0
    pace.observe(10, 0.5)  # the first, slow for other reasons
    pace.observe(1000, 0.1)
    assert pace.seconds(1) > 0
    assert pace.seconds(100_000) > 0


def test_a_line_is_kept_while_passes_of_one_size_tell_none() -> None:
    pace = Pace()
    for tokens in (10, 10, 500, 64):
        pace.observe(tokens, 0.05 + 1e-4 * tokens)
    for slower in (1, 2):
        for _ in range(200):
            pace.observe(10, slower * (0.05 + 1e-4 * 10))
        assert pace.seconds(1000) == pytest.approx(slower * (0.05 + 1e-4 * 1000), rel=0.05)


def test_passes_of_short_rows_grow_until_a_line_is_told() -> None:
    pace, tokens = Pace(), 12
    for _ in range(60):
        tokens = 12
        while tokens < 768 and pace.allows(tokens + 12):
            tokens += 12
        pace.observe(tokens, 0.05 + 5e-4 * tokens)
    assert pace.seconds(0) == pytest.approx(0.05, rel=0.1)
    assert pace.seconds(tokens) == pytest.approx(0.05 / OWN_SHARE, rel=0.1)


def test_the_first_pass_and_one_that_hung_tell_little() -> None:
    pace = Pace()
    pace.observe(10, 5.0)
    for tokens in (10, 500, 64, 100):
        pace.observe(tokens, 0.002 + 1e-5 * tokens)
    pace.observe(100, 60.0)
    assert pace.seconds(100) < 3 * (0.002 + 1e-5 * 100)
