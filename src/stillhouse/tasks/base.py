"""What a task is, and a data set as the loop sees it. Axes: N rows, K choices, B examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.core.types import Batch, Predictions
from stillhouse.data.encoding import Encoded, encode
from stillhouse.data.sources import Pool


@runtime_checkable
class Inputs(Protocol):
    """Model inputs by position. `lengths` says how long each row is (1 for vectors)."""

    @property
    def lengths(self) -> np.ndarray: ...
    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]: ...


@runtime_checkable
class Data(Protocol):
    """What is trained on and answered: batches by position, and where their answers belong."""

    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def keys_N2(self) -> np.ndarray: ...
    @property
    def gold_N(self) -> Tensor: ...
    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """The examples at `rows`; with a generator, as they are trained on (masked anew)."""
        ...

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where the scored rows of the examples at `rows` stand in `gold_N`."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Inputs, content keys, and gold answers (NO_LABEL or NaN where there are none)."""

    source: Inputs
    keys_N2: np.ndarray
    gold_N: Tensor

    def __len__(self) -> int:
        return len(self.gold_N)

    @property
    def lengths(self) -> np.ndarray:
        return self.source.lengths

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        del rng  # nothing is drawn
        return Batch(self.source.inputs(rows), rows, self.gold_N[torch.from_numpy(rows)])

    def places(self, rows: np.ndarray) -> np.ndarray:
        return rows


@runtime_checkable
class Task(Protocol):
    name: str
    judges_texts: bool  # whether it looks at what a model writes
    metric: str
    choices: list[str]  # names of the choices, where they are few
    width: int  # how many choices a row has

    def gold(self, labels: np.ndarray) -> Tensor:
        """Labels as text (object array, None where missing) -> a tensor of gold answers."""
        ...

    def has_gold(self, gold_N: Tensor) -> Tensor:
        """True where there is a gold answer."""
        ...

    def reduce(self, scores_NK: Tensor, gold_N: Tensor) -> Tensor:
        """What is kept of a model's scores: all of them, or what scoring needs."""
        ...

    def predictions(self, scores_NK: np.ndarray, data: Data) -> Predictions:
        """Answers to `data` from what `reduce` kept."""
        ...

    def score(self, predictions: Predictions) -> dict[str, float]:
        """Every metric of the task, by name."""
        ...

    def metric_of(self, answers_N: np.ndarray, gold_N: np.ndarray, name: str) -> float: ...

    def agreement(self, mine_N: np.ndarray, theirs_N: np.ndarray) -> float: ...

    def show(self, answer: Any) -> str: ...


def text_dataset(
    task: Task, pool: Pool, tokenizer: PreTrainedTokenizerBase, store: Path, *, max_length: int
) -> Dataset:
    """A pool of texts, encoded with one tokenizer."""
    encoded: Encoded = encode(pool, tokenizer, store / "tokens", max_length=max_length)
    return Dataset(encoded, pool.keys_N2, task.gold(pool.labels))
