"""Kept distributions are compared with the teacher that is asked: another one's are refused.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.core.errors import RunError
from stillhouse.core.types import Batch
from stillhouse.signals.distribution_check import check_distributions
from stillhouse.signals.distributions import DistributionCache

K, EXAMPLES, TOKENS = 300, 12, 10
KEYS_N2 = np.arange(2 * EXAMPLES, dtype=np.uint64).reshape(-1, 2)
FORMS = [(6, 0), (0, 25), (4, 12)]


def scores(example: int, *, shift: float = 0.0, temperature: float = 1.0) -> Tensor:
    made = torch.Generator().manual_seed(example)
    scores_NK = 2 * torch.randn(TOKENS, K, generator=made)
    return (scores_NK + shift * torch.randn(TOKENS, K, generator=made)) / temperature


class Rows:
    keys_N2 = KEYS_N2

    def batch(self, rows: np.ndarray) -> Batch:
        return Batch({}, rows, scored_N=torch.arange(TOKENS * len(rows)))


def checked(root: Path, top: int, drawn: int, *, softened: float = 1.0, **changes: float) -> str:
    """By a teacher that differs by so much, of distributions at the temperature `softened`."""

    form: dict[str, int] = {"choices": K, "top": top, "drawn": drawn}
    cache = DistributionCache(root, {"teacher": "t"}, **form, temperature=softened)
    with cache.writing() as writer:
        for row in range(EXAMPLES):
            record = cache.record(scores(row), KEYS_N2[row])
            writer.append(KEYS_N2[row : row + 1], [record])

    def asked(batch: Batch) -> Tensor:
        return torch.cat([scores(int(row), **changes) for row in batch.rows])

    parts = np.array_split(np.arange(EXAMPLES), 3)
    return check_distributions(asked, cache, Rows(), parts, tolerance=2e-3)


@pytest.mark.parametrize("softened", [1.0, 2.0])
@pytest.mark.parametrize(("top", "drawn"), FORMS)
def test_the_teachers_own_are_found_to_be_so(
    tmp_path: Path, top: int, drawn: int, softened: float
) -> None:
    said = checked(tmp_path, top, drawn, softened=softened)
    assert ("within 0.0000" in said) == bool(top)
    assert ("draws as likely" in said) == bool(drawn)


@pytest.mark.parametrize("changes", [{"shift": 1.0}, {"temperature": 0.7}, {"temperature": 1.5}])
@pytest.mark.parametrize(("top", "drawn"), FORMS)
def test_another_teachers_are_refused(
    tmp_path: Path, top: int, drawn: int, changes: dict[str, float]
) -> None:
    with pytest.raises(RunError, match=r"not this teacher's: .*give another --cache"):
        checked(tmp_path, top, drawn, **changes)


def test_draws_are_compared_where_nothing_else_is_kept(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"drawn choices are off by \d\.\d\d nats"):
        checked(tmp_path, 0, 25, shift=1.0)


def test_a_little_noise_is_no_other_teacher(tmp_path: Path) -> None:
    assert "draws" in checked(tmp_path, 0, 25, shift=0.02), "as of lower precision"


def test_a_teacher_without_an_answer_is_no_agreement(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="scores are not finite"):
        checked(tmp_path, 6, 0, shift=math.nan)
