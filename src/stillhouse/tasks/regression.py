"""Regression, such as STS-B's similarity of two texts. N = batch, K = 1: the value itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.core.errors import DataError
from stillhouse.core.types import Predictions
from stillhouse.data.cells import has_decimal_comma
from stillhouse.numerics import metrics
from stillhouse.tasks.base import Data


class Regression:
    name = "regression"
    judges_texts = False

    def __init__(self, metric: str | None = None) -> None:
        self.choices, self.width = ["value"], 1
        self.metric = metric or "pearson"
        self._metrics = {"pearson": metrics.pearson, "spearman": metrics.spearman}
        self._told = {"mae": metrics.mean_absolute_error, "r_squared": metrics.r_squared}

    def gold(self, labels: np.ndarray) -> Tensor:
        values = np.full(len(labels), np.nan, dtype=np.float32)
        for i, label in enumerate(labels):
            if label is None:
                continue
            try:
                values[i] = float(label)
            except ValueError:
                hint = ": write its decimals behind a point" if has_decimal_comma(label) else ""
                raise DataError(f"a regression's labels are numbers, got {label!r}{hint}") from None
            if not np.isfinite(values[i]):
                raise DataError(f"a regression's labels are finite numbers, got {label!r}")
        return torch.from_numpy(values)

    def has_gold(self, gold_N: Tensor) -> Tensor:
        return ~torch.isnan(gold_N)

    def reduce(self, scores_NK: Tensor, gold_N: Tensor) -> Tensor:
        return scores_NK

    def predictions(self, scores_NK: np.ndarray, data: Data) -> Predictions:
        return Predictions(scores_NK[:, 0], None, data.gold_N.numpy())

    def metric_of(self, answers_N: np.ndarray, gold_N: np.ndarray, name: str) -> float:
        return float(self._metrics[name](answers_N, gold_N))

    def score(self, predictions: Predictions) -> dict[str, float]:
        """Correlations, which say nothing of a value's size, and what does: `mae`, `r_squared`."""
        answers_N, gold_N = predictions.answers_N, predictions.gold_N
        every = {**self._metrics, **self._told}
        return {name: float(metric(answers_N, gold_N)) for name, metric in every.items()}

    def agreement(self, mine_N: np.ndarray, theirs_N: np.ndarray) -> float:
        return metrics.pearson(mine_N, theirs_N)

    def show(self, answer: Any) -> str:
        return f"{answer:.2f}"
