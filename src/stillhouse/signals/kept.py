"""A teacher's hidden states, asked for once and then read from their cache at each step.

Axes: B examples, T tokens, H hidden; keys are N x 2.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from stillhouse.core.config import LabelConfig
from stillhouse.core.errors import RunError
from stillhouse.core.progress import Advance
from stillhouse.core.types import Batch, States, Tap
from stillhouse.signals.states import StatesCache
from stillhouse.signals.teacher import LiveTeacher, ask


def keep_states(
    teacher: LiveTeacher,
    cache: StatesCache,
    config: LabelConfig,
    *,
    progress: Advance = lambda rows: None,
) -> int:
    """Asks the teacher, which reads the cache's layers and no more, for every row of its data that
    the cache lacks; how many were asked."""
    taps = {Tap("hidden", layer) for layer in cache.layers}

    def records(batch: Batch) -> list[bytes]:
        states = teacher.signal(batch)
        assert isinstance(states, States), "the teacher is not to be scored"
        assert set(states.found) == taps, "the teacher reads what the cache keeps"
        return cache.records(states)

    return ask(teacher, cache, records, config, progress=progress)


class CachedStates:
    """A source of states from a cache. Every row must be in it.

    Padded tokens' states are zeros. The mask is the batch's own, as a live teacher's is; pooled
    states are B x 1 x H, their one token is always real.
    """

    kind = States

    def __init__(self, cache: StatesCache, keys_N2: np.ndarray) -> None:
        self._cache = cache
        self._positions = cache.positions_of_all(keys_N2)
        self.fingerprint = cache.fingerprint

    def signal(self, batch: Batch) -> States:
        """Raises RunError where a row's tokens are not as many as were kept."""
        cache, positions = self._cache, self._positions[batch.rows]
        mask_BT = batch.inputs["attention_mask"].bool()
        if cache.pooled:
            found = cache.read(positions, 1, mask_BT.device)
        else:
            self._check_tokens(positions, mask_BT)
            found = cache.read(positions, mask_BT.shape[1], mask_BT.device)
        taps = [Tap("hidden", layer) for layer in cache.layers]
        return States(dict(zip(taps, found, strict=True)), mask_BT)

    def _check_tokens(self, positions: np.ndarray, mask_BT: Tensor) -> None:
        mine, kept = mask_BT.sum(-1).cpu().numpy(), self._cache.tokens(positions)
        if (mine != kept).any():
            row = int((mine != kept).argmax())
            raise RunError(
                f"a row has {mine[row]} tokens, and {kept[row]} in {self._cache.folder}: "
                "its states were kept for another tokenizer or length"
            )
