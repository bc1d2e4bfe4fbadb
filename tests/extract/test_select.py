"""Choosing queries: the least sure, and those far from all that was asked."""

from __future__ import annotations

import numpy as np

from stillhouse.extract.select import k_centre, least_sure


def test_the_least_sure_come_first() -> None:
    assert least_sure(np.array([0.1, 0.7, 0.3, 0.7]), 3).tolist() == [1, 3, 2]


def test_k_centre_is_the_greedy_one() -> None:
    rng = np.random.default_rng(0)
    points_NP = rng.standard_normal((60, 4)).astype(np.float32)
    centres_CP = rng.standard_normal((5, 4)).astype(np.float32)
    held, expected = [*centres_CP], []
    for _ in range(8):
        distances_NC = np.linalg.norm(points_NP[:, None] - np.array(held)[None], axis=-1)
        place = int(distances_NC.min(1).argmax())
        expected.append(place)
        held.append(points_NP[place])
    assert k_centre(points_NP, centres_CP, 8).tolist() == expected


def test_k_centre_takes_everything_once() -> None:
    points_NP = np.zeros((6, 2), np.float32)  # all alike: ties
    assert sorted(k_centre(points_NP, points_NP[:1], 6).tolist()) == list(range(6))
    assert k_centre(points_NP, points_NP[:0], 0).tolist() == []
