"""Labels beside points, moved until none covers another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Outward steps in points, and directions in the order a reader expects a label to be found.
DISTANCES = (7.0, 16.0, 27.0, 40.0, 55.0, 72.0, 90.0)
SAMPLE = 6.0  # between checks along a leader, points
DIRECTIONS = (
    *((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1)),
    *((1, 0.5), (1, -0.5), (-1, 0.5), (-1, -0.5), (0.5, 1), (0.5, -1), (-0.5, 1), (-0.5, -1)),
)


@dataclass(frozen=True)
class Box:
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)


Spot = tuple[float, float]
Segment = tuple[Spot, Spot]


def place(
    points: Sequence[Spot], sizes: Sequence[Spot], *, obstacles: Sequence[Box], bounds: Box
) -> list[Box]:
    """A box of each size near its point, clear of the obstacles, of the boxes before it and of
    their leaders. Where no place is free, the one that covers least."""
    placed: list[Box] = []
    lines: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        taken = [*obstacles, *placed, *lines]
        costs = [
            (_cost(box, taken, bounds) + _crossing(point, box, placed), index, box)
            for index, box in enumerate(_candidates(point, size))
        ]
        # Of equals the first: a free place near the point wins over one further out.
        best = min(costs, key=lambda cost: cost[:2])[2]
        placed.append(best)
        lines += _along(point, best)
    return placed


def leader(point: Spot, box: Box) -> Segment | None:
    """The line from a point to a label too far from it to be read as its own; else None."""
    end = (
        min(max(point[0], box.left), box.right),
        min(max(point[1], box.bottom), box.top),
    )
    return (point, end) if math.dist(point, end) >= DISTANCES[1] else None


def _along(point: Spot, box: Box) -> list[Box]:
    """Small boxes along the leader, for what must not cover it."""
    ends = leader(point, box)
    if ends is None:
        return []
    (x0, y0), (x1, y1) = ends
    steps = max(1, int(math.dist(*ends) // SAMPLE))
    shares = [step / steps for step in range(1, steps)]
    middles = [(x0 + share * (x1 - x0), y0 + share * (y1 - y0)) for share in shares]
    return [Box(x - 1, y - 1, x + 1, y + 1) for x, y in middles]


def _crossing(point: Spot, box: Box, placed: Sequence[Box]) -> float:
    line = _along(point, box)
    return sum(sample.overlap(other) for sample in line for other in placed)


def _candidates(point: Spot, size: Spot) -> list[Box]:
    return [
        _beside(point, size, (x * distance, y * distance))
        for distance in DISTANCES
        for x, y in DIRECTIONS
    ]


def _beside(point: Spot, size: Spot, offset: Spot) -> Box:
    left = point[0] + offset[0] - size[0] * _share_before(offset[0])
    bottom = point[1] + offset[1] - size[1] * _share_before(offset[1])
    return Box(left, bottom, left + size[0], bottom + size[1])


def _share_before(offset: float) -> float:
    """How much of a label lies before its anchor: all, none, or half when centred."""
    return 0.5 if offset == 0 else (0.0 if offset > 0 else 1.0)


def _cost(box: Box, taken: Sequence[Box], bounds: Box) -> float:
    outside = box.area - box.overlap(bounds)
    return round(4 * outside + sum(box.overlap(other) for other in taken), 6)
