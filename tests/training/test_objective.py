"""Terms: schedules, which rows count, what is refused before anything is trained.

Axes: N rows, K choices.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from stillhouse.core.errors import UsageError
from stillhouse.core.terms import Schedule, TermConfig
from stillhouse.core.types import Batch, Dense, Labels, StudentOutput
from stillhouse.numerics.divergences import forward_kl
from stillhouse.training.objective import Objective, at, build


def random(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def batch(gold_N: Tensor) -> Batch:
    return Batch({}, torch.arange(len(gold_N)).numpy(), gold_N)


def one(config: TermConfig, *, choices: int = 3, **options: Any) -> Objective:
    return build([config], choices=choices, **{"signal": Dense, "has_gold": True, **options})


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("constant", [4.0, 4.0, 4.0]),
        ("linear", [4.0, 3.0, 1.0]),
        ("cosine", [4.0, 4.0 - 3 * (1 - math.cos(math.pi / 3)) / 2, 1.0]),
    ],
)
def test_schedules_by_hand(shape: Any, values: list[float]) -> None:
    schedule = Schedule(shape=shape, start=4.0, end=1.0)
    assert [at(schedule, p) for p in (0.0, 1 / 3, 1.0)] == pytest.approx(values)
    assert at(schedule, -1.0) == 4.0
    assert at(schedule, 2.0) == at(schedule, 1.0)


def test_a_gold_term_counts_every_row_and_sums_the_labelled_ones() -> None:
    scores_NK, gold_N = random(4, 3, 0), torch.tensor([2, -100, 0, -100])
    (term,) = one(TermConfig(kind="gold")).terms
    found = term(StudentOutput(scores_NK), None, batch(gold_N), 0.0)
    expected = torch.nn.functional.cross_entropy(scores_NK[[0, 2]], gold_N[[0, 2]], reduction="sum")
    assert found.count == 4
    torch.testing.assert_close(found.sum, expected)


def test_a_gold_value_counts_likewise() -> None:
    scores_N1, gold_N = random(3, 1, 0), torch.tensor([1.0, math.nan, 2.0])
    scores_N1.requires_grad_(True)
    (term,) = one(TermConfig(kind="gold"), choices=1).terms
    found = term(StudentOutput(scores_N1), None, batch(gold_N), 0.0)
    torch.testing.assert_close(found.sum, ((scores_N1[[0, 2], 0] - gold_N[[0, 2]]) ** 2).sum())
    found.sum.backward()
    assert torch.isfinite(scores_N1.grad).all()
    assert scores_N1.grad[1] == 0


def test_a_hard_term_is_the_cross_entropy_with_the_teachers_choice() -> None:
    scores_NK, theirs_NK = random(5, 3, 0), random(5, 3, 1)
    expected = torch.nn.functional.cross_entropy(scores_NK, theirs_NK.argmax(-1), reduction="sum")
    none = batch(torch.full((5,), -100))
    for signal in (Dense(theirs_NK), Labels(theirs_NK.argmax(-1))):
        (term,) = one(TermConfig(kind="hard"), signal=type(signal)).terms
        torch.testing.assert_close(term(StudentOutput(scores_NK), signal, none, 0.0).sum, expected)


def test_temperature_softens_both_sides_and_its_square_is_a_factor() -> None:
    scores_NK, theirs_NK = random(5, 3, 0), random(5, 3, 1)
    p, logq = (theirs_NK / 3).softmax(-1), (scores_NK / 3).log_softmax(-1)
    expected = (p * (p.log() - logq)).sum()
    for squared, factor in ((True, 9.0), (False, 1.0)):
        config = tiny.soft(temperature=3.0, squared_temperature=squared)
        (term,) = one(config).terms
        found = term(StudentOutput(scores_NK), Dense(theirs_NK), batch(torch.zeros(5)), 0.0)
        torch.testing.assert_close(found.sum, expected * factor)


@pytest.mark.parametrize("divergence", tiny.DIVERGENCES)
def test_a_high_temperature_does_not_change_the_gradients_scale(divergence: str) -> None:
    """T^2 makes up for what a divergence loses by softening; T does for total variation."""
    norms = []
    for temperature in (40.0, 80.0):
        scores_NK, theirs_NK = random(5, 3, 0).requires_grad_(), random(5, 3, 1)
        (term,) = one(tiny.soft(divergence, temperature=temperature)).terms
        found = term(StudentOutput(scores_NK), Dense(theirs_NK), batch(torch.zeros(5).long()), 0.0)
        norms.append(float(torch.autograd.grad(found.sum, scores_NK)[0].norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_a_temperature_may_move() -> None:
    config = tiny.soft(temperature={"shape": "linear", "start": 4.0, "end": 2.0})
    (term,) = one(config).terms
    (fixed,) = one(tiny.soft(temperature=3.0)).terms
    given = (StudentOutput(random(5, 3, 0)), Dense(random(5, 3, 1)), batch(torch.zeros(5)))
    assert term(*given, 0.5).sum == fixed(*given, 0.0).sum
    assert term(*given, 0.6).sum != fixed(*given, 0.0).sum


def test_standardised_scores_ignore_shift_and_scale() -> None:
    (term,) = one(tiny.soft(standardise=True)).terms
    scores_NK, theirs_NK = random(5, 3, 0), random(5, 3, 1)
    given = batch(torch.zeros(5))
    plain = term(StudentOutput(scores_NK), Dense(theirs_NK), given, 0.0).sum
    moved = term(StudentOutput(7 * scores_NK + 2), Dense(theirs_NK / 5 - 1), given, 0.0).sum
    torch.testing.assert_close(moved, plain)
    assert plain > 0.1


def test_decoupled_takes_the_gold_target_and_else_the_teachers() -> None:
    scores_NK, theirs_NK = random(4, 3, 0), random(4, 3, 1)
    choice_N = theirs_NK.argmax(-1)
    gold_N = (choice_N + 1) % 3
    mixed_N = torch.where(torch.tensor([True, False, True, False]), gold_N, -100)
    expected_N = torch.where(mixed_N == -100, choice_N, gold_N)
    (term,) = one(tiny.soft("decoupled")).terms

    def value(target_N: Tensor) -> Tensor:
        return term(StudentOutput(scores_NK), Dense(theirs_NK), batch(target_N), 0.0).sum

    assert value(mixed_N) == value(expected_N)
    assert value(mixed_N) != value(choice_N)


def test_terms_of_one_kind_get_names_of_their_own() -> None:
    kinds = [tiny.soft(), TermConfig(kind="gold"), tiny.soft("reverse_kl"), tiny.soft("logit_mse")]
    found = build(kinds, choices=3, signal=Dense, has_gold=True)
    assert [term.name for term in found.terms] == ["soft", "gold", "soft-2", "soft-3"]
    assert found.needs_teacher
    assert not one(TermConfig(kind="gold")).needs_teacher


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (TermConfig(kind="soft", divergence="fowrard_kl"), {}, "did you mean 'forward_kl'"),
        (TermConfig(kind="soft", divergence="jsd"), {}, "jsd needs beta"),
        (TermConfig(kind="soft", divergence="skew_kl"), {}, "skew_kl needs alpha"),
        (TermConfig(kind="soft", beta=0.5), {}, "forward_kl takes no beta"),
        (TermConfig(kind="soft", divergence="jsd", beta=0.5, alpha=0.1), {}, "takes no alpha"),
        (TermConfig(kind="soft", divergence="jsd", beta=1.5), {}, "beta must be in"),
        (TermConfig(kind="soft", divergence="skew_kl", alpha=1.0), {}, "alpha must be in"),
        (TermConfig(kind="soft", divergence="decoupled", alpha=-1.0), {}, "must be >= 0"),
        (TermConfig(kind="soft", temperature=Schedule(start=0.0)), {}, "temperature must be > 0"),
        (TermConfig(kind="soft"), {"signal": None}, "there is no teacher"),
        (TermConfig(kind="hard"), {"signal": None}, "there is no teacher"),
        (TermConfig(kind="soft"), {"signal": Labels}, "gives labels only"),
        (TermConfig(kind="gold"), {"has_gold": False}, "no row has a label"),
        (
            TermConfig(kind="soft", divergence="forward_kl"),
            {"choices": 1},
            "set the soft term's divergence to logit_mse",
        ),
        (TermConfig(kind="hard"), {"choices": 1}, "use soft with logit_mse"),
        (tiny.soft("logit_mse", standardise=True), {"choices": 1}, "can't be standardised"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_term_that_cannot_be_fed_is_refused_when_built(
    config: TermConfig, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        one(config, **options)
    assert "\n" not in str(caught.value)


def test_what_a_soft_term_is_left_open_follows_the_task() -> None:
    """KL between classes; between a regression's values, which have no distribution, the square."""
    output, signal = StudentOutput(torch.tensor([[1.0]])), Dense(torch.tensor([[3.0]]))
    objective = build([TermConfig(kind="soft")], choices=1, signal=Dense, has_gold=True)
    found = objective.terms[0](output, signal, Batch({}, np.zeros(1, np.int64)), 0.0)
    assert float(found.sum) == pytest.approx(4.0)
    scores_NK = torch.tensor([[1.0, 0.0]])
    objective = build([TermConfig(kind="soft")], choices=2, signal=Dense, has_gold=True)
    batch = Batch({}, np.zeros(1, np.int64))
    found = objective.terms[0](StudentOutput(scores_NK), Dense(-scores_NK), batch, 0.0)
    assert float(found.sum) == pytest.approx(float(forward_kl(scores_NK, -scores_NK)))
