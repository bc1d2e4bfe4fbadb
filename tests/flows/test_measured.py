"""Scores over seeds, as they stand in a record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.results import Efficiency
from stillhouse.flows.measured import measured_over_seeds
from stillhouse.flows.stages import Trained
from stillhouse.tasks.classification import Classification
from stillhouse.training.loop import FitResult

GOLD_N = torch.tensor([0, 1] * 10)


def trained(seed: int, wrong: int) -> Trained:
    answers_N = GOLD_N.numpy().copy()
    answers_N[:wrong] = 1 - answers_N[:wrong]
    fit = FitResult(steps=9, best_step=9, score=0.5, examples=9, seconds=1.0, warnings=[])
    return Trained("student", seed, [fit], np.eye(2, dtype=np.float32)[answers_N], Path("none"))


def test_retention_is_of_the_mean_over_seeds_not_of_the_seed_that_is_shipped() -> None:
    runs = [trained(0, 10), trained(1, 2)]  # 0.5 and 0.9
    found = measured_over_seeds(
        "student", Classification(["a", "b"], None), runs, runs[1],
        Efficiency(parameters=1, bytes=1), None, 0.8, tiny.answered(GOLD_N), resamples=20,
    )  # fmt: skip
    assert (found.score, found.shipped_score, found.shipped_seed) == (pytest.approx(0.7), 0.9, 1)
    assert found.retention == pytest.approx(0.7 / 0.8)
    assert found.seeds == [0.5, 0.9]
