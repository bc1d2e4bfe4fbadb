# N rows, K choices.

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from stillhouse.numerics.metrics import (
    accuracy,
    calibration_error,
    confusion,
    macro_f1,
    matthews,
    mean_absolute_error,
    pearson,
    r_squared,
    spearman,
)

GOLD = np.array([0, 0, 0, 1, 1, 2])
PRED = np.array([0, 0, 1, 1, 2, 2])


def test_metrics_by_hand():
    assert accuracy(PRED, GOLD) == 4 / 6
    assert confusion(PRED, GOLD, classes=3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    # F1 of the classes: 4/5, 2/4, 2/3
    assert macro_f1(PRED, GOLD, classes=3) == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    # (4 * 6 - (2*3 + 2*2 + 2*1)) / sqrt((36 - 12) (36 - 14))
    assert matthews(PRED, GOLD, classes=3) == pytest.approx(12 / math.sqrt(24 * 22))
    # deviations (-1, 0, 1) and (-1, 1, 0)
    assert pearson(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(0.5)
    # ranks (1, 2, 3, 4) and (1, 3, 2, 4): 1 - 6 * 2 / (4 * 15)
    assert spearman(np.array([1, 2, 3, 9]), np.array([0, 5, 4, 6])) == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(5))
def test_classification_metrics_agree_with_sklearn(seed):
    gold_N, noise_N = np.random.default_rng(seed).integers(0, 4, (2, 60))
    pred_N = np.where(np.random.default_rng(seed + 9).random(60) < 0.5, gold_N, noise_N)
    assert accuracy(pred_N, gold_N) == sklearn.metrics.accuracy_score(gold_N, pred_N)
    expected = sklearn.metrics.f1_score(gold_N, pred_N, average="macro")
    assert macro_f1(pred_N, gold_N, classes=4) == pytest.approx(expected)
    expected = sklearn.metrics.matthews_corrcoef(gold_N, pred_N)
    assert matthews(pred_N, gold_N, classes=4) == pytest.approx(expected)
    expected = sklearn.metrics.confusion_matrix(gold_N, pred_N, labels=range(4))
    assert confusion(pred_N, gold_N, classes=4).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_correlations_agree_with_scipy(seed):
    x_N, noise_N = np.random.default_rng(seed).normal(size=(2, 50))
    y_N = np.round(x_N + noise_N)  # with ties
    assert pearson(x_N, y_N) == pytest.approx(scipy.stats.pearsonr(x_N, y_N).statistic)
    assert spearman(x_N, y_N) == pytest.approx(scipy.stats.spearmanr(x_N, y_N).statistic)


def test_perfect_and_inverted_predictions_meet_the_ends():
    x_N = np.random.default_rng(0).normal(size=20)
    flipped_N = 1 - GOLD % 2
    for metric in (pearson, spearman):
        assert metric(x_N, x_N) == pytest.approx(1)
        assert metric(x_N, -x_N) == pytest.approx(-1)
        assert metric(x_N, 1e-200 * x_N) == pytest.approx(1)  # squares would underflow
    for metric in (partial(macro_f1, classes=3), partial(matthews, classes=3), accuracy):
        assert metric(GOLD, GOLD) == pytest.approx(1)
    assert matthews(flipped_N, GOLD % 2, classes=2) == pytest.approx(-1)


def test_constant_input_scores_zero():
    constant_N, varied_N = np.full(6, 0.1), np.arange(6) / 3
    for metric in (pearson, spearman):
        assert metric(constant_N, varied_N) == 0
        assert metric(varied_N, constant_N) == 0
    assert matthews(np.zeros(6, int), GOLD, classes=3) == 0
    assert matthews(GOLD, np.zeros(6, int), classes=3) == 0


def test_macro_f1_leaves_out_a_class_that_no_row_has():
    assert macro_f1(PRED, GOLD, classes=9) == macro_f1(PRED, GOLD, classes=3)


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_class_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match=r"classes must be in 0..2, got"):
        macro_f1(np.where(PRED == 2, bad, PRED), GOLD, classes=3)


# --- calibration ------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    probs_NK = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]])
    error, table = calibration_error(probs_NK, np.array([0, 1, 1, 0]), bins=2)
    # all in (0.5, 1]: confidence 2.95 / 4, accuracy 1/2
    assert table == [(pytest.approx(2.95 / 4), 0.5, 4)]
    assert error == pytest.approx(2.95 / 4 - 0.5)
    error, table = calibration_error(probs_NK, np.array([0, 1, 1, 0]), bins=4)
    # (0.5, 0.75] holds 0.7 right and 0.55 wrong, (0.75, 1] holds 0.9 right and 0.8 wrong
    assert table == [(pytest.approx(0.625), 0.5, 2), (pytest.approx(0.85), 0.5, 2)]
    assert error == pytest.approx((0.125 + 0.35) / 2)


def test_calibration_error_agrees_with_a_loop():
    probs_NK = np.random.default_rng(0).dirichlet(np.full(4, 0.5), size=300)
    probs_NK[0] = [1.0, 0.0, 0.0, 0.0]
    gold_N = np.random.default_rng(1).integers(0, 4, 300)
    error, table = calibration_error(probs_NK, gold_N)
    expected, found = 0.0, []
    for index in range(15):
        rows = [n for n in range(300) if index / 15 < max(probs_NK[n]) <= (index + 1) / 15]
        if rows:
            confidence = sum(max(probs_NK[n]) for n in rows) / len(rows)
            right = sum(int(np.argmax(probs_NK[n]) == gold_N[n]) for n in rows) / len(rows)
            expected += len(rows) / 300 * abs(confidence - right)
            found.append((pytest.approx(confidence), pytest.approx(right), len(rows)))
    assert error == pytest.approx(expected)
    assert table == found
    assert sum(count for _, _, count in table) == 300


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probs_NK = np.array([[0.75, 0.25], [0.6, 0.4], [0.5, 0.5]])
    _, table = calibration_error(probs_NK, np.array([0, 0, 0]), bins=4)
    assert [count for _, _, count in table] == [1, 2]


def test_certain_and_right_is_calibrated():
    assert calibration_error(np.eye(3), np.arange(3)) == (0.0, [(1.0, 1.0, 3)])


@pytest.mark.parametrize("bad", [1.5, -0.5, math.nan])
def test_calibration_error_refuses_what_is_no_probability(bad):
    with pytest.raises(ValueError, match="probabilities must be in"):
        calibration_error(np.array([[bad, 0.5], [0.5, 0.5]]), np.array([0, 0]))


def test_calibration_error_needs_a_bin():
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        calibration_error(np.eye(2), np.arange(2), bins=0)


def test_the_mean_explains_nothing_and_the_values_all():
    gold_N = np.array([1.0, 2.0, 6.0])
    assert r_squared(gold_N, gold_N) == 1
    assert r_squared(np.full(3, 3.0), gold_N) == pytest.approx(0)
    assert r_squared(gold_N[::-1], gold_N) < 0
    assert r_squared(gold_N, np.ones(3)) == 0
    assert mean_absolute_error(np.array([1.0, 4.0, 5.0]), gold_N) == 1
