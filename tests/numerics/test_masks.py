"""Masks: exact counts on the paper's ladder, ties by seed, densities, overlap by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillhouse.numerics import masks

# Frankle & Carbin 2019: LeNet-300-100's shares of weights, in per cent, after k rounds of 20 %
# (10 % in the output layer).
LADDER = {1: 80.0, 3: 51.3, 5: 32.9, 7: 21.1, 9: 13.5, 11: 8.7, 12: 7.0, 13: 5.6, 15: 3.6, 18: 1.9,
          20: 1.2, 24: 0.5, 30: 0.1}  # fmt: skip
LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_both_schedules_end_where_asked() -> None:
    assert masks.geometric(0.75, 2) == pytest.approx([0.5, 0.25])
    assert masks.linear(0.75, 3) == pytest.approx([0.75, 0.5, 0.25])
    assert masks.geometric(0.3, 1) == pytest.approx([0.7])


@pytest.mark.parametrize("make", [masks.geometric, masks.linear])
@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, 1.5])
def test_a_sparsity_outside_its_range_is_refused(make: object, sparsity: float) -> None:
    with pytest.raises(ValueError, match=f"over 0 and under 1, got {sparsity}"):
        make(sparsity, 3)  # type: ignore[operator]
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        masks.linear(0.5, 0)


def test_half_the_rate_is_half_of_what_is_pruned() -> None:
    assert masks.slowed(0.8, 1.0, 0.5) == pytest.approx(0.9)
    assert masks.slowed(0.64, 0.8, 0.5) == pytest.approx(0.9)


def test_the_counts_are_those_of_the_papers_ladder() -> None:
    scores = {name: torch.randn(shape).abs() for name, shape in LENET.items()}
    kept = masks.ones_like(scores)
    whole = sum(mask.numel() for mask in kept.values())
    assert whole == 266_200
    output = 1.0
    for k in range(1, 31):
        output *= masks.slowed(0.8**k, 0.8 ** (k - 1), 0.5)
        for name, mask in kept.items():
            share = output if name == "fc3" else 0.8**k
            count = round(share * mask.numel())
            kept[name] = masks.keep_highest(scores[name], mask, count, rng())
            assert int(kept[name].sum()) == count
        if k in LADDER:
            assert round(100 * masks.density(kept), 1) == LADDER[k]
    exact = (265_200 * 0.8**30 + 1000 * 0.9**30) / 266_200
    assert abs(masks.density(kept) - exact) < 2 / 266_200


def test_the_highest_stay_and_only_among_those_that_were_kept() -> None:
    scores = torch.tensor([[5.0, 1.0], [4.0, 3.0]])
    mask = torch.tensor([[False, True], [True, True]])
    found = masks.keep_highest(scores, mask, 2, rng())
    assert found.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("count", [0, 1, 499, 500, 999, 1000])
def test_equal_scores_are_pruned_to_exactly_the_count(count: int) -> None:
    scores = torch.cat([torch.zeros(500), torch.ones(500)])
    found = masks.keep_highest(scores, torch.ones(1000, dtype=torch.bool), count, rng())
    assert int(found.sum()) == count
    assert int(found[500:].sum()) == min(count, 500)


def test_ties_are_broken_by_the_seed() -> None:
    scores, mask = torch.zeros(100), torch.ones(100, dtype=torch.bool)
    first, again, other = (masks.keep_highest(scores, mask, 50, rng(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_over_all_tensors_together_the_count_is_of_all() -> None:
    scores = {"a": torch.tensor([1.0, 9.0]), "b": torch.tensor([[2.0], [8.0], [7.0]])}
    found = masks.keep_highest_of(scores, masks.ones_like(scores), 3, rng())
    assert found["a"].tolist() == [False, True]
    assert found["b"].tolist() == [[False], [True], [True]]


def test_what_cannot_be_is_refused() -> None:
    mask = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match="can't keep 3 of 2 weights"):
        masks.keep_highest(torch.ones(3), mask, 3, rng())
    with pytest.raises(ValueError, match="not a number"):
        masks.keep_highest(torch.tensor([1.0, 0.0, torch.nan]), mask, 1, rng())
    hidden = torch.tensor([1.0, torch.nan, 2.0])  # a pruned weight's score is nobody's business
    assert masks.keep_highest(hidden, mask, 1, rng()).tolist() == [False, False, True]


def test_a_random_mask_has_each_tensors_density_and_another_place() -> None:
    ticket = {"a": torch.rand(40, 50) > 0.3, "b": torch.rand(200) > 0.9}
    drawn = masks.random_like(ticket, rng())
    assert {n: int(m.sum()) for n, m in drawn.items()} == {
        n: int(m.sum()) for n, m in ticket.items()
    }
    assert not torch.equal(drawn["a"], ticket["a"])
    assert torch.equal(masks.random_like(ticket, rng())["a"], drawn["a"])
    assert not torch.equal(masks.random_like(ticket, rng(1))["a"], drawn["a"])


def test_overlap_by_hand() -> None:
    a = {"x": torch.tensor([True, True, False, False])}
    b = {"x": torch.tensor([True, False, True, False])}
    # one shared of three; by chance 2 * 2 / 4 = 1 shared of 3
    assert masks.overlap(a, b) == pytest.approx((1 / 3, 1 / 3))
    assert masks.overlap(a, a)[0] == 1.0
    with pytest.raises(ValueError, match="different tensors"):
        masks.overlap(a, {"x": torch.ones(5, dtype=torch.bool)})


def test_random_masks_overlap_as_expected() -> None:
    ticket = {"a": torch.rand(300, 300) > 0.7, "b": torch.rand(300, 100) > 0.2}
    one, two = masks.random_like(ticket, rng(1)), masks.random_like(ticket, rng(2))
    seen, expected = masks.overlap(one, two)
    assert seen == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("shape", [(3, 5), (8,), (1, 1), (7, 9)])
def test_bits_come_back_as_the_mask(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) > 0.5
    bits = masks.pack(mask)
    assert len(bits) == -(-mask.numel() // 8)
    assert torch.equal(masks.unpack(bits, shape), mask)
    with pytest.raises(ValueError, match="no mask of"):
        masks.unpack(bits, (*shape, 16))
