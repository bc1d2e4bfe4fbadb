"""What an int8 file's answers owe to the rows beside them. Axes: N rows.

Dynamic quantisation gives all activations of a batch one scale, which follows the largest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from stillhouse.core.results import BatchResult
from stillhouse.core.types import Batch
from stillhouse.tasks.base import Data, Task

ALONE, TOGETHER = 500, 32  # rows that are answered one by one, and rows of a batch
Answer = Callable[[Data, int], np.ndarray]  # scores of a data set, so many rows together


@dataclass(frozen=True)
class Some:
    """Some rows of a data set whose rows are scored one by one."""

    data: Data
    rows_N: np.ndarray

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def lengths(self) -> np.ndarray:
        return self.data.lengths[self.rows_N]

    @property
    def keys_N2(self) -> np.ndarray:
        return self.data.keys_N2[self.rows_N]

    @property
    def gold_N(self) -> Tensor:
        return self.data.gold_N[self.rows_N]

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        return self.data.batch(self.rows_N[rows], rng)

    def places(self, rows: np.ndarray) -> np.ndarray:
        return rows


def batch_result(answer: Answer, data: Data, task: Task) -> BatchResult | None:
    """The metric of the first to the last of up to 500 rows, spread evenly: each alone, and 32
    together. None for many passages in windows, which would take long."""
    if task.name == "span":
        if len(data) > ALONE:
            return None
        some: Data = data
    else:
        count = min(ALONE, len(data))
        some = Some(data, np.unique(np.linspace(0, len(data) - 1, count).astype(np.int64)))
    alone, together = (task.predictions(answer(some, size), some) for size in (1, TOGETHER))
    if task.name == "regression":
        changed = ~np.isclose(alone.answers_N, together.answers_N, rtol=0, atol=1e-4)
    else:
        changed = alone.answers_N != together.answers_N
    return BatchResult(
        rows=len(alone.answers_N),
        batch=TOGETHER,
        alone=task.score(alone)[task.metric],
        together=task.score(together)[task.metric],
        changed=int(np.sum(changed)),
    )
