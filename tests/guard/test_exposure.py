"""How much of an extraction curve a client has used."""

from __future__ import annotations

import math

import pytest

from stillhouse.guard.exposure import Curve

CURVE = Curve((100, 1000, 10_000), (0.5, 0.8, 0.95))


@pytest.mark.parametrize(
    ("asked", "share"),
    [(0, 0.0), (50, 0.25), (100, 0.5), (1000, 0.8), (10_000, 0.95), (10**6, 0.95)],
)
def test_the_curve_at_and_beyond_its_points(asked: int, share: float) -> None:
    assert CURVE.share(asked) == pytest.approx(share)


def test_between_points_by_logarithm() -> None:
    assert CURVE.share(round(math.sqrt(100 * 1000))) == pytest.approx(0.65, abs=1e-3)


def test_it_never_falls_and_the_used_share_is_of_the_largest_budget() -> None:
    shares = [CURVE.share(n) for n in range(0, 20_000, 37)]
    assert shares == sorted(shares)
    assert [CURVE.used(n) for n in (0, 2_500, 50_000)] == [0.0, 0.25, 1.0]
