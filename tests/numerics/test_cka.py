# N examples, G and H widths.

import pytest
import torch
from torch import Tensor

from stillhouse.numerics.cka import cka_matrix, linear_cka


def states(seed: int, examples: int = 20, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, width, generator=generator, dtype=torch.float64)


def by_kernels(x_NG: Tensor, y_NH: Tensor) -> float:
    """The definition: normalised HSIC of the two N x N similarities, centred by a matrix."""
    N = len(x_NG)
    centring_NN = torch.eye(N, dtype=torch.float64) - 1 / N
    kernels = [centring_NN @ (z @ z.T) @ centring_NN for z in (x_NG.double(), y_NH.double())]
    k_NN, l_NN = kernels
    hsic = sum(float(k_NN[i, j] * l_NN[i, j]) for i in range(N) for j in range(N))
    return hsic / float(k_NN.norm() * l_NN.norm())


def test_value_by_hand():
    # centred: x (-1, 0, 1), y (0, 1, -1)
    # (x . y)^2 / (|x|^2 |y|^2) = 1 / 4
    x_NG = torch.tensor([[1.0], [2.0], [3.0]])
    y_NH = torch.tensor([[7.0], [8.0], [6.0]])
    assert linear_cka(x_NG, y_NH).item() == pytest.approx(1 / 4, abs=1e-15)


def test_value_by_hand_with_two_features():
    # x^T x = diag(2, 2) of norm sqrt(8), y^T y = 2, y^T x = (2, 0): 4 / (2 sqrt(8))
    x_NG = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert linear_cka(x_NG, x_NG[:, :1]).item() == pytest.approx(2**-0.5, abs=1e-15)


@pytest.mark.parametrize("widths", [(1, 1), (3, 8), (40, 6)])
def test_agrees_with_the_kernel_form(widths):
    x_NG, y_NH = states(0, width=widths[0]), states(1, width=widths[1])
    y_NH = y_NH + x_NG[:, :1]
    assert float(linear_cka(x_NG, y_NH)) == pytest.approx(by_kernels(x_NG, y_NH), abs=1e-12)


def test_identical_is_one():
    assert linear_cka(states(2), states(2)).item() == pytest.approx(1, abs=1e-14)


def test_rotation_scale_and_shift_change_nothing():
    x_NG, y_NH = states(3), states(4, width=7) + states(3)[:, :1]
    rotation_GG = torch.linalg.qr(states(5, examples=5)).Q
    moved_NG = 1e-3 * x_NG @ rotation_GG + 5
    torch.testing.assert_close(linear_cka(moved_NG, y_NH), linear_cka(x_NG, y_NH))
    torch.testing.assert_close(linear_cka(y_NH, moved_NG), linear_cka(x_NG, y_NH))
    assert linear_cka(x_NG, moved_NG).item() == pytest.approx(1, abs=1e-12)


def test_another_map_does_change_it():
    # only rotations and one scale for all are free, unlike in regression
    x_NG = states(6)
    assert linear_cka(x_NG, x_NG * torch.tensor([1.0, 9, 1, 1, 1])).item() < 0.9


def test_independent_representations_are_near_zero():
    x_NG, y_NH = states(7, examples=5000), states(8, examples=5000, width=9)
    assert 0 <= linear_cka(x_NG, y_NH).item() < 0.01


def test_features_are_centred():
    x_NG, y_NH = states(9, examples=5000) + 10, states(10, examples=5000) + 10
    assert linear_cka(x_NG, y_NH).item() < 0.01


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_a_constant_representation_is_zero(value):
    # the mean of 0.1 taken 28 times is not 0.1
    flat_NG = torch.full((28, 3), value, dtype=torch.float64)
    assert linear_cka(flat_NG, states(11, examples=28)).item() == 0
    assert linear_cka(flat_NG, flat_NG).item() == 0


def test_is_computed_in_float64():
    near_NG = 1e4 + states(12).float()
    value = linear_cka(near_NG, states(13).bfloat16())
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(by_kernels(near_NG, states(13).bfloat16()), rel=1e-6)


def test_nan_stays_visible():
    broken_NG = states(14).index_fill(0, torch.tensor([3]), torch.nan)
    assert linear_cka(broken_NG, states(15)).isnan()


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="the same examples, got 20 and 19"):
        linear_cka(states(16), states(17, examples=19))


def test_a_matrix_is_made_of_single_comparisons() -> None:
    draw = torch.Generator().manual_seed(3)
    xs = [torch.randn(40, width, generator=draw) for width in (3, 5)]
    ys = [torch.randn(40, width, generator=draw) for width in (4, 4, 7)]
    found = cka_matrix([*xs, torch.ones(40, 2)], ys)
    assert found.shape == (3, 3)
    for row, x in zip(found, xs, strict=False):
        for value, y in zip(row, ys, strict=True):
            torch.testing.assert_close(value, linear_cka(x, y))
    assert found[2].tolist() == [0.0] * 3
