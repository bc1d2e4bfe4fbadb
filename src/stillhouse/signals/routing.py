"""Teachers that divide the examples among them: each its own group, some of them switched off.

Axes: N scored rows, K choices, B examples, T tokens or places of a sparse top, D drawn choices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from stillhouse.core.errors import ModelError, RunError
from stillhouse.core.types import (
    Batch,
    Dense,
    Labels,
    Signal,
    SignalSource,
    Sparse,
    States,
    Unscored,
)
from stillhouse.signals.ensemble import drawing, fingerprint, one_kind, slices, taught_by, width_of

SCORED = ("decoder_input_ids", "input_ids")  # whose tokens are scored: the first there is

Counts = Callable[[Batch], np.ndarray]
Piece = tuple[Tensor, Signal]  # which rows of a batch, and the answers to them


def scored_counts(batch: Batch) -> np.ndarray:
    """How many scored rows each example of a batch has, B: those of one follow each other."""
    size = len(batch.rows)
    if batch.scored_N is None:
        return np.full(size, 1 if batch.answerable_BT is None else 2)
    return np.bincount(batch.scored_N.cpu().numpy() // _tokens(batch), minlength=size)


class Routed:
    """Each example is answered by the teacher that its group (language, task) names.

    `routes_N`: the group of each example by its position in the data. Each teacher is asked for
    its own examples only; groups without one are not taught. All teachers have to score the same
    choices, `width` of them; where it is left out it is seen from the answers, and a batch
    without a teacher is a RunError. Raises ModelError where they don't.
    """

    def __init__(
        self,
        sources: Mapping[str, SignalSource],
        routes_N: np.ndarray,
        *,
        width: int | None = None,
        counts: Counts = scored_counts,
    ) -> None:
        self.sources = tuple(sources.values())
        self.kind = one_kind(self.sources)
        self._by_group, self._routes_N = dict(sources), routes_N
        self._width, self._counts = width, counts
        told = hashlib.blake2b(json.dumps(routes_N.tolist()).encode()).hexdigest()
        self.fingerprint = fingerprint("routed", self.sources, [*sources, told])

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        groups_B = self._routes_N[batch.rows]
        asked = [(groups_B == group, source) for group, source in self._by_group.items()]
        return _ask(batch, asked, self._counts(batch), self._width)


@runtime_checkable
class Gate(Protocol):
    """How far a group's teacher is switched on: 0 not at all, 1 wholly."""

    def weight(self, group: str) -> float: ...


class Gated:
    """A source that is silent on groups whose teacher is switched off, and isn't asked for them.

    `gate`: whether a group's teacher is on (it is where the group is not named). A weight between
    0 and 1 is an example's chance of being taught, so that the expected loss is that much of the
    teacher's. Who is taught follows from the seed, the batch's rows, and the gate at that moment.
    """

    def __init__(
        self,
        source: SignalSource,
        gate: Gate | Mapping[str, bool],
        routes_N: np.ndarray,
        *,
        seed: int = 0,
        width: int | None = None,
        counts: Counts = scored_counts,
    ) -> None:
        self.kind, self.sources = one_kind([source]), (source,)
        self._gate, self._routes_N = gate, routes_N
        self._seed, self._width, self._counts = seed, width, counts
        self.fingerprint = fingerprint("gated", self.sources, [seed])

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        weight_B = np.array([self._weight(group) for group in self._routes_N[batch.rows]])
        taught_B = drawing(self._seed, "gate", batch).random(len(weight_B)) < weight_B
        return _ask(batch, [(taught_B, self.sources[0])], self._counts(batch), self._width)

    def _weight(self, group: str | None) -> float:
        if group is None:
            return 1.0
        if isinstance(self._gate, Mapping):
            return float(self._gate.get(group, True))
        return self._gate.weight(group)


def _ask(
    batch: Batch,
    asked: Sequence[tuple[np.ndarray, SignalSource]],
    counts_B: np.ndarray,
    width: int | None,
) -> Signal:
    """Each source's answers to the examples that are its own, in the batch's order."""
    for inside_B, source in asked:
        if inside_B.all():
            return source.signal(batch)
    if counts_B.sum() != batch.scored:
        raise RunError(f"{counts_B.sum()} scored rows were counted in a batch of {batch.scored}")
    owner_N = np.repeat(np.arange(len(counts_B)), counts_B)
    pieces: list[Piece] = []
    for inside_B, source in asked:
        if inside_B.any():
            rows_M = torch.from_numpy(np.flatnonzero(inside_B[owner_N]))
            found = source.signal(_cut(batch, inside_B, rows_M))
            if isinstance(found, States) or len(taught_by(found)) != len(rows_M):
                raise ModelError(
                    f"a teacher did not score the {len(rows_M)} rows it was asked for: "
                    "teachers that share a batch have to cut texts alike"
                )
            pieces.append((rows_M, found))
    return _put_back(pieces, batch, width)


def _cut(batch: Batch, inside_B: np.ndarray, rows_M: Tensor) -> Batch:
    """The examples of a batch that are `inside`; their scored rows are the batch's at `rows`."""
    at = torch.from_numpy(np.flatnonzero(inside_B))

    def of(values: Tensor | None, index: Tensor) -> Tensor | None:
        return None if values is None else values[index.to(values.device)]

    scored_M = of(batch.scored_N, rows_M)
    if scored_M is not None:
        tokens, new_B = _tokens(batch), torch.from_numpy(np.cumsum(inside_B) - 1)
        scored_M = new_B.to(scored_M.device)[scored_M // tokens] * tokens + scored_M % tokens
    inputs = {name: values[at.to(values.device)] for name, values in batch.inputs.items()}
    gold_M, answerable_BT = of(batch.gold_N, rows_M), of(batch.answerable_BT, at)
    return Batch(inputs, batch.rows[inside_B], gold_M, scored_M, answerable_BT)


def _tokens(batch: Batch) -> int:
    """T of the tokens that are scored."""
    return next(batch.inputs[name].shape[1] for name in SCORED if name in batch.inputs)


def _put_back(pieces: Sequence[Piece], batch: Batch, width: int | None) -> Signal:
    """One signal of all rows of `batch`; nobody speaks on rows that no piece has."""
    if not pieces:
        if width is None:
            raise RunError("no example of a batch has a teacher: say how many choices there are")
        device = next(iter(batch.inputs.values())).device if batch.inputs else None
        silent_N = torch.zeros(batch.scored, dtype=torch.bool, device=device)
        return Dense(torch.zeros((), device=device).expand(batch.scored, width), None, silent_N)
    rows, signals = [rows_M for rows_M, _ in pieces], [signal for _, signal in pieces]
    taught_N = _filled([taught_by(signal) for signal in signals], rows, batch.scored)
    taught = None if taught_N.all() else taught_N
    if all(isinstance(signal, Sparse) for signal in signals):
        return replace(_sparse(cast(list[Sparse], signals), rows, batch.scored), taught_N=taught)
    if all(isinstance(signal, Labels) for signal in signals):
        labels = [cast(Labels, signal).labels_N for signal in signals]
        return Labels(_filled(labels, rows, batch.scored), None, taught)
    return Dense(_dense(signals, rows, batch.scored, width), None, taught)


def _dense(
    signals: Sequence[Signal], rows: Sequence[Tensor], scored: int, width: int | None
) -> Tensor:
    """Scores of all rows, N x K, 0 where there are none."""
    scores = []
    for signal in signals:
        if not isinstance(signal, Dense | Unscored):
            raise ModelError("teachers that share a batch have to answer alike: label them anew")
        if width_of(signal) != (width := width or width_of(signal)):
            raise ModelError(
                f"a teacher scores {width_of(signal)} choices and not {width}: "
                "teachers that share a batch need the same vocabulary"
            )
        parts = [signal.part(part).scores_NK for part in slices(len(taught_by(signal)))]
        scores.append(torch.cat(parts))
    return _filled(scores, rows, scored)


def _sparse(signals: Sequence[Sparse], rows: Sequence[Tensor], scored: int) -> Sparse:
    """Sparse distributions of all rows, certain of one choice where there is none: every estimator
    and its gradient is finite there."""
    first, most = signals[0], max(signal.top_p_NT.shape[1] for signal in signals)
    for signal in signals:
        mine, theirs = (
            (s.estimator, s.temperature, s.drawn_ids_ND.shape[1]) for s in (first, signal)
        )
        if mine != theirs:
            raise ModelError(
                f"teachers' answers were kept in two ways, {mine} and {theirs} (estimator, "
                "temperature, draws): label one of them anew"
            )
    room = [(0, most - signal.top_p_NT.shape[1]) for signal in signals]
    pad = torch.nn.functional.pad
    padded_ids = [pad(s.top_ids_NT, by) for s, by in zip(signals, room, strict=True)]
    padded_p = [pad(s.top_p_NT, by) for s, by in zip(signals, room, strict=True)]
    certain_T = (torch.arange(most) == 0).float()
    return Sparse(
        _filled(padded_ids, rows, scored),
        _filled(padded_p, rows, scored, empty=certain_T),
        _filled([signal.tail_N for signal in signals], rows, scored, empty=1 - certain_T.sum()),
        _filled([signal.drawn_ids_ND for signal in signals], rows, scored),
        first.estimator,
        first.temperature,
    )


def _filled(
    values: Sequence[Tensor], rows: Sequence[Tensor], scored: int, *, empty: Tensor | None = None
) -> Tensor:
    """The values at their rows, `empty` (0) at the others; in the widest of their dtypes."""
    dtype = values[0].dtype
    for other in values[1:]:
        dtype = torch.promote_types(dtype, other.dtype)
    first = values[0]
    out = torch.zeros((scored, *first.shape[1:]), dtype=dtype, device=first.device)
    if empty is not None:
        out += empty.to(out)
    for value, at in zip(values, rows, strict=True):
        out[at.to(first.device)] = value.to(first.device, dtype)
    return out
