"""Rows: KL divided by the number of classes; a generalised JSD that jumps at its end points.

Axes: N rows, K choices.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.training.objective import build


def value(config: TermConfig, student: list[float], teacher: list[float], copies: int = 1) -> float:
    """The term's mean over `copies` equal rows."""
    (term,) = build([config], choices=len(student), signal=Dense, has_gold=True).terms
    mine, theirs = (torch.tensor([p]).log().repeat(copies, 1) for p in (student, teacher))
    batch = Batch({}, np.arange(copies), torch.zeros(copies, dtype=torch.long))
    found = term(StudentOutput(mine), Dense(theirs), batch, 0.0)
    return float(found.sum / found.count)


KNOWN = {
    "forward_kl": (tiny.soft(), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
    "reverse_kl": (tiny.soft("reverse_kl"), 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)),
    "total_variation": (tiny.soft("total_variation"), 0.25),
    "gold": (TermConfig(kind="gold"), math.log(4)),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("copies", [1, 7])
def test_values_by_hand(name: str, copies: int) -> None:
    config, expected = KNOWN[name]
    assert value(config, [0.25, 0.75], [0.5, 0.5], copies) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 4, 16])
def test_kl_is_not_divided_by_the_number_of_classes(classes: int) -> None:
    """The same two-way question spread evenly over more classes has the same divergence."""
    half = classes // 2
    student = [0.25 / half] * half + [0.75 / half] * half
    teacher = [0.5 / half] * (2 * half)
    expected = KNOWN["forward_kl"][1]
    assert value(tiny.soft(), student, teacher) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("beta", "limit"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_the_generalised_jsd_meets_its_limits(beta: float, limit: str) -> None:
    student, teacher = [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]
    expected = value(tiny.soft(limit), student, teacher)
    near = abs(beta - 1e-4)
    assert value(tiny.soft("jsd", beta=beta), student, teacher) == pytest.approx(expected)
    assert value(tiny.soft("jsd", beta=near), student, teacher) == pytest.approx(expected, rel=1e-3)


def test_the_skewed_kl_meets_its_limit() -> None:
    student, teacher = [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]
    near = value(tiny.soft("skew_kl", alpha=1e-4), student, teacher)
    assert near == pytest.approx(value(tiny.soft(), student, teacher), rel=1e-3)
