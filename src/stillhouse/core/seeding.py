"""Randomness that depends on what it is for, never on what ran before.

Every draw comes from a seed derived from (run seed, purpose, position). A resumed run therefore
needs no saved generator state, and adding a draw in one place moves none in another.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of a run."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator for one purpose of a run."""
    return np.random.Generator(np.random.SFC64(derive(seed, *purpose)))


def shape_seed(seed: int) -> int:
    """The seed of a student's fresh weights, as torch takes it."""
    return derive(seed, "weights") % 2**31
