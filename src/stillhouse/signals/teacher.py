"""A live teacher, asking it for a whole pool, and checking a cache against it.

Axes: N rows, K choices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from stillhouse.core.config import LabelConfig
from stillhouse.core.errors import RunError
from stillhouse.core.memory import keep_freed
from stillhouse.core.types import Batch, Dense
from stillhouse.data.batching import sorted_batches
from stillhouse.models.forward import fast_weights, has_fast_path, scores
from stillhouse.models.weights import Pair
from stillhouse.signals.cache import AnswerCache
from stillhouse.tasks.base import Dataset

# How far a cached probability may be from a live one: bf16 keeps 8 bits of each number.
TOLERANCE = {"bf16": 0.05, "float32": 1e-3}


class LiveTeacher:
    """A model that answers each batch as it comes: eval mode, no gradient, its own tokenizer."""

    kind = Dense

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        *,
        fingerprint: str,
        precision: str,
        fast: bool = True,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.data = data
        self.fingerprint = fingerprint
        self._precision, self._fast = precision, fast and has_fast_path(model)
        self._weights: list[Pair] | None = None

    def signal(self, batch: Batch) -> Dense:
        device = next(self.model.parameters()).device
        inputs = self.data.batch(batch.rows).to(device).inputs
        settings: dict[str, Any] = {"precision": self._precision, "fast": self._fast}
        with torch.no_grad():
            if self._fast and self._weights is None:  # they never change
                self._weights = fast_weights(self.model, self._precision)
            return Dense(scores(self.model, inputs, weights=self._weights, **settings))


def label(
    teacher: LiveTeacher,
    cache: AnswerCache,
    config: LabelConfig,
    *,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Asks the teacher for every row of its data that the cache lacks; how many were asked.

    Rows are asked shortest first in batches that do not depend on how far an earlier try came.
    """
    keep_freed()
    data = teacher.data
    asked = 0
    with cache.writing() as writer:
        pending = cache.pending(data.keys_N2)
        done = cache.positions(data.keys_N2) >= 0
        progress(len(data) - len(pending))
        batches = sorted_batches(
            data.lengths[pending], size=config.batch_size, max_tokens=config.max_tokens
        )
        for part in batches:
            rows = pending[part]
            missing = ~done[rows]
            if missing.any():
                answers = teacher.signal(data.batch(rows)).scores_NK.cpu().numpy()
                writer.append(data.keys_N2[rows][missing], answers[missing])
                asked += int(missing.sum())
            progress(len(rows))
    return asked


def check(
    live: LiveTeacher, cached: Callable[[Batch], Dense], *, rows: np.ndarray, tolerance: float
) -> float:
    """The largest difference between cached and live answers on `rows`: of probabilities, or of
    values where K = 1, relative to how far these are from their mean if that is over 1.

    Raises RunError where it is over `tolerance`: the cache is another teacher's.
    """
    batch = live.data.batch(rows)
    with torch.no_grad():
        theirs, mine = live.signal(batch).scores_NK.cpu(), cached(batch).scores_NK.cpu()
    if theirs.shape[-1] == 1:
        spread = (theirs - theirs.mean()).abs().max().clamp(min=1.0)
        difference = (theirs - mine).abs().max() / spread
    else:
        difference = (theirs.softmax(-1) - mine.softmax(-1)).abs().max()
    found = float(difference)
    if not found <= tolerance:
        raise RunError(
            f"the cached answers are not this teacher's: they differ by up to {found:.3f} "
            f"(allowed {tolerance}): give another --cache, or delete this one"
        )
    return found
