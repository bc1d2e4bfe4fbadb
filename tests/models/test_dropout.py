"""Cheap dropout draws what dropout draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillhouse.models.dropout import dropout, scaled_mask


def kept(count: int, p: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    mask = scaled_mask(torch.Size([count]), p, np.random.default_rng(0), dtype)
    return (mask > 0).double()


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_elements_are_kept_with_probability_one_minus_p(p: float) -> None:
    found = kept(1_000_000, p).view(1000, 1000)
    spread = (p * (1 - p) / 1e6) ** 0.5
    assert abs(found.mean() - (1 - p)) < 5 * spread + 1 / 65536
    for axis in (0, 1):  # no row or column is favoured
        means = found.mean(axis)
        assert means.std() == pytest.approx((p * (1 - p) / 1e3) ** 0.5, rel=0.15)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_the_mean_stays_though_bf16_rounds_the_scale(p: float) -> None:
    mask = scaled_mask(torch.Size([4_000_000]), p, np.random.default_rng(0), torch.bfloat16)
    spread = (p / (1 - p) / 4e6) ** 0.5
    assert abs(mask.double().mean() - 1.0) < 5 * spread + 2 / 65536
    assert abs(kept(1_000_000, p, torch.bfloat16).mean() - (1 - p)) < 0.004


def test_neighbours_are_independent() -> None:
    found = kept(1_000_000, 0.5) - 0.5
    for lag in (1, 2, 3, 4, 8):
        assert abs((found[lag:] * found[:-lag]).mean()) < 5 * 0.25 / 1e3


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7)])
def test_any_shape_is_drawn(shape: tuple[int, ...]) -> None:
    assert (
        scaled_mask(torch.Size(shape), 0.5, np.random.default_rng(0), torch.float32).shape == shape
    )


def test_kept_elements_are_scaled_so_that_the_mean_stays() -> None:
    x = torch.ones(400_000)
    out = dropout(x, 0.2, np.random.default_rng(0))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert out.mean() == pytest.approx(1.0, abs=0.005)


def test_gradients_pass_through_what_was_kept() -> None:
    x = torch.ones(1000, requires_grad=True)
    out = dropout(x, 0.25, np.random.default_rng(0))
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_without_a_generator_or_a_share_nothing_happens() -> None:
    x = torch.randn(10)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, np.random.default_rng(0)) is x


def test_the_dtype_stays() -> None:
    assert (
        dropout(torch.ones(8, dtype=torch.bfloat16), 0.5, np.random.default_rng(0)).dtype
        == torch.bfloat16
    )
