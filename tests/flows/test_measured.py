"""Scores over seeds, as they stand in a record."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.results import Efficiency
from stillhouse.core.types import Example, Predictions
from stillhouse.flows.distill import Outcome
from stillhouse.flows.measured import disagreements, measured_over_seeds
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


class Reported(list[Example]):
    """Rows by position, as a pool gives them."""

    def at(self, positions: np.ndarray) -> list[Example]:
        return [self[i] for i in positions.tolist()]


def test_the_rows_shown_are_those_that_the_teacher_was_surest_of() -> None:
    """None on which both agree, however sure; the surest first."""
    outcome = object.__new__(Outcome)
    rows = Reported(Example(text) for text in ("agreed", "unsure", "sure", "between"))
    outcome.setup = SimpleNamespace(splits=SimpleNamespace(reported=rows), writes=False)  # pyright: ignore
    teacher_NK = np.array([[0.99, 0.01], [0.6, 0.4], [0.05, 0.95], [0.8, 0.2]], np.float32)
    student_NK = np.array([[0.9, 0.1], [0.1, 0.9], [0.7, 0.3], [0.4, 0.6]], np.float32)
    gold_N = np.zeros(4, np.int64)
    teacher, student = (
        Predictions(shares_NK.argmax(-1), shares_NK, gold_N)
        for shares_NK in (teacher_NK, student_NK)
    )
    found = disagreements(outcome, Classification(["a", "b"], None), teacher, student)
    assert [each.text for each in found] == ["sure", "between", "unsure"]
    assert [each.teacher for each in found] == ["b", "a", "a"]
    assert [each.teacher_confidence for each in found] == pytest.approx([0.95, 0.8, 0.6])
