"""The wide KL is the narrow one: value, gradient, -inf, empty, equality."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stillhouse.numerics import wide
from stillhouse.numerics.divergences import forward_kl
from stillhouse.numerics.wide import forward_kl_wide


def scores(seed: int, rows: int = 5, choices: int = 300) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, choices, generator=draw, dtype=torch.float64) * 3


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wide.CHUNK, "cpu", 700)  # two rows at once, and one at the end


def test_one_value_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(forward_kl_wide(student, teacher)) == pytest.approx(expected)


@pytest.mark.parametrize("padded", [False, True])
def test_value_and_gradient_are_the_narrow_ones(padded: bool) -> None:
    student, teacher = scores(0), scores(1)
    if padded:  # a padded vocabulary on both sides
        student[:, -9:] = teacher[:, -9:] = -math.inf
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    found = []
    for function in (forward_kl, forward_kl_wide):
        leaf = student.clone().requires_grad_(True)
        value = function(leaf, teacher)
        (value * weights).sum().backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1])


def test_torch_agrees() -> None:
    student, teacher = scores(2), scores(3)
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    expected = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(forward_kl_wide(student, teacher), expected)


def test_gradient_is_the_numeric_one() -> None:
    student = scores(4, rows=3, choices=5).requires_grad_(True)
    assert torch.autograd.gradcheck(forward_kl_wide, (student, scores(5, rows=3, choices=5)))


def test_equal_scores_are_exactly_nothing() -> None:
    student = scores(6).float().requires_grad_(True)
    value = forward_kl_wide(student, student.detach().clone())
    value.sum().backward()
    assert torch.equal(value, torch.zeros(5))
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_it_is_never_negative_where_scores_are_close() -> None:
    for scale in (1e-7, 1e-5, 1e-3):
        student = scores(7, rows=40).float()
        teacher = student + scale * torch.randn(40, 300)
        assert (forward_kl_wide(student, teacher) >= 0).all()


def test_a_second_derivative_is_refused() -> None:
    student = scores(8).requires_grad_(True)
    (first,) = torch.autograd.grad(forward_kl_wide(student, scores(9)).sum(), student)
    assert first.norm() > 0
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(forward_kl_wide(student, scores(9)).sum(), student, create_graph=True)


def test_no_rows_are_no_values() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    found = forward_kl_wide(student, torch.zeros(0, 5))
    assert found.shape == (0,)
    found.sum().backward()
    assert student.grad is not None
    assert student.grad.shape == (0, 5)
