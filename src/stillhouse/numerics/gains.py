"""A gain from its parts: how wide its interval is, what it amounts to, and what would decide it.

`stats.paired_gain` has the formula, and where the parts come from. Axes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

Decided = Literal["helped", "hurt", "no difference", "can't tell"]
SMALLEST_P = 1e-100
MOST_SEEDS, MOST_ROWS = 50, 1_000_000  # more are never proposed


@dataclass(frozen=True)
class Spread:
    """What a gain's interval is made of: the variances of `value`, the mean over `seeds`.

    `row_variance`: over the rows drawn, `rows` of them, seeds held fixed; `shared_variance`: the
    part of it that all seeds share (None with one seed: not known); `seed_variance`: over
    the seeds, rows held fixed. `counted`: how many answers are counted, 0 for values.
    """

    value: float
    seeds: int
    rows: int
    counted: int
    row_variance: float
    shared_variance: float | None
    seed_variance: float

    def half_width(self, miss: float) -> float:
        """The interval's half-width at 1 - level; the formula is in stats.paired_gain."""
        row_t = t_quantile(miss, self.rows - 1)
        seed_t = t_quantile(miss, self.seeds - 1) if self.seeds > 1 else 0.0
        row_variance, step = max(self.row_variance, self.value**2 / self.rows), 0.0
        if self.counted:
            row_variance = max(row_variance, self.counted**-2)
            step = 1 / (self.seeds * self.counted)
        shared = max(self.shared_variance or 0.0, 0.0)
        both = math.hypot(seed_t * math.sqrt(self.seed_variance), row_t * math.sqrt(shared))
        return step + max(both, row_t * math.sqrt(row_variance))

    def with_seeds(self, seeds: int) -> Spread:
        """What it would be with as many seeds, all else as it is. Raises ValueError with one."""
        if self.shared_variance is None:
            raise ValueError("one seed says nothing of what more seeds would show")
        own = self.seeds * (self.row_variance - self.shared_variance)  # one seed's on its rows
        return replace(
            self,
            seeds=seeds,
            row_variance=self.shared_variance + own / seeds,
            seed_variance=self.seed_variance * self.seeds / seeds,
        )

    def with_rows(self, rows: int) -> Spread:
        """What it would be on as many rows of the same kind, all else as it is."""
        ratio, seed_variance = self.rows / rows, self.seed_variance
        shared = self.shared_variance
        if shared is not None:
            # what of the seeds' variance is one seed's noise on its rows shrinks with them
            on_rows = min(max(self.row_variance - shared, 0.0), seed_variance)
            seed_variance += on_rows * (ratio - 1)
        return replace(
            self,
            rows=rows,
            counted=round(self.counted / ratio),
            row_variance=self.row_variance * ratio,
            shared_variance=None if shared is None else shared * ratio,
            seed_variance=seed_variance,
        )


@dataclass(frozen=True)
class PairedGain:
    """Student minus baseline, in the metric's unit; `p_value` is two-sided.

    p_value < 1 - level exactly where the interval excludes 0.
    """

    value: float
    interval: tuple[float, float]
    p_value: float
    spread: Spread | None = field(default=None, compare=False, repr=False)


def gain_from(
    gains_S: NDArray[np.float64],
    covariance_SS: NDArray[np.float64],
    *,
    rows: int,
    counted: int,
    level: float = 0.95,
) -> PairedGain:
    """The gain whose seeds' differences are `gains_S` and have `covariance_SS` over the rows drawn;
    see stats.paired_gain. `counted`: how many answers are counted, 0 for values."""
    seeds, value = len(gains_S), float(gains_S.mean())
    shared, seed_variance = None, 0.0
    if seeds > 1:
        off_diagonal = float(covariance_SS.sum() - np.trace(covariance_SS))
        shared = off_diagonal / (seeds * (seeds - 1))
        seed_variance = variance_of_mean(gains_S)
    spread = Spread(
        value=value,
        seeds=seeds,
        rows=rows,
        counted=counted,
        row_variance=float(covariance_SS.mean()),
        shared_variance=shared,
        seed_variance=seed_variance,
    )
    half = spread.half_width(1 - level)
    p_value = _p_value(abs(value), spread.half_width)
    return PairedGain(value, (value - half, value + half), p_value, spread)


def verdict(gain: PairedGain, margin: float) -> Decided:
    """What the interval says of a difference of `margin`, which is in the metric's unit.

    no difference: it lies within the margin on both sides of 0, even where it excludes 0; helped,
    hurt: it lies above 0, or below; can't tell: none of these. With a margin of 0, a test of 0.
    """
    if margin < 0:
        raise ValueError(f"a margin must be >= 0, got {margin}")
    low, high = gain.interval
    if -margin <= low and high <= margin:
        return "no difference"
    if low > 0:
        return "helped"
    return "hurt" if high < 0 else "can't tell"


@dataclass(frozen=True)
class Needed:
    """How many more seeds (rows as now) or more rows (seeds as now) would decide. None: no number
    of them alone does, up to MOST_SEEDS and MOST_ROWS; of seeds also: there is only one so far,
    which says nothing of the others."""

    seeds: int | None
    rows: int | None


def what_would_decide(spread: Spread, margin: float, *, level: float = 0.95) -> Needed:
    """How many more seeds or rows would give a verdict other than "can't tell", if the gain and
    its variances stay what they are."""

    def decides(changed: Spread) -> bool:
        half = changed.half_width(1 - level)
        return half < abs(spread.value) or half <= margin - abs(spread.value)

    if decides(spread):
        return Needed(0, 0)
    seeds = None
    if spread.shared_variance is not None:
        more = range(spread.seeds + 1, MOST_SEEDS + 1)
        seeds = next((n for n in more if decides(spread.with_seeds(n))), None)
    few, many = spread.rows, MOST_ROWS
    if few >= many or not decides(spread.with_rows(many)):
        return Needed(None if seeds is None else seeds - spread.seeds, None)
    while many - few > 1:  # the half-width only falls with the rows
        middle = (few + many) // 2
        few, many = (few, middle) if decides(spread.with_rows(middle)) else (middle, many)
    return Needed(None if seeds is None else seeds - spread.seeds, many - spread.rows)


def _p_value(distance: float, half_width: Callable[[float], float]) -> float:
    """The miss probability at which the half-width equals the distance from 0."""
    if distance <= half_width(1.0):
        return 1.0
    if half_width(SMALLEST_P) <= distance:
        return SMALLEST_P

    def excess(log_p: float) -> float:
        return half_width(math.exp(log_p)) - distance

    log_p: Any = brentq(excess, math.log(SMALLEST_P), 0.0, xtol=1e-12)
    return math.exp(log_p)


@lru_cache(maxsize=4096)
def t_quantile(miss: float, freedom: int) -> float:
    """Two-sided quantile of Student's t: exceeded in size with probability `miss`."""
    return -float(stdtrit(freedom, miss / 2))


def variance_of_mean(scores_S: NDArray[np.float64]) -> float:
    """Estimated variance of the mean over seeds, rows held fixed."""
    return float(scores_S.var(ddof=1)) / len(scores_S)
