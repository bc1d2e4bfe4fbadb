"""Sparse distributions as bits, the same number of bytes for every position, and back.

A position is a row of bits: the rest's probability (16 bits), the ids of the likeliest choices
(each as many bits as K needs), how far each one's log-probability is below the one before it (8
bits), and the drawn ids, sorted. Sorted ids are coded by Elias and Fano: the low bits of each as
they are, the high ones in unary, some 2 bits an id.

Axes: N positions, T likeliest choices, D drawn ones, X numbers, W bits of each, L a position's
bits, Y its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

WIDEST = 24  # bits of an id, which float32 holds exactly
TAIL_BITS, TAIL_STEP = 16, 20 / 65_534  # nats; 65,535 stands for a rest of 0
NO_TAIL = 65_535
# Steps of 0.014 nats between close neighbours, growing to 0.11 at the last, 12: what is far below
# the likeliest choice matters less. 255 stands for a place that is not used.
GAPS = 1.81 * np.expm1(0.008 * np.arange(255))
UNUSED = 255
MIDDLES = (GAPS[1:] + GAPS[:-1]) / 2


@dataclass(frozen=True)
class Layout:
    """How many bits each part of a position takes, in their order."""

    tail: int
    ids: int  # of each
    gaps: int  # of all
    low: int  # of each drawn id
    high: int  # of all drawn ids, 0: they are not in unary
    bytes: int


def layout(choices: int, top: int, drawn: int) -> Layout:
    """Raises ValueError for numbers that can't be packed."""
    ids = max(1, (choices - 1).bit_length())
    if choices < 1 or ids > WIDEST or not 0 <= top <= choices or drawn < 0 or not top + drawn:
        raise ValueError(f"can't pack {top} likeliest and {drawn} drawn of {choices} choices")
    tail, gaps = (TAIL_BITS, 8 * (top - 1)) if top else (0, 0)  # without a top the rest is all
    low, high = ids, 0
    for fewer in range(ids):
        unary = ((choices - 1) >> fewer) + drawn
        if drawn * fewer + unary < drawn * low + high:
            low, high = fewer, unary
    bits = tail + top * ids + gaps + drawn * low + high
    return Layout(tail, ids, gaps, low, high, -(-bits // 8))


def position_bytes(choices: int, top: int, drawn: int) -> int:
    """Bytes of one position."""
    return layout(choices, top, drawn).bytes


def encode(
    top_ids_NT: Int[np.ndarray, "N T"],
    top_p_NT: Float[np.ndarray, "N T"],
    tail_N: Float[np.ndarray, " N"],
    drawn_ids_ND: Int[np.ndarray, "N D"],
    *,
    choices: int,
) -> UInt8[np.ndarray, "N Y"]:
    """Positions as bytes. The top must be sorted, likeliest first, and add up to 1 with tail_N.

    A probability e^-g times its neighbour's is off by at most 0.7 + 0.4 g percent of itself, as
    much again by their sum, and one below e^-12 times is kept as that; the rest's by at most
    0.02 %, and below 2e-9 it is kept as 0.
    """
    (N, T), D = top_ids_NT.shape, drawn_ids_ND.shape[1]
    form = layout(choices, T, D)
    parts = []
    if T:
        with np.errstate(divide="ignore"):
            depth_N = -np.log(tail_N.astype(np.float64)) / TAIL_STEP
        parts.append(_bits(np.minimum(depth_N.round(), NO_TAIL)[:, None], TAIL_BITS))
        parts.append(_bits(top_ids_NT, form.ids))
        parts.append(_bits(_gaps(top_p_NT), 8))
    if D:
        sorted_ND = np.sort(drawn_ids_ND, axis=-1).astype(np.int64)
        parts.append(_bits(sorted_ND, form.low))
        if form.high:
            unary_NL = np.zeros((N, form.high), np.uint8)
            np.put_along_axis(unary_NL, (sorted_ND >> form.low) + np.arange(D), 1, axis=-1)
            parts.append(unary_NL)
    return np.packbits(np.concatenate(parts, axis=-1), axis=-1)


def decode(
    packed_NY: UInt8[np.ndarray, "N Y"], *, choices: int, top: int, drawn: int
) -> tuple[
    Int[np.ndarray, "N T"],
    Float[np.ndarray, "N T"],
    Float[np.ndarray, " N"],
    Int[np.ndarray, "N D"],
]:
    """What `encode` was given, nearly: ids exactly (the drawn ones sorted), probabilities float32.

    The top's are made to add up to 1 - rest, whose value is kept. This is how they are coded
    (ratios, and their sum), no renormalising of a cut distribution: the rest keeps its share.
    """
    form, N = layout(choices, top, drawn), len(packed_NY)
    bits_NL, at = np.unpackbits(packed_NY, axis=-1), 0

    def take(count: int, wide: int) -> np.ndarray:
        nonlocal at
        part, at = bits_NL[:, at : at + count * wide], at + count * wide
        return _numbers(part.reshape(N, count, wide))

    tail_N = np.ones(N, np.float32)
    ids_NT, p_NT = np.empty((N, 0), np.int64), np.empty((N, 0), np.float32)
    if top:
        depth_N = take(1, TAIL_BITS)[:, 0]
        tail_N = np.where(depth_N == NO_TAIL, 0.0, np.exp(-TAIL_STEP * depth_N)).astype(np.float32)
        ids_NT = take(top, form.ids)
        p_NT = _probabilities(take(top - 1, 8), 1 - tail_N)
    drawn_ND = take(drawn, form.low)
    if form.high:
        places = np.flatnonzero(bits_NL[:, at : at + form.high]).reshape(N, drawn) % form.high
        drawn_ND = drawn_ND | (places - np.arange(drawn)) << form.low
    return ids_NT, p_NT, tail_N, drawn_ND


def _gaps(p_NT: np.ndarray) -> np.ndarray:
    """Levels of how far each log-probability is below the one before, as that will be decoded, so
    that errors do not add up."""
    with np.errstate(divide="ignore"):
        logp_NT = np.log(p_NT.astype(np.float64))
    levels, before_N = [], logp_NT[:, 0]
    for logp_N in logp_NT[:, 1:].T:
        level_N = np.searchsorted(MIDDLES, before_N - logp_N)
        levels.append(np.where(logp_N == -np.inf, UNUSED, level_N))
        before_N = before_N - GAPS[level_N]
    return np.stack(levels, -1) if levels else np.empty((len(p_NT), 0), np.int64)


def _probabilities(levels_NT: np.ndarray, sum_N: np.ndarray) -> np.ndarray:
    """From the levels of all but the first, whose own is 0."""
    step_NT = np.append(GAPS, np.inf).astype(np.float32)[levels_NT]
    p_NT = np.exp(-np.cumsum(step_NT, axis=-1))
    p_NT = np.concatenate([np.ones((len(p_NT), 1), np.float32), p_NT], axis=-1)
    return p_NT * (sum_N / p_NT.sum(-1))[:, None]


def _bits(numbers_NX: np.ndarray, wide: int) -> np.ndarray:
    """The lowest `wide` bits of each, the highest of them first: N x (X W)."""
    shifts = np.arange(wide - 1, -1, -1)
    bits_NXW = (numbers_NX.astype(np.int64)[:, :, None] >> shifts) & 1
    return bits_NXW.astype(np.uint8).reshape(len(numbers_NX), -1)


def _numbers(bits_NXW: np.ndarray) -> np.ndarray:
    """Bits, the highest first, as numbers: N x X. By a matrix product, which is quick."""
    N, X, W = bits_NXW.shape
    powers = np.float32(2) ** np.arange(W - 1, -1, -1, dtype=np.float32)
    flat = bits_NXW.reshape(N * X, W).astype(np.float32) @ powers
    return flat.reshape(N, X).astype(np.int64)
