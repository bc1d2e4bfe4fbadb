"""The choice of what to cut: exact against every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stillhouse.tickets.plan import Option, choose, steps_down


def options(rng: np.random.Generator, layers: int) -> list[list[Option]]:
    found = []
    for _ in range(layers):
        stays = [
            Option(h, f, cost=h * 1.0 + f * 0.1, damage=float(rng.random() * (10 - h - f / 10)))
            for h, f in itertools.product((1, 2, 4), (5, 20))
        ]
        found.append([Option(0, 0, 0.0, float(rng.random() * 10)), *stays])
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("budget", [2.0, 7.5, 14.0])
def test_the_choice_is_the_best_of_all_combinations(seed: int, budget: float) -> None:
    layers = options(np.random.default_rng(seed), 4)
    every = [
        combination
        for combination in itertools.product(*layers)
        if sum(o.cost for o in combination) <= budget and any(o.heads for o in combination)
    ]
    best = min((sum(o.damage for o in combination) for combination in every), default=None)
    found = choose(layers, budget)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert sum(o.cost for o in found) <= budget + 1e-9
        assert sum(o.damage for o in found) == pytest.approx(best)


def test_a_budget_for_nothing_fits_nothing() -> None:
    layers = options(np.random.default_rng(0), 3)
    assert choose(layers, 1.0) is None
    found = choose(layers, 1.5)
    assert found is not None
    assert sum(option.heads > 0 for option in found) == 1


def test_steps_go_from_all_to_the_least() -> None:
    assert steps_down(12, parts=4) == [12, 9, 6, 3, 1]
    assert steps_down(2, parts=4) == [2, 1]
    assert steps_down(1536, parts=2, least=64) == [1536, 768, 64]
    assert steps_down(60, parts=6, least=32) == [60, 32]
