"""A model's answers to a split, in the split's order, and what they are worth.

Axes: N rows, K choices.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

import tiny
from stillhouse.core.types import Predictions
from stillhouse.evaluation.evaluate import calibration, confusion, interval, predict, score_rows
from stillhouse.tasks.base import Dataset
from stillhouse.tasks.classification import Classification
from stillhouse.tasks.regression import Regression

TASK = Classification(tiny.SENTIMENT)


class Texts:
    """Texts as inputs."""

    def __init__(self) -> None:
        self.texts = [text for text, _ in tiny.sentences(40)]
        self.lengths = np.array([len(ids) for ids in tiny.tokenizer()(self.texts)["input_ids"]])

    def inputs(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        asked = [self.texts[i] for i in rows]
        return dict(tiny.tokenizer()(asked, padding=True, return_tensors="pt"))


def data() -> Dataset:
    return Dataset(Texts(), np.zeros((40, 2), "<u8"), torch.arange(40) % 2)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("size", "tokens"), [(64, 16_384), (7, 16_384), (64, 30)])
def test_answers_come_in_the_datas_order_whatever_the_batches(
    fast: bool, size: int, tokens: int
) -> None:
    rows, model = data(), tiny.model(dropout=0.5).train()
    with torch.no_grad():
        own = [tiny.model()(**rows.batch(np.array([i])).inputs).logits[0] for i in range(40)]
    found_NK = score_rows(model, rows, fast=fast, size=size, max_tokens=tokens)
    assert found_NK.dtype == np.float32
    np.testing.assert_allclose(found_NK, torch.stack(own).numpy(), atol=1e-5)
    assert model.training, "the model's mode is put back"


def test_a_prediction_knows_its_gold() -> None:
    rows = data()
    found = predict(tiny.model(), rows, TASK)
    assert (found.gold_N == rows.gold_N.numpy()).all()
    accuracy = (found.answers_N == found.gold_N).mean()
    assert TASK.score(found)["accuracy"] == pytest.approx(accuracy)


def test_confusion_counts_gold_by_answer() -> None:
    probabilities_NK = np.full((4, 2), 0.5)
    found = Predictions(np.array([0, 1, 1, 1]), probabilities_NK, np.array([0, 0, 1, 1]))
    assert confusion(found, TASK) == [[1, 1], [0, 2]]
    assert confusion(Predictions(np.ones(2), None, np.ones(2)), Regression()) is None


def test_calibration_by_hand() -> None:
    """Four answers at 0.75, three of them right: none; four at 0.95, two of them right: 0.45."""
    probabilities_NK = np.array([[0.75, 0.25]] * 4 + [[0.95, 0.05]] * 4)
    gold_N = np.array([0, 0, 0, 1, 0, 0, 1, 1])
    error, bins = calibration(Predictions(probabilities_NK.argmax(-1), probabilities_NK, gold_N))
    assert error == pytest.approx(0.5 * 0.45)
    assert sum(b.count for b in bins) == 8
    assert calibration(Predictions(np.ones(2), None, np.ones(2))) == (None, [])


def test_an_interval_holds_the_metric_and_is_wider_with_fewer_rows() -> None:
    rng = np.random.default_rng(0)
    gold_N = rng.integers(2, size=400)
    seeds = [np.where(rng.random(400) < 0.8, gold_N, 1 - gold_N) for _ in range(3)]
    low, high = interval(TASK, seeds, gold_N, resamples=300, rng=np.random.default_rng(1))
    assert low < 0.8 < high
    assert low >= 0
    assert high <= 1
    few = interval(
        TASK, [s[:40] for s in seeds], gold_N[:40], resamples=300, rng=np.random.default_rng(1)
    )
    assert few[1] - few[0] > high - low


def test_the_models_own_forward_is_what_is_evaluated() -> None:
    """Not the fast path, unless it is asked for."""

    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.calls = 0

        def forward(self, **inputs: torch.Tensor) -> SequenceClassifierOutput:
            self.calls += 1
            return SequenceClassifierOutput(logits=torch.zeros(len(inputs["input_ids"]), 2))

    model = Loud()
    score_rows(model, data(), size=40)
    assert model.calls == 1
