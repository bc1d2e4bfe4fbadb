"""Single-text and text-pair classification. N = batch, K = classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from stillhouse.core.errors import DataError
from stillhouse.core.types import NO_LABEL, Predictions
from stillhouse.data.cells import fold_label
from stillhouse.numerics import metrics
from stillhouse.tasks.base import Data


def match_labels(teacher: list[str], data: set[str], label_map: dict[str, str]) -> list[str]:
    """The teacher's labels, in its order, by the names the data uses.

    Names are matched (`label_map` renames the teacher's; case, white space, Unicode form and a
    whole number that is a float are forgiven), positions never.
    Raises DataError where the data has a label that the teacher doesn't know.
    """
    unknown_names = sorted(set(label_map) - set(teacher))
    if unknown_names:
        raise DataError(
            f"data.label_map names {', '.join(unknown_names)}, which the teacher has not; "
            f"it has {', '.join(teacher)}"
        )
    renamed = [label_map.get(name, name) for name in teacher]
    own = {fold_label(name) for name in renamed if name in data}
    folded = {fold_label(name): name for name in data if fold_label(name) not in own}
    matched = [name if name in data else folded.get(fold_label(name), name) for name in renamed]
    if len(set(matched)) != len(matched):
        raise DataError(f"two of the teacher's labels come to the same name: {', '.join(matched)}")
    strange = sorted(data - set(matched))
    if strange:
        example = ",".join(f"{t}=..." for t in teacher[:3])
        raise DataError(
            f"the data has labels the teacher doesn't know: {', '.join(strange[:8])}; it knows "
            f"{', '.join(teacher[:12])}: map them with --label-map {example}"
        )
    return matched


class Classification:
    name = "classification"
    judges_texts = False

    def __init__(self, choices: list[str], metric: str | None = None) -> None:
        self.choices, self.width = choices, len(choices)
        self.metric = metric or "accuracy"
        self._metrics = {
            "accuracy": lambda a, g: metrics.accuracy(a, g),
            "macro_f1": lambda a, g: metrics.macro_f1(a, g, classes=len(choices)),
            "matthews": lambda a, g: metrics.matthews(a, g, classes=len(choices)),
        }

    def gold(self, labels: np.ndarray) -> Tensor:
        index: dict[Any, int] = {name: i for i, name in enumerate(self.choices)}
        index[None] = NO_LABEL
        return torch.tensor([index[label] for label in labels], dtype=torch.long)

    def has_gold(self, gold_N: Tensor) -> Tensor:
        return gold_N != NO_LABEL

    def reduce(self, scores_NK: Tensor, gold_N: Tensor) -> Tensor:
        return scores_NK

    def predictions(self, scores_NK: np.ndarray, data: Data) -> Predictions:
        return Predictions(scores_NK.argmax(-1), softmax(scores_NK, -1), data.gold_N.numpy())

    def metric_of(self, answers_N: np.ndarray, gold_N: np.ndarray, name: str) -> float:
        return float(self._metrics[name](answers_N, gold_N))

    def score(self, predictions: Predictions) -> dict[str, float]:
        return {
            name: self.metric_of(predictions.answers_N, predictions.gold_N, name)
            for name in self._metrics
        }

    def agreement(self, mine_N: np.ndarray, theirs_N: np.ndarray) -> float:
        return float((mine_N == theirs_N).mean())

    def show(self, answer: Any) -> str:
        return self.choices[int(answer)]
