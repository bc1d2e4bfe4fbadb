"""Which layers, heads and neurons to cut for a target: the least damage that fits the budget.

Each layer can go, or stay with one of a few numbers of heads and of neurons. What an option costs
(time or parameters) and damages is known layer by layer, and taken to add up over layers; the
best choice is then found layer by layer, from all choices of those before that are worth following.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 5000  # choices of the first layers that are followed up


@dataclass(frozen=True)
class Option:
    """A layer with so many heads and neurons (0 and 0: without it)."""

    heads: int
    neurons: int
    cost: float
    damage: float


def choose(layers: Sequence[Sequence[Option]], budget: float) -> list[Option] | None:
    """One option a layer, of least total damage within `budget`; None where none fits. At least
    one layer stays."""
    limit = budget * (1 + 1e-12)
    found = [_Chosen(0.0, 0.0, False, ())]
    for options in layers:
        longer = [each.and_(option) for each in found for option in options]
        found = _undominated([each for each in longer if each.cost <= limit])
    ends = [each for each in found if each.stays]
    return list(min(ends, key=lambda each: each.damage).options) if ends else None


@dataclass(frozen=True)
class _Chosen:
    """Options of the first layers. `stays`: whether one of them does."""

    cost: float
    damage: float
    stays: bool
    options: tuple[Option, ...]

    def and_(self, option: Option) -> _Chosen:
        return _Chosen(
            self.cost + option.cost,
            self.damage + option.damage,
            self.stays or option.heads > 0,
            (*self.options, option),
        )


def _undominated(found: list[_Chosen]) -> list[_Chosen]:
    """Without those that cost more and damage no less than another of the same kind; of too many,
    the ones that are alike in cost become one."""
    kept: list[_Chosen] = []
    for stays in (True, False):
        mine = sorted((c for c in found if c.stays is stays), key=lambda c: (c.cost, c.damage))
        least = np.inf
        front: list[_Chosen] = []
        for each in mine:
            if each.damage < least:
                least = each.damage
                front.append(each)
        kept += front[:: max(1, len(front) // MOST)]
    return kept


def steps_down(whole: int, *, parts: int, least: int = 1) -> list[int]:
    """`whole` and smaller numbers down to `least`, evenly spread: the options of a layer. They are
    multiples of `least` (but `whole` may not be), which kernels of matrix products are made for."""
    spread = np.linspace(whole, least, parts + 1)[1:]
    return sorted({whole, *(least * max(1, int(v // least)) for v in spread)}, reverse=True)
