"""Row: one weighted term got zero gradient. Each term alone moves the student, its gradient is the
derivative of its value, and the gradients of the parts add up to the whole.

Axes: N rows, K choices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.training.objective import build
from stillhouse.training.steps import plain_step

TERMS = {
    **{name: tiny.soft(name, weight=0.1 * (i + 1)) for i, name in enumerate(tiny.DIVERGENCES)},
    "warm": tiny.soft(temperature=3.0, weight=0.5),
    "standardised": tiny.soft(standardise=True, weight=0.5),
    "hard": TermConfig(kind="hard", weight=0.6),
    "gold": TermConfig(kind="gold", weight=0.4),
}
DATA = tiny.vectors(20, unlabelled=[3, 4])
TEACHER = tiny.Fixed(2 * torch.randn(20, 3, generator=torch.Generator().manual_seed(1)))


def gradient(terms: list[TermConfig]) -> tuple[Tensor, dict[str, float]]:
    model = tiny.Line(5, 3)
    rows = [np.arange(12), np.arange(12, 20)]
    stats = plain_step(
        model,
        [DATA.batch(r) for r in rows],
        build(terms, choices=3, signal=Dense, has_gold=True),
        TEACHER,
        tiny.line_forward,
        progress=0.3,
        rngs=[np.random.default_rng(0)] * 2,
        totals={"examples": 20, "scored": 20},
        norms=True,
    )
    assert model.weight.grad is not None
    return model.weight.grad, {name: float(norm) for name, norm in stats.gradient_norms.items()}


@pytest.mark.parametrize("name", TERMS)
def test_each_term_alone_moves_the_student(name: str) -> None:
    found, _ = gradient([TERMS[name]])
    assert found.norm() > 1e-3


@pytest.mark.parametrize("name", TERMS)
def test_each_terms_gradient_is_that_of_its_value(name: str) -> None:
    (term,) = build([TERMS[name]], choices=3, signal=Dense, has_gold=True).terms
    rows = np.arange(6)
    batch = Batch({}, rows, DATA.gold_N[:6])
    theirs = Dense(TEACHER.scores_NK[:6])
    scores_NK = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def value(mine_NK: Tensor) -> Tensor:
        return term(StudentOutput(mine_NK), theirs, batch, 0.0).sum

    assert torch.autograd.gradcheck(value, scores_NK.requires_grad_(True))


def test_the_parts_add_up_to_the_whole() -> None:
    together, norms = gradient(list(TERMS.values()))
    parts = [gradient([config])[0] for config in TERMS.values()]
    torch.testing.assert_close(torch.stack(parts).sum(0), together)
    assert list(norms.values()) == pytest.approx([float(p.norm()) for p in parts], rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 2.0])
def test_a_weight_is_a_factor(share: float) -> None:
    def weighted(weight: float) -> Tensor:
        config: dict[str, Any] = {"weight": weight, "temperature": 2.0}
        return gradient([tiny.soft(**config), TermConfig(kind="gold", weight=0.0)])[0]

    torch.testing.assert_close(weighted(share), share * weighted(1.0))
