"""A round's masks: exactly the count, and no matrix of small weights pruned away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillhouse.core.seeding import generator
from stillhouse.tickets.prune import next_masks

SCORES = {"a": torch.rand(40, 50) + 1, "b": torch.rand(50, 40) + 1, "small": torch.rand(20, 20)}


def pruned(kept: int, floor: float, held: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    held = held or {name: torch.ones(s.shape, dtype=torch.bool) for name, s in SCORES.items()}
    rng = generator(0, "ties")
    return next_masks(SCORES, held, (), (0, kept), scope="global", floor=floor, rng=rng)


@pytest.mark.parametrize("kept", [3000, 1001, 200, 7])
@pytest.mark.parametrize("floor", [0.0, 0.1, 0.5])
def test_the_count_is_exact_with_any_floor(kept: int, floor: float) -> None:
    found = pruned(kept, floor)
    assert sum(int(mask.sum()) for mask in found.values()) == kept
    least = int(floor * kept / 4400 * 400)
    assert int(found["small"].sum()) == least
    if least:
        lowest = SCORES["small"][found["small"]].min()
        assert lowest >= SCORES["small"][~found["small"]].max()
    mine, theirs = (SCORES[n][found[n]].min() for n in "ab")
    assert all(SCORES[n][~found[n]].max() <= min(mine, theirs) for n in "ab")


def test_a_floor_that_holds_nothing_back_changes_nothing() -> None:
    floored, plain = pruned(4100, 0.1), pruned(4100, 0.0)
    assert all(torch.equal(floored[name], plain[name]) for name in SCORES)


def test_rounds_go_on_below_the_floor_of_the_one_before() -> None:
    first = pruned(3000, 0.1)
    second = pruned(1000, 0.1, first)
    assert 0 < int(second["small"].sum()) < int(first["small"].sum())
    assert not any((second[name] & ~first[name]).any() for name in SCORES)
