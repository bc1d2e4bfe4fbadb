"""Bits of sparse distributions: few, the same number for each position, and read back right.

Axes: N positions, T likeliest choices, D drawn ones.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.numerics.packing import GAPS, TAIL_STEP, decode, encode, layout, position_bytes
from stillhouse.numerics.sparse import choose

SPLITS = [
    (8, 3, 2),
    (2, 1, 1),
    (2, 2, 0),
    (1000, 12, 0),
    (1000, 0, 30),
    (1024, 1, 7),
    (1025, 5, 64),
    (30, 1, 60),  # so many that no low bits are left
]


def made(choices: int, top: int, drawn: int, N: int = 50, seed: int = 0) -> list[np.ndarray]:
    draw = torch.Generator().manual_seed(seed)
    scores_NK = 3 * torch.randn(N, choices, generator=draw)
    uniform_N1 = torch.rand(N, 1, generator=draw)
    found = choose(scores_NK.log_softmax(-1), uniform_N1, top=top, drawn=drawn)
    return [part.numpy() for part in found]


def row(ids: Any = (), p: Any = (), tail: float = 1.0, drawn: Any = ()) -> list[np.ndarray]:
    numbers = np.array([ids], np.int64), np.array([p], np.float32)
    return [*numbers, np.array([tail], np.float32), np.array([drawn], np.int64)]


def test_one_likeliest_choice_by_hand() -> None:
    """Depth 2271 of the rest (1/2 is e^-0.693, a step e^-0.000305), then the id in 3 bits."""
    depth = round(np.log(2) / TAIL_STEP)
    assert depth == 2271
    packed = encode(*row([5], [0.5], 0.5), choices=8)
    assert packed.tolist() == [[*depth.to_bytes(2, "big"), 0b10100000]]
    assert encode(*row([5], [1.0], 0.0), choices=8).tolist() == [[255, 255, 0b10100000]]


def test_drawn_choices_by_hand() -> None:
    """Low bits 1 1 0 1; the others 0 0 3 7 in unary: ones at 0 1 5 10."""
    packed = encode(*row(drawn=[1, 1, 6, 15]), choices=16)
    assert packed.tolist() == [[0b11011100, 0b01000010]]


@pytest.mark.parametrize(("choices", "top", "drawn"), SPLITS)
def test_what_is_read_is_what_was_written(choices: int, top: int, drawn: int) -> None:
    ids, p, tail, at = made(choices, top, drawn)
    packed = encode(ids, p, tail, at[:, ::-1].copy(), choices=choices)  # in any order
    assert packed.shape == (50, position_bytes(choices, top, drawn))
    ids2, p2, tail2, at2 = decode(packed, choices=choices, top=top, drawn=drawn)
    assert (ids2 == ids).all()
    assert (at2 == np.sort(at, -1)).all()
    if top < choices:
        np.testing.assert_allclose(tail2, tail, rtol=2e-4)
    far = p > 1e-5 * p[:, :1] if top else p > 0
    np.testing.assert_allclose(p2[far], p[far], rtol=0.05)
    np.testing.assert_allclose(p2.sum(-1) + tail2, np.ones(50), rtol=1e-6)
    assert p2.dtype == tail2.dtype == np.float32


def test_of_a_language_models_likeliest_12_none_is_off_by_2_percent() -> None:
    given = made(5000, 12, 0, N=300)
    found = decode(encode(*given, choices=5000), choices=5000, top=12, drawn=0)
    off = np.abs(found[1] / given[1] - 1)
    assert off.max() < 0.02
    assert 0.0005 < off.mean() < 0.006


def test_errors_do_not_add_up() -> None:
    """200 choices, each the same little below the one before."""
    logs = -0.0095 * np.arange(200)
    p = np.exp(logs) / np.exp(logs).sum() * 0.5
    packed = encode(*row(np.arange(200), p, 0.5), choices=1000)
    found = decode(packed, choices=1000, top=200, drawn=0)[1]
    np.testing.assert_allclose(found[0], p, rtol=0.015)


def test_places_that_are_not_used_and_tiny_ones() -> None:
    p = [1 - 1e-4 - 1e-8, 1e-4, 1e-8, 0.0, 0.0]
    found = decode(encode(*row([3, 1, 2, 0, 0], p, 0.0), choices=9), choices=9, top=5, drawn=0)
    assert found[2].tolist() == [0.0]
    assert (found[1][0, 3:] == 0).all()
    np.testing.assert_allclose(found[1][0, :3], p[:3], rtol=0.12)
    found = decode(encode(*row([3, 1], [1 - 1e-9, 1e-9], 0), choices=9), choices=9, top=2, drawn=0)
    assert 0 < found[1][0, 1] < 1.1 * np.exp(-GAPS[-1]), "kept as the lowest there is"


def slow(packed: np.ndarray, choices: int, top: int, drawn: int) -> list[list[int]]:
    """Ids of a position, bit by bit."""
    text = "".join(f"{byte:08b}" for byte in packed)
    wide = max(1, (choices - 1).bit_length())
    at = 16 if top else 0
    ids = [int(text[at + i * wide : at + (i + 1) * wide], 2) for i in range(top)]
    at += top * wide + 8 * max(0, top - 1)
    form = layout(choices, top, drawn)
    lows = [int(text[at + i * form.low : at + (i + 1) * form.low] or "0", 2) for i in range(drawn)]
    if not form.high:
        return [ids, lows]
    unary, high, highs = text[at + drawn * form.low :][: form.high], 0, []
    for bit in unary:
        if bit == "1":
            highs.append(high)
        else:
            high += 1
    return [ids, [h << form.low | low for h, low in zip(highs, lows, strict=True)]]


@pytest.mark.parametrize(("choices", "top", "drawn"), SPLITS)
def test_bits_are_where_a_slow_reader_finds_them(choices: int, top: int, drawn: int) -> None:
    given = made(choices, top, drawn, N=5)
    for n, packed in enumerate(encode(*given, choices=choices)):
        assert slow(packed, choices, top, drawn) == [given[0][n].tolist(), sorted(given[3][n])]


@pytest.mark.parametrize(
    ("choices", "top", "drawn", "expected"),
    [(50_257, 12, 0, 37), (8192, 12, 0, 33), (262_144, 12, 0, 40), (50_257, 0, 12, 21)],
)
def test_bytes_of_a_position(choices: int, top: int, drawn: int, expected: int) -> None:
    """E.g. 16 + 12 x 16 + 11 x 8 = 296 bits; drawn: 12 x 12 + (50,256 >> 12) + 12 = 168."""
    assert position_bytes(choices, top, drawn) == expected


@pytest.mark.parametrize(("choices", "top", "drawn"), [(9, 0, 0), (9, 10, 0), (1 << 25, 1, 0)])
def test_what_can_not_be_packed_is_refused(choices: int, top: int, drawn: int) -> None:
    with pytest.raises(ValueError, match="can't pack"):
        position_bytes(choices, top, drawn)


def test_reading_is_quick() -> None:
    packed = np.repeat(encode(*made(5000, 8, 16, N=64), choices=5000), 64, axis=0)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        decode(packed, choices=5000, top=8, drawn=16)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1  # 4,096 positions; some 4 ms where nothing else runs
