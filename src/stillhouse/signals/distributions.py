"""A teacher's distributions over a vocabulary on disk: some choices of each scored row, packed.

A record holds one example's scored rows, in their order; how records are kept, and what a kill
leaves, says `records.py`; what is taken of a distribution, `numerics/sparse.py`; how many bits
that is, `numerics/packing.py`. Choices are drawn by the example's content and the row's place in
it: the same ones in any batch.

Axes: N scored rows, K choices, U uniform numbers, B examples, Y bytes of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt64
from torch import Tensor

from stillhouse.core.config import LabelConfig
from stillhouse.core.errors import RunError
from stillhouse.core.progress import Advance
from stillhouse.core.types import Batch, Dense, Estimator, Sparse, Unscored
from stillhouse.numerics import packing, sparse
from stillhouse.numerics.divergences import soften
from stillhouse.signals.records import ENTRY, Records
from stillhouse.signals.teacher import LiveTeacher, ask
from stillhouse.tasks.base import Data

Draw = Literal["systematic", "independent"]


class Counted(Data, Protocol):
    """Data whose examples have several scored rows each."""

    def scored_counts(self, rows: np.ndarray) -> np.ndarray:
        """How many scored rows each of the examples at `rows` has; those of one example follow
        each other in a batch, in the examples' order."""
        ...


class DistributionCache(Records):
    """One teacher's distributions under one setting: the `top` likeliest of the first `choices`
    (a padded vocabulary has more), and `drawn` of the rest, at `temperature`. `identity` is
    everything the scores depend on, the tokens included."""

    def __init__(
        self,
        root: Path,
        identity: dict[str, object],
        *,
        choices: int,
        top: int,
        drawn: int,
        temperature: float = 1.0,
        draw: Draw = "systematic",
    ) -> None:
        self.choices, self.top, self.drawn = choices, top, drawn
        self.temperature, self.draw = temperature, draw
        numbers = {"choices": choices, "top": top, "drawn": drawn}
        form = {**numbers, "temperature": temperature, "draw": draw}
        size = packing.position_bytes(choices, top, drawn)
        super().__init__(root, "distributions", form, identity, token_bytes=size)

    def bytes_needed(self, counts: np.ndarray) -> int:
        """What examples of so many scored rows will take on the disk: give those `missing`."""
        rows = int(np.sum(counts, dtype=np.int64))
        return rows * self.token_bytes + len(counts) * ENTRY.itemsize

    def sparse(
        self,
        scores_NK: Float[Tensor, "N K"],
        key: UInt64[np.ndarray, " 2"],
        estimator: Estimator = "tail",
    ) -> Sparse:
        """What is taken of the scored rows of one example, before it is packed.

        Raises RunError if a score is not finite: -inf would forbid a choice, and no probability
        of 0 is kept but by leaving choices after the first K out.
        """
        scores_NK = scores_NK[:, : self.choices].float()
        if scores_NK.shape[1] != self.choices:
            raise RunError(f"the teacher scores {scores_NK.shape[1]} choices, not {self.choices}")
        if not torch.isfinite(scores_NK).all():
            bad = int((~torch.isfinite(scores_NK)).any(-1).sum())
            raise RunError(
                f"the teacher's scores are not finite in {bad} of {len(scores_NK)} rows (choices "
                "at -inf can't be kept): check its weights, use --set label.precision=float32"
            )
        # A generator that is keyed, so that a row's numbers are its place's: 128 bits of content.
        numbers = np.random.Generator(np.random.Philox(key=key))
        U = self.drawn if self.draw == "independent" else 1
        uniform_NU = torch.from_numpy(numbers.random((len(scores_NK), U))).to(scores_NK.device)
        logp_NK = soften(scores_NK, self.temperature).log_softmax(-1)
        ids_NT, p_NT, tail_N, drawn_ND = sparse.choose(
            logp_NK, uniform_NU, top=self.top, drawn=self.drawn
        )
        return Sparse(ids_NT, p_NT, tail_N, drawn_ND, estimator, self.temperature)

    def record(self, scores_NK: Float[Tensor, "N K"], key: UInt64[np.ndarray, " 2"]) -> bytes:
        """What is kept of the scored rows of one example."""
        if not len(scores_NK):
            return b""
        found = self.sparse(scores_NK, key)
        parts = (found.top_ids_NT, found.top_p_NT, found.tail_N, found.drawn_ids_ND)
        return packing.encode(
            *(part.cpu().numpy() for part in parts), choices=self.choices
        ).tobytes()

    def read(self, positions: np.ndarray, estimator: Estimator, device: torch.device) -> Sparse:
        """The records at `positions`, one after the other. Raises RunError if one is damaged."""
        records = [self.record_at(position) for position in positions.tolist()]
        packed_NY = np.concatenate([np.empty(0, np.uint8), *records]).reshape(-1, self.token_bytes)
        found = packing.decode(packed_NY, choices=self.choices, top=self.top, drawn=self.drawn)
        ids_NT, p_NT, tail_N, drawn_ND = (torch.from_numpy(part).to(device) for part in found)
        return Sparse(ids_NT, p_NT, tail_N, drawn_ND, estimator, self.temperature)


def keep_distributions(
    teacher: LiveTeacher,
    cache: DistributionCache,
    config: LabelConfig,
    *,
    counts: Callable[[np.ndarray], np.ndarray],
    progress: Advance = lambda rows: None,
) -> int:
    """Asks the teacher for every row of its data that the cache lacks; how many were asked.

    `counts`: how many scored rows examples have (`Counted.scored_counts`)."""
    data = teacher.data
    assert data is not None

    def records(batch: Batch) -> list[bytes]:
        signal = teacher.signal(batch)
        assert isinstance(signal, Dense | Unscored), "the teacher is to be scored"
        ends = np.cumsum(counts(batch.rows))
        spans = zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)
        assert ends[-1] == batch.scored, (ends, batch.scored)
        keys_B2 = data.keys_N2[batch.rows]
        return [
            cache.record(signal.part(slice(*span)).scores_NK, key)
            for span, key in zip(spans, keys_B2, strict=True)
        ]

    return ask(teacher, cache, records, config, progress=progress)


class CachedDistributions:
    """A source of distributions from a cache. Every example must be in it."""

    kind = Sparse

    def __init__(
        self,
        cache: DistributionCache,
        keys_N2: np.ndarray,
        counts: Callable[[np.ndarray], np.ndarray],
        estimator: Estimator,
    ) -> None:
        self._cache, self._counts = cache, counts
        self.estimator: Estimator = estimator
        self._positions = cache.positions_of_all(keys_N2)
        self.fingerprint = cache.fingerprint

    def signal(self, batch: Batch) -> Sparse:
        """Raises RunError where an example's scored rows are not as many as were kept."""
        positions = self._positions[batch.rows]
        mine, kept = self._counts(batch.rows), self._cache.tokens(positions)
        if (mine != kept).any():
            row = int((mine != kept).argmax())
            raise RunError(
                f"an example has {mine[row]} scored tokens, and {kept[row]} in "
                f"{self._cache.folder}: its distributions were kept for other tokens or masks"
            )
        device = next((x.device for x in batch.inputs.values()), torch.device("cpu"))
        return self._cache.read(positions, self.estimator, device)
