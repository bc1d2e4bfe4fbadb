"""Which rows each optimizer step gets; it follows from lengths, settings and seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stillhouse.core.config import TrainingConfig
from stillhouse.core.seeding import generator
from stillhouse.data.batching import shuffled_batches
from stillhouse.tasks.base import Data


def step_batches(data: Data, config: TrainingConfig, seed: int) -> Iterator[list[np.ndarray]]:
    """The rows of each optimizer step's micro-batches, epoch after epoch, without end."""
    epoch = 0
    while True:
        batches = shuffled_batches(
            data.lengths,
            size=config.batch_size,
            max_tokens=config.max_tokens,
            rng=generator(seed, "order", epoch),
        )
        for start in range(0, len(batches), config.accumulation):
            yield batches[start : start + config.accumulation]
        epoch += 1


def steps_per_epoch(data: Data, config: TrainingConfig, seed: int) -> int:
    first = shuffled_batches(
        data.lengths,
        size=config.batch_size,
        max_tokens=config.max_tokens,
        rng=generator(seed, "order", 0),
    )
    return -(-len(first) // config.accumulation)
