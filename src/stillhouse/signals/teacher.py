"""A live teacher, asking it for a whole pool, and checking a cache against it.

Axes: N rows, K choices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.config import LabelConfig
from stillhouse.core.errors import RunError
from stillhouse.core.head import Factored
from stillhouse.core.memory import keep_freed
from stillhouse.core.precision import precision_of
from stillhouse.core.progress import Advance
from stillhouse.core.types import (
    Batch,
    Dense,
    Signal,
    SignalSource,
    States,
    Tap,
    Unscored,
    states_of,
)
from stillhouse.data.batching import sorted_batches
from stillhouse.models.forward import (
    NOTHING,
    fast_weights,
    has_fast_path,
    needed,
    readable_fast,
    run,
)
from stillhouse.models.weights import Pair
from stillhouse.signals.cache import AnswerCache
from stillhouse.tasks.base import Data

# How far a cached probability may be from a live one: bf16 keeps 8 bits of each number.
TOLERANCE = {"bf16": 0.05, "float32": 1e-3}
CHECKED = 16  # rows at a time: a short one is not filled up to the longest


class LiveTeacher:
    """A model that answers each batch as it comes: eval mode, no gradient, its own tokenizer.

    `data`: the examples in the teacher's tokens; without it, the batch's own tokens (which may be
    masked) are asked. `reads`: what is read inside it; without `scored` only that, and on the fast
    path nothing above it is computed. `choices`: of a model that writes, see `run`.
    """

    kind = Dense

    def __init__(
        self,
        model: nn.Module,
        data: Data | None,
        *,
        fingerprint: str,
        precision: str,
        fast: bool = True,
        reads: Collection[Tap] = NOTHING,
        scored: bool = True,
        choices: int | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.data = data
        self.fingerprint = fingerprint
        self._precision = precision_of(precision)
        self._reads, self._scored = frozenset(reads), scored
        self._choices = choices
        self._fast = fast and has_fast_path(model) and readable_fast(reads)
        self._weights: list[Pair] | None = None

    def signal(self, batch: Batch) -> Dense | Unscored | States:
        device = next(iter(batch.inputs.values())).device if batch.inputs else None
        if device is not None and next(self.model.parameters()).device != device:
            self.model.to(device)  # where the student is trained
            self._weights = None
        asked = batch if self.data is None else self.data.batch(batch.rows)
        with torch.no_grad():
            if self._fast and self._weights is None:  # they never change
                stop = None if self._scored else needed(self._reads)
                self._weights = fast_weights(self.model, self._precision, stop)
            found = run(
                self.model,
                asked.to(next(self.model.parameters()).device),
                precision=self._precision,
                fast=self._fast,
                weights=self._weights,
                reads=self._reads,
                scored=self._scored,
                choices=self._choices,
            )
        if self._scored and isinstance(found.scores, Factored):
            return Unscored(found.scores, found.states)
        if self._scored:
            return Dense(found.scores_NK, found.states)
        assert found.states is not None
        return found.states

    def scores(self, batch: Batch) -> Tensor:
        """N x K."""
        found = self.signal(batch)
        if isinstance(found, Unscored):
            return found.factored.dense()
        assert isinstance(found, Dense)
        return found.scores_NK


class WithStates:
    """Answers from one source, and from another what is read inside the same teacher."""

    def __init__(self, answers: SignalSource, states: SignalSource) -> None:
        self._answers, self._states = answers, states
        self.kind, self.fingerprint = answers.kind, answers.fingerprint

    def signal(self, batch: Batch) -> Signal:
        found = self._answers.signal(batch)
        assert not isinstance(found, States)
        return replace(found, states=states_of(self._states.signal(batch)))


def label(
    teacher: LiveTeacher,
    cache: AnswerCache,
    config: LabelConfig,
    *,
    progress: Advance = lambda rows: None,
) -> int:
    """Asks the teacher for every row of its data that the cache lacks; how many were asked."""

    def answers(batch: Batch) -> np.ndarray:
        return teacher.scores(batch).cpu().numpy()

    return ask(teacher, cache, answers, config, progress=progress)


def ask(
    teacher: LiveTeacher,
    cache: Any,
    records: Callable[[Batch], Any],
    config: LabelConfig,
    *,
    progress: Advance,
) -> int:
    """Appends to `cache` the `records` of every row of the teacher's data that it lacks.

    Rows are asked shortest first in batches that do not depend on how far an earlier try came.
    """
    keep_freed()
    data = teacher.data
    assert data is not None
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
            lacking = np.flatnonzero(~done[rows])
            if len(lacking):
                found = records(data.batch(rows))
                writer.append(data.keys_N2[rows[lacking]], [found[i] for i in lacking])
                asked += len(lacking)
            progress(len(rows))
    return asked


def check(
    live: LiveTeacher, cached: Callable[[Batch], Dense], *, rows: np.ndarray, tolerance: float
) -> float:
    """The largest difference between cached and live answers on `rows`: of probabilities, or of
    values where K = 1, relative to how far these are from their mean if that is over 1.

    Raises RunError where it is over `tolerance`: the cache is another teacher's.
    """
    data = live.data
    assert data is not None
    lengths = data.lengths[rows]
    parts = sorted_batches(lengths, size=CHECKED, max_tokens=CHECKED * int(lengths.max()))
    batches = [data.batch(rows[part]) for part in parts]
    with torch.no_grad():
        theirs = torch.cat([live.scores(batch).cpu() for batch in batches])
        mine = torch.cat([cached(batch).scores_NK.cpu() for batch in batches])
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
