"""Every row in exactly one batch, within the caps, the same every time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.seeding import generator
from stillhouse.data.batching import shuffled_batches, sorted_batches

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=400).map(np.array)


def sound(batches: list[np.ndarray], lengths: np.ndarray, size: int, tokens: int) -> None:
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        assert 1 <= len(rows) <= size
        assert len(rows) == 1 or lengths[rows].max() * len(rows) <= tokens


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 40), tokens=st.integers(1, 2000))
def test_every_row_once_within_the_caps(lengths: np.ndarray, size: int, tokens: int) -> None:
    sound(sorted_batches(lengths, size=size, max_tokens=tokens), lengths, size, tokens)
    rng = generator(0, "order", 0)
    sound(shuffled_batches(lengths, size=size, max_tokens=tokens, rng=rng), lengths, size, tokens)


def test_a_plan_follows_from_its_generator() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=500)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        rng = generator(seed, "order", epoch)
        batches = shuffled_batches(lengths, size=8, max_tokens=200, rng=rng)
        return [rows.tolist() for rows in batches]

    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)


def test_asking_goes_from_short_to_long() -> None:
    lengths = np.array([5, 1, 9, 1, 5])
    batches = sorted_batches(lengths, size=2, max_tokens=100)
    assert [rows.tolist() for rows in batches] == [[1, 3], [0, 4], [2]]


def test_batches_hold_rows_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=2000)
    batches = shuffled_batches(lengths, size=16, max_tokens=10**6, rng=generator(0, "order", 0))
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
    assert padded < 1.15 * lengths.sum()
