"""Regression: values, and NaN where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.errors import DataError
from stillhouse.tasks.regression import Regression


def test_gold_is_the_number_and_nan_where_there_is_none() -> None:
    task = Regression()
    gold_N = task.gold(np.array(["2.5", None, "-1"], dtype=object))
    assert gold_N[[0, 2]].tolist() == [2.5, -1.0]
    assert task.has_gold(gold_N).tolist() == [True, False, True]


def test_words_are_no_values() -> None:
    with pytest.raises(DataError, match="are numbers, got 'good'"):
        Regression().gold(np.array(["good"], dtype=object))


def test_scores_by_hand() -> None:
    task = Regression("spearman")
    found = task.predictions(
        np.array([[1.0], [2.0], [9.0]], np.float32), tiny.answered(torch.tensor([0.0, 1.0, 2.0]))
    )
    assert found.probabilities_NK is None
    scores = task.score(found)
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(np.corrcoef([1, 2, 9], [0, 1, 2])[0, 1])
    assert scores["mae"] == pytest.approx(3.0)  # 1, 1 and 7
    assert scores["r_squared"] == pytest.approx(1 - 51 / 2)
    assert task.metric == "spearman"
    assert task.show(1.234) == "1.23"
