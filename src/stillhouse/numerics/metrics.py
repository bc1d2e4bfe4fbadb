"""Metrics over predictions: class indices (ints), or values (floats) for regression."""

# Axes: N rows, K choices, U distinct values.

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from numpy.typing import NDArray


def accuracy(pred_N: Int[np.ndarray, " N"], gold_N: Int[np.ndarray, " N"]) -> float:
    """Share of rows answered right, in [0, 1]."""
    return float(np.mean(pred_N == gold_N))


def confusion(
    pred_N: Int[np.ndarray, " N"], gold_N: Int[np.ndarray, " N"], *, classes: int
) -> Int[np.ndarray, "K K"]:
    """Counts of rows by gold class (down) and predicted class (across).

    Raises ValueError for a class outside 0 .. classes - 1.
    """
    low, high = min(pred_N.min(), gold_N.min()), max(pred_N.max(), gold_N.max())
    if low < 0 or high >= classes:
        raise ValueError(f"classes must be in 0..{classes - 1}, got {low}..{high}")
    cells_N = gold_N.astype(np.int64) * classes + pred_N
    return np.bincount(cells_N, minlength=classes * classes).reshape(classes, classes)


def macro_f1(
    pred_N: Int[np.ndarray, " N"], gold_N: Int[np.ndarray, " N"], *, classes: int
) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN), in [0, 1], as scikit-learn's f1_score.

    A class that is neither gold nor predicted in any row is left out of the mean: its F1 is 0 / 0.
    One that is never predicted, and is gold somewhere, counts as 0.
    """
    table_KK = confusion(pred_N, gold_N, classes=classes)
    seen_K = table_KK.sum(0) + table_KK.sum(1)
    present_K = seen_K > 0
    return float(np.mean(2 * np.diag(table_KK)[present_K] / seen_K[present_K]))


def per_class(
    table_KK: Int[np.ndarray, "K K"],
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """Precision, recall and F1 of each class of a confusion table, in [0, 1]. None where it is
    0 / 0: never predicted, never gold, or neither."""

    def shares(over_K: Int[np.ndarray, " K"], parts: int = 1) -> list[float | None]:
        right_K = np.diag(table_KK)
        pairs = zip(right_K.tolist(), over_K.tolist(), strict=True)
        return [parts * right / over if over else None for right, over in pairs]

    gold_K, pred_K = table_KK.sum(1), table_KK.sum(0)
    return shares(pred_K), shares(gold_K), shares(gold_K + pred_K, 2)


def matthews(
    pred_N: Int[np.ndarray, " N"], gold_N: Int[np.ndarray, " N"], *, classes: int
) -> float:
    """Correlation R_K between predicted and gold class, in [-1, 1]. Gorodkin 2004 eq. 8.

    For two classes this is the Matthews coefficient. 0 where either side is constant.
    """
    table_KK = confusion(pred_N, gold_N, classes=classes).astype(np.float64)
    gold_K, pred_K, rows = table_KK.sum(1), table_KK.sum(0), table_KK.sum()
    gold_spread, pred_spread = rows**2 - gold_K @ gold_K, rows**2 - pred_K @ pred_K
    if gold_spread == 0 or pred_spread == 0:
        return 0.0
    covariance = np.trace(table_KK) * rows - gold_K @ pred_K
    return float(covariance / math.sqrt(gold_spread) / math.sqrt(pred_spread))


def pearson(x_N: Real[np.ndarray, " N"], y_N: Real[np.ndarray, " N"]) -> float:
    """Pearson's correlation, in [-1, 1]. 0 where either side is constant; NaN stays NaN."""
    if x_N.max() == x_N.min() or y_N.max() == y_N.min():
        return 0.0
    x_N, y_N = _unit(x_N.astype(np.float64)), _unit(y_N.astype(np.float64))
    return float(np.clip(x_N @ y_N, -1.0, 1.0))  # max and min would lose a NaN


def spearman(x_N: Real[np.ndarray, " N"], y_N: Real[np.ndarray, " N"]) -> float:
    """Spearman's rank correlation, ties at their mean rank, in [-1, 1]. 0 where constant."""
    return pearson(_ranks(x_N), _ranks(y_N))


def mean_absolute_error(pred_N: Real[np.ndarray, " N"], gold_N: Real[np.ndarray, " N"]) -> float:
    """Mean size of the difference, in the values' own unit."""
    return float(np.abs(pred_N.astype(np.float64) - gold_N).mean())


def r_squared(pred_N: Real[np.ndarray, " N"], gold_N: Real[np.ndarray, " N"]) -> float:
    """The share of the gold values' variance that is explained, at most 1: 0 or less where their
    own mean would have been as near. 0 where they are constant."""
    gold_N = gold_N.astype(np.float64)
    spread = float(((gold_N - gold_N.mean()) ** 2).sum())
    return 1 - float(((pred_N - gold_N) ** 2).sum()) / spread if spread else 0.0


def calibration_error(
    probs_NK: Float[np.ndarray, "N K"], gold_N: Int[np.ndarray, " N"], *, bins: int = 15
) -> tuple[float, list[tuple[float, float, int]]]:
    """Expected calibration error in [0, 1], and its bins: (mean confidence, accuracy, count).

    Guo et al. 2017 sec. 2: |confidence - accuracy| of the top class, over bins of equal width
    closed on the right, weighted by count. Empty bins are left out of the list. Raises
    ValueError for bins < 1 or a probability outside [0, 1].
    """
    if not probs_NK.min() >= 0:
        raise ValueError(f"probabilities must be in [0, 1], got {probs_NK.min()}")
    return confidence_error(probs_NK.max(-1), probs_NK.argmax(-1) == gold_N, bins=bins)


def confidence_error(
    confidence_N: Float[np.ndarray, " N"], right_N: Bool[np.ndarray, " N"], *, bins: int = 15
) -> tuple[float, list[tuple[float, float, int]]]:
    """`calibration_error` from each row's confidence in its choice, and whether that is right."""
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")
    confidence_N = confidence_N.astype(np.float64)
    # Softmax in float32 may end a rounding above 1; NaN fails the comparison.
    if not (confidence_N.min() >= 0 and confidence_N.max() <= 1 + 1e-5):
        raise ValueError(
            f"probabilities must be in [0, 1], got {confidence_N.min()}..{confidence_N.max()}"
        )
    edges = np.arange(1, bins) / bins
    bin_N: NDArray[np.intp] = np.searchsorted(edges, confidence_N, side="left")
    table: list[tuple[float, float, int]] = []
    for index in np.unique(bin_N):
        inside_N = bin_N == index
        table.append(
            (
                float(confidence_N[inside_N].mean()),
                float(right_N[inside_N].mean()),
                int(inside_N.sum()),
            )
        )
    gaps = [count * abs(confidence - right) for confidence, right, count in table]
    return math.fsum(gaps) / len(right_N), table


def _ranks(x_N: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 1, ties at their mean: scipy's rankdata, without its overhead on short rows."""
    _, which_N, count_U = np.unique(x_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count_U) - (count_U - 1) / 2)[which_N]


def _unit(x_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """x minus its mean, at length 1. Scaled by its largest entry first, against underflow."""
    x_N = x_N - x_N.mean()
    x_N = x_N / np.abs(x_N).max()
    return x_N / np.linalg.norm(x_N)
