"""From scores to the next round's masks: exactly the asked number of weights goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from torch import Tensor

from stillhouse.numerics import masks
from stillhouse.tickets.config import PruneConfig

SCHEDULES = {"geometric": masks.geometric, "linear": masks.linear}


def counts(
    sizes: Mapping[str, int], output: Collection[str], config: PruneConfig
) -> list[tuple[int, int]]:
    """How many weights stay after each round: of the output layer, and of all others.

    The output layer goes at `output_rate` of the others' rate (Frankle & Carbin 2019, sec. 2). If
    it is all there is to prune, it is a layer like any other.
    """
    shares = SCHEDULES[config.schedule](config.sparsity, config.rounds)
    last = {name for name in output if name in sizes}
    if len(last) == len(sizes):
        last = set()
    of_last = sum(sizes[name] for name in last)
    others = sum(sizes.values()) - of_last
    found: list[tuple[int, int]] = []
    before, kept = 1.0, 1.0
    for share in shares:
        kept *= masks.slowed(share, before, config.output_rate)
        before = share
        found.append((round(kept * of_last), round(share * others)))
    return found


def next_masks(
    scores: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    output: Collection[str],
    count: tuple[int, int],
    *,
    scope: str,
    rng: np.random.Generator,
    floor: float = 0.0,
) -> dict[str, Tensor]:
    """The masks that keep `count` weights (of the output layer, of the others), the highest
    scores among those that `held` keeps. Ties are broken by `rng`; `floor` as in PruneConfig.
    Raises ValueError for scores that are not numbers."""
    last = [name for name in held if name in output]
    if len(last) == len(held):
        last = []
    parts = ((last, count[0]), ([name for name in held if name not in last], count[1]))
    found: dict[str, Tensor] = {}
    for names, kept in parts:
        if not names:
            continue
        if scope == "global":
            own = {name: held[name] for name in names}
            found |= _global(scores, own, kept, floor, rng)
            continue
        for name, share in zip(names, _shared([held[n].numel() for n in names], kept), strict=True):
            found[name] = masks.keep_highest(scores[name], held[name], share, rng)
    return {name: found[name] for name in held}


def _global(
    scores: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    kept: int,
    floor: float,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """The `kept` highest of all, but of each tensor at least `floor` times the share that all keep;
    the others make room."""
    share = floor * kept / sum(mask.numel() for mask in held.values())
    least = {n: min(int(share * mask.numel()), int(mask.sum())) for n, mask in held.items()}
    fixed: dict[str, Tensor] = {}
    while True:
        free = {name: mask for name, mask in held.items() if name not in fixed}
        room = kept - sum(least[name] for name in fixed)
        found = masks.keep_highest_of(scores, free, room, rng)
        under = [name for name, mask in found.items() if int(mask.sum()) < least[name]]
        if not under:
            return {**found, **fixed}
        for name in under:
            fixed[name] = masks.keep_highest(scores[name], held[name], least[name], rng)


def _shared(sizes: list[int], kept: int) -> list[int]:
    """`kept` spread over layers in proportion to their sizes, in whole weights that sum to it."""
    exact = np.array(sizes) * (kept / sum(sizes))
    floor = np.floor(exact).astype(int)
    more = np.argsort(floor - exact, kind="stable")[: kept - floor.sum()]
    floor[more] += 1
    return floor.tolist()
