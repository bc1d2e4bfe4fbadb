"""Which weights stay: how many at each round, which ones by score, and how alike masks are.

A mask is True where a weight stays. Masks and scores of several tensors are dicts by name.

Axes: P weights of a tensor, whatever its shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Masks = Mapping[str, Tensor]


def geometric(sparsity: float, rounds: int) -> list[float]:
    """Shares that remain after each of `rounds` rounds, each pruning the same share of the
    survivors; the last is 1 - sparsity. Frankle & Carbin 2019, sec. 1.

    Raises ValueError unless 0 < sparsity < 1 and rounds >= 1.
    """
    _check(sparsity, rounds)
    return [(1 - sparsity) ** (k / rounds) for k in range(1, rounds + 1)]


def linear(sparsity: float, rounds: int) -> list[float]:
    """Shares that remain after each of `rounds` rounds, each pruning the same share of the
    original weights; the last is 1 - sparsity. Chen et al. 2020 (BERT-Tickets), sec. 3.

    Raises ValueError unless 0 < sparsity < 1 and rounds >= 1.
    """
    _check(sparsity, rounds)
    return [1 - sparsity * k / rounds for k in range(1, rounds + 1)]


def _check(sparsity: float, rounds: int) -> None:
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must be over 0 and under 1, got {sparsity}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")


def slowed(remaining: float, before: float, rate: float) -> float:
    """What stays of an output layer that is pruned at `rate` times the rate of the others, where
    these go from a share of `before` to `remaining` of their weights."""
    return 1 - (1 - remaining / before) * rate


def keep_highest(scores: Tensor, mask: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """The mask of the `count` weights with the highest scores among those that `mask` keeps.

    Exactly `count`, whatever the scores: ties are broken by `rng`. Raises ValueError where the
    mask keeps fewer, or a kept weight's score is not a number.
    """
    kept_P = mask.flatten()
    at = kept_P.nonzero()[:, 0]
    if not 0 <= count <= len(at):
        raise ValueError(f"can't keep {count} of {len(at)} weights")
    found_P = torch.zeros_like(kept_P)
    if count == 0:
        return found_P.view(mask.shape)
    own = scores.flatten()[at].double()
    if torch.isnan(own).any():
        raise ValueError("a score is not a number")
    threshold = own.kthvalue(len(own) - count + 1).values  # the count-th highest
    above = at[own > threshold]
    level = at[own == threshold]
    chosen = rng.permutation(len(level))[: count - len(above)]
    found_P[above] = True
    found_P[level[torch.from_numpy(chosen)]] = True
    return found_P.view(mask.shape)


def keep_highest_of(
    scores: Mapping[str, Tensor], masks: Masks, count: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """As `keep_highest`, over all tensors together: `count` is of all of them."""
    names = list(masks)
    joined = torch.cat([scores[name].flatten() for name in names])
    held = torch.cat([masks[name].flatten() for name in names])
    found = keep_highest(joined, held, count, rng).split([masks[name].numel() for name in names])
    return {name: part.view(masks[name].shape) for name, part in zip(names, found, strict=True)}


def random_like(masks: Masks, rng: np.random.Generator) -> dict[str, Tensor]:
    """Masks of the same density in each tensor, drawn at random: the fair control of a ticket."""
    found: dict[str, Tensor] = {}
    for name, mask in masks.items():
        drawn_P = torch.zeros(mask.numel(), dtype=torch.bool)
        drawn_P[torch.from_numpy(rng.permutation(mask.numel())[: int(mask.sum())])] = True
        found[name] = drawn_P.view(mask.shape)
    return found


def ones_like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones_like(t, dtype=torch.bool) for name, t in tensors.items()}


def density(masks: Masks) -> float:
    """Share of the weights that stay."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def overlap(mine: Masks, theirs: Masks) -> tuple[float, float]:
    """Share of weights kept by either that both keep (Jaccard), and the share that two random
    masks of the same densities, tensor by tensor, would have on average. Raises ValueError for
    masks of other tensors."""
    if {n: m.shape for n, m in mine.items()} != {n: m.shape for n, m in theirs.items()}:
        raise ValueError("masks of different tensors have no overlap")
    both = either = expected = 0.0
    for name, a in mine.items():
        b = theirs[name]
        both += int((a & b).sum())
        either += int((a | b).sum())
        expected += int(a.sum()) * int(b.sum()) / a.numel()
    kept = both + either  # of both together, shared ones twice
    return both / either, expected / (kept - expected)


def pack(mask: Tensor) -> Tensor:
    """A mask as bits, uint8: eight weights a byte."""
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask that `pack` made bits of. Raises ValueError where these are too few or too many."""
    count = int(np.prod(shape))
    if len(bits) != -(-count // 8):
        raise ValueError(f"{len(bits)} bytes are no mask of {count} weights")
    values = np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(values).view(tuple(shape))
