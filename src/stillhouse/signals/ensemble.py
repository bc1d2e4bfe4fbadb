"""Several teachers as one: their mean, or one of them a batch; and how far they agree.

Each is a source made of sources (routing.py has those that divide the examples among teachers).
None gives a teacher a gradient.

Axes: N scored rows, K choices, S teachers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.core.errors import ModelError, RunError, UsageError
from stillhouse.core.seeding import generator
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
from stillhouse.numerics.divergences import jsd

ROWS = 512  # rows whose scores are multiplied out at a time

Kind = type[Dense] | type[Sparse] | type[Labels]
Scored = Dense | Unscored


class Mean:
    """The weighted mean of the teachers' distributions, as `Dense` scores.

    A mean of probabilities, not of scores: You et al. 2017 average softened outputs, so each
    teacher is softened before the mean. The scores are T log mean(softmax(z / T)): softened again
    at T they give the mean of the softened. `temperature` is therefore to be the objective's.
    A row is the mean of the teachers that speak on it. A regression's values are averaged as they
    are. Raises UsageError for weights that are not positive, ModelError for teachers that do not
    score the same rows and choices.
    """

    kind = Dense

    def __init__(
        self,
        sources: Sequence[SignalSource],
        weights: Sequence[float] | None = None,
        *,
        temperature: float = 1.0,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise UsageError(f"a mean's temperature must be > 0 and finite, got {temperature}")
        if one_kind(sources) is not Dense:
            raise ModelError("a mean needs the scores of all choices: ask the teachers themselves")
        self.sources, self._temperature = tuple(sources), temperature
        self._weights_S = _shares(weights, len(sources))
        self.fingerprint = fingerprint("mean", sources, [*self._weights_S, temperature])

    @torch.no_grad()
    def signal(self, batch: Batch) -> Dense:
        signals = [_with_scores(source.signal(batch)) for source in self.sources]
        _check_alike(signals)
        taught_SN = torch.stack([taught_by(signal) for signal in signals])
        weights_S1 = torch.tensor(self._weights_S, dtype=torch.float64, device=taught_SN.device)
        spoken_N = taught_SN.any(0)
        # A row that nobody speaks on gets a mean like any other, which nobody looks at.
        weights_SN = weights_S1[:, None] * (taught_SN | ~spoken_N)
        parts = [
            mixture(
                [signal.part(rows).scores_NK for signal in signals],
                weights_SN[:, rows],
                temperature=self._temperature,
            )
            for rows in slices(len(spoken_N))
        ]
        return Dense(torch.cat(parts), taught_N=None if spoken_N.all() else spoken_N)


def mixture(
    scores: Sequence[Float[Tensor, "N K"]],
    weights_SN: Float[Tensor, "S N"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "N K"]:
    """T log of the weighted mean of softmax(scores / T), at least float32; of K = 1 the weighted
    mean of the values. Weights are >= 0 and not all 0 in a row; they are made to add up to 1."""
    wide = [z_NK if z_NK.dtype == torch.float64 else z_NK.float() for z_NK in scores]
    share_SN1 = (weights_SN / weights_SN.sum(0))[..., None].to(wide[0].dtype)
    if scores[0].shape[1] == 1:
        return (share_SN1 * torch.stack(wide)).sum(0)
    logp_SNK = torch.stack([(z_NK / temperature).log_softmax(-1) for z_NK in wide])
    return temperature * (logp_SNK + share_SN1.log()).logsumexp(0)


class OneAtRandom:
    """One teacher a batch, drawn by weight. Fukuda et al. 2017 sec. 3.

    The draw follows from the seed and the batch's rows: a resumed run draws the same, and epochs
    differ where their batches do (a single batch in one order keeps its teacher).
    """

    def __init__(
        self, sources: Sequence[SignalSource], weights: Sequence[float] | None = None, *, seed: int
    ) -> None:
        self.kind = one_kind(sources)
        self.sources, self._seed = tuple(sources), seed
        self._weights_S = _shares(weights, len(sources))
        self.fingerprint = fingerprint("one at random", sources, [*self._weights_S, seed])

    def drawn(self, batch: Batch) -> int:
        """Which teacher answers `batch`."""
        rng = drawing(self._seed, "teacher", batch)
        return int(rng.choice(len(self.sources), p=self._weights_S))

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        return self.sources[self.drawn(batch)].signal(batch)


def agreement(answers: Iterable[Mapping[str, Signal]]) -> dict[str, Any]:
    """How far teachers agree on the rows that all of them speak on, a mapping of each one's answers
    a batch. Means over all these `rows`, of every teacher alike:

    pairs: of each two the share of rows with the `same_choice`, and `jsd`, the Jensen-Shannon
    divergence in nats, at most log 2 (a quarter of divergences.jsd at beta 1/2).
    disagreement: entropy of the mean distribution less the mean of the entropies, nats (0 where
    all say the same; of two teachers it is their jsd).
    Raises ModelError where the answers are not of the same rows and choices.
    """
    rows, disagreement = 0, 0.0
    sums: dict[tuple[str, str], Tensor] = {}
    for signals in answers:
        of = {name: _with_scores(signal) for name, signal in signals.items()}
        _check_alike([*of.values()])
        all_N = torch.stack([taught_by(signal) for signal in of.values()]).all(0)
        for part in slices(len(all_N)):
            scores = {n: signal.part(part).scores_NK[all_N[part]] for n, signal in of.items()}
            for one, other in combinations(scores, 2):
                found_2 = _compared(scores[one], scores[other])
                sums[one, other] = sums.get((one, other), torch.zeros_like(found_2)) + found_2
            disagreement += float(_disagreement([*scores.values()]))
        rows += int(all_N.sum())
    if not rows:
        raise RunError("there is no row that all teachers speak on: nothing to compare")
    pairs = [
        {"teachers": [*pair], "same_choice": float(both[0]) / rows, "jsd": float(both[1]) / rows}
        for pair, both in sums.items()
    ]
    return {"rows": rows, "pairs": pairs, "disagreement": disagreement / rows}


def _compared(one_NK: Tensor, other_NK: Tensor) -> Tensor:
    """Sums over rows: of equal top choices, and of Jensen-Shannon divergences."""
    same_N = one_NK.argmax(-1) == other_NK.argmax(-1)
    jsd_N = jsd(one_NK, other_NK, beta=0.5) / 4
    return torch.stack([same_N.sum().double(), jsd_N.double().sum()])


def _disagreement(scores: Sequence[Tensor]) -> Tensor:
    """Sum over rows of the entropy of the mean less the mean entropy, nats."""
    even_SN = torch.ones(len(scores), len(scores[0]), device=scores[0].device)
    wide = [z_NK.double() for z_NK in scores]
    mean_N = _entropy(mixture(wide, even_SN))
    return (mean_N - torch.stack([_entropy(z_NK) for z_NK in wide]).mean(0)).sum()


def _entropy(scores_NK: Tensor) -> Tensor:
    logp_NK = scores_NK.log_softmax(-1)
    return -(logp_NK.exp() * logp_NK).sum(-1)


def one_kind(sources: Sequence[SignalSource]) -> Kind:
    """What all `sources` answer. Raises UsageError for none, ModelError where they differ."""
    if not sources:
        raise UsageError("an ensemble needs a teacher: there is none")
    kinds = {source.kind for source in sources}
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ModelError(f"teachers of one ensemble answer alike, these give {names}: label anew")
    if States in kinds:
        raise ModelError("an ensemble has answers, not inner states: read those of one teacher")
    return cast(Kind, kinds.pop())


def fingerprint(name: str, sources: Sequence[SignalSource], settings: Sequence[object]) -> str:
    """Of an ensemble: what it does, of whom, with which settings."""
    told = json.dumps([name, [source.fingerprint for source in sources], *settings])
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()


def drawing(seed: int, purpose: str, batch: Batch) -> np.random.Generator:
    """A generator that follows from the seed and the batch's rows."""
    return generator(seed, purpose, np.asarray(batch.rows, "<i8").tobytes().hex())


def taught_by(signal: Signal) -> Tensor:
    """The rows that a signal speaks on, as a bool of each, N."""
    assert isinstance(signal, Dense | Unscored | Sparse | Labels)
    if signal.taught_N is not None:
        return signal.taught_N
    of = {Dense: "scores_NK", Unscored: "factored", Sparse: "tail_N", Labels: "labels_N"}
    held = getattr(signal, of[type(signal)])
    device = held.hidden_NH.device if isinstance(signal, Unscored) else held.device
    return torch.ones(len(held), dtype=torch.bool, device=device)


def width_of(signal: Scored) -> int:
    """K."""
    return signal.scores_NK.shape[1] if isinstance(signal, Dense) else signal.factored.width


def slices(rows: int) -> Iterator[slice]:
    """Rows by parts, so that few scores are multiplied out at a time; at least one part."""
    for start in range(0, max(1, rows), ROWS):
        yield slice(start, start + ROWS)


def _with_scores(signal: Signal) -> Scored:
    if isinstance(signal, Dense | Unscored):
        return signal
    raise ModelError(f"teachers are compared by all scores, one gives {type(signal).__name__}")


def _check_alike(signals: Sequence[Scored]) -> None:
    widths = sorted({width_of(signal) for signal in signals})
    if len(widths) > 1:
        raise ModelError(f"the teachers score {widths} choices: they need the same vocabulary")
    rows = sorted({len(taught_by(signal)) for signal in signals})
    if len(rows) > 1:
        raise ModelError(f"the teachers scored {rows} rows of a batch: they must cut texts alike")


def _shares(weights: Sequence[float] | None, teachers: int) -> list[float]:
    """Weights that add up to 1; equal ones where none are given."""
    given = [1.0] * teachers if weights is None else [float(w) for w in weights]
    if len(given) != teachers:
        raise UsageError(f"{len(given)} weights were given for {teachers} teachers")
    if not all(0 < w < math.inf for w in given):
        raise UsageError(f"a teacher's weight must be > 0 and finite, got {given}")
    return [w / sum(given) for w in given]
