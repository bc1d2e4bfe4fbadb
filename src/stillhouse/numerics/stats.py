"""Intervals of metrics over predictions, and whether one model helped over another.

Predictions are class indices (ints), or values (floats) for regression. A model trained with
several seeds has one prediction array a seed; how sure we can be of it depends on the rows it
was measured on and on the seeds it was trained with, and both enter every interval here.

Seeds are few, so their variance is itself uncertain, and resampling them is too optimistic: with
3 seeds a bootstrap of seeds has 2/3 of the right variance and none of the tail. So rows are
bootstrapped, seeds get a Student t with S - 1 degrees of freedom, and the two half-widths are
added in quadrature (MOVER: Zou and Donner 2008). Each end of this is right (all noise in the
rows, all noise in the seeds); between them it errs on the side of "no difference".

Where hardly a row differs a bootstrap sees too little noise. Near the ends of the metric's range an
interval reaches as far as Wilson's for a share, and a gain's is never narrower than for one row.
"""

# Axes: S seeds, N rows, R resamples.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import NDArray

from stillhouse.numerics.gains import PairedGain, gain_from, t_quantile, variance_of_mean

Metric = Callable[[NDArray[Any], NDArray[Any]], float]
Predictions = Shaped[np.ndarray, "S N"] | Sequence[Shaped[np.ndarray, " N"]]


def bootstrap_interval(
    metric: Metric,
    preds: Predictions,
    gold_N: Shaped[np.ndarray, " N"],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    groups: Int[np.ndarray, " _"] | None = None,
) -> tuple[float, float]:
    """Interval of a model's metric (its mean over seeds), over rows and seeds.

    Rows: percentiles of the metric over resampled rows, the same rows for every seed. Seeds: see
    the module's docstring. With one seed the interval covers the rows only. It is cut to
    `bounds`, the metric's range; with them, it has a width even if all rows are right.
    `groups`: rows of one number belong together (the masked tokens of a text), and are drawn
    together: what is sampled are texts.
    Raises ValueError for unequal lengths, fewer than 2 rows, a level outside (0, 1), or a metric
    that is not finite.
    """
    _check(resamples, level)
    preds_SN = _stack(preds, gold_N)
    scores_S = _scores(metric, preds_SN, gold_N)
    score = float(scores_S.mean())
    members = _members(groups, gold_N)
    means_R = _resampled_scores(metric, preds_SN, gold_N, resamples, rng, members).mean(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means_R, [tail, 1 - tail])
    seeds, span = len(scores_S), bounds[1] - bounds[0]
    if math.isfinite(span):
        drawn = len(gold_N) if members is None else len(members)
        low, high = _at_least_wilson(low, high, score, bounds, drawn, 2 * tail)
    if seeds > 1:
        seed_half = t_quantile(2 * tail, seeds - 1) * math.sqrt(variance_of_mean(scores_S))
        low = score - math.hypot(max(score - low, 0.0), seed_half)
        high = score + math.hypot(max(high - score, 0.0), seed_half)
    return max(float(low), bounds[0]), min(float(high), bounds[1])


def _at_least_wilson(
    low: float, high: float, score: float, bounds: tuple[float, float], rows: int, miss: float
) -> tuple[float, float]:
    """Close to an end of the range (within five rows' worth) the bootstrap is too narrow: there
    the interval reaches as far as Wilson's for a share."""
    span = bounds[1] - bounds[0]
    share = (score - bounds[0]) / span
    if min(share, 1 - share) * rows >= 5:
        return low, high
    squared = t_quantile(miss, rows - 1) ** 2
    middle = (share + squared / (2 * rows)) / (1 + squared / rows)
    half = math.sqrt(squared * (share * (1 - share) / rows + squared / (4 * rows**2)))
    half /= 1 + squared / rows
    ends = (bounds[0] + span * (middle + sign * half) for sign in (-1, 1))
    return min(low, next(ends)), max(high, next(ends))


def paired_gain(
    metric: Metric,
    student: Predictions,
    baseline: Predictions,
    gold_N: Shaped[np.ndarray, " N"],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    groups: Int[np.ndarray, " _"] | None = None,
) -> PairedGain:
    """Mean over seeds of metric(student) - metric(baseline), its interval and two-sided p-value.

    Paired by row (both sides are resampled on the same rows) and by seed. Let D_s be seed s's
    difference and C the covariance of the D_s over resampled rows. Then

        (half-width - 1 / SN)^2 = t(S-1)^2 var(D_s) / S  +  t(N-1)^2 (mean off-diagonal of C)

    with t(f) the two-sided quantile of Student's t at f degrees of freedom. The first part holds
    the seeds and the noise of one seed on one row, the second what the seeds have in common
    on a row; any metric will do, since C is bootstrapped. The p-value is the level at which the
    interval's end reaches 0. 1 / SN is a continuity correction for classes, which are counted
    (McNemar's test has it too); it is 0 for values. Two floors: never narrower than the rows
    alone would give, and the row part never below value^2 / N (1 / N^2 for classes), so that a
    difference without any variance over a handful of rows is not certain. With one seed only the
    rows count: the claim is then about these two models, not about the recipes. With `groups` (see
    bootstrap_interval), N is how many groups there are, but for the continuity correction. Raises
    ValueError as bootstrap_interval does, and when the two sides have different numbers of seeds.
    """
    _check(resamples, level)
    student_SN, baseline_SN = _stack(student, gold_N), _stack(baseline, gold_N)
    if len(student_SN) != len(baseline_SN):
        raise ValueError(
            f"student and baseline must have the same seeds, got {len(student_SN)} and "
            f"{len(baseline_SN)}"
        )
    both_SN = np.concatenate([student_SN, baseline_SN])
    gains_S = _difference(_scores(metric, both_SN, gold_N))
    members = _members(groups, gold_N)
    gains_RS = _difference(_resampled_scores(metric, both_SN, gold_N, resamples, rng, members))
    counted = len(gold_N) if np.issubdtype(both_SN.dtype, np.integer) else 0
    drawn = len(gold_N) if members is None else len(members)
    covariance_SS = np.cov(gains_RS, rowvar=False).reshape(len(gains_S), len(gains_S))
    return gain_from(gains_S, covariance_SS, rows=drawn, counted=counted, level=level)


def _difference(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """First half minus second half of the last axis: student minus baseline, seed by seed."""
    student, baseline = np.split(scores, 2, axis=-1)
    return student - baseline


def _scores(metric: Metric, preds_SN: NDArray[Any], gold_N: NDArray[Any]) -> NDArray[np.float64]:
    scores_S = np.array([metric(pred_N, gold_N) for pred_N in preds_SN], dtype=np.float64)
    if not np.isfinite(scores_S).all():
        raise ValueError(f"the metric must be finite, got {scores_S.tolist()}")
    return scores_S


def _resampled_scores(
    metric: Metric,
    preds_SN: NDArray[Any],
    gold_N: NDArray[Any],
    resamples: int,
    rng: np.random.Generator,
    members: list[NDArray[Any]] | None,
) -> NDArray[np.float64]:
    """The metric on resampled rows (whole groups of them, where there are), R x S: within a
    resample all seeds see the same rows."""
    rows = len(gold_N)
    scores: list[NDArray[np.float64]] = []
    for _ in range(resamples):
        if members is None:
            drawn_N = rng.integers(rows, size=rows)
        else:
            drawn = rng.integers(len(members), size=len(members))
            drawn_N = np.concatenate([members[i] for i in drawn])
        scores.append(_scores(metric, preds_SN[:, drawn_N], gold_N[drawn_N]))
    return np.stack(scores)


def _members(groups: NDArray[Any] | None, gold_N: NDArray[Any]) -> list[NDArray[Any]] | None:
    """The rows of each group."""
    if groups is None:
        return None
    if len(groups) != len(gold_N):
        raise ValueError(f"each of {len(gold_N)} rows has a group, got {len(groups)}")
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _stack(preds: Predictions, gold_N: NDArray[Any]) -> NDArray[Any]:
    lengths = sorted({len(pred_N) for pred_N in preds})
    if lengths != [len(gold_N)]:
        raise ValueError(f"each seed must have {len(gold_N)} predictions, got {lengths}")
    if len(gold_N) < 2:
        raise ValueError(f"an interval needs at least 2 rows, got {len(gold_N)}")
    return np.stack(list(preds))


def _check(resamples: int, level: float) -> None:
    if resamples < 2:
        raise ValueError(f"resamples must be >= 2, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
