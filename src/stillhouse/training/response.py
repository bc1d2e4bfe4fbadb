"""Response terms: what is lost in each scored row, from the student's scores and the teacher's
answer or the gold one. They see rows only, all of a batch or a part of them.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.core.errors import RunError, UsageError, unknown
from stillhouse.core.terms import Schedule, TermConfig
from stillhouse.core.types import NO_LABEL, Batch, Dense, Labels, Signal, Sparse, StudentOutput
from stillhouse.numerics import divergences as d
from stillhouse.numerics import sparse
from stillhouse.numerics.wide import WIDE, forward_kl_wide

Loss = tuple[Tensor, Tensor | None]  # a loss a row, and which rows have one (None: all)
RowLoss = Callable[[StudentOutput, Signal | None, Batch, float], Loss]

REGRESSION = ("logit_mse",)


def at(schedule: Schedule, progress: float) -> float:
    """A schedule's value when a share `progress` of the run is done."""
    if schedule.shape == "constant" or schedule.end is None:
        return schedule.start
    share = min(max(progress, 0.0), 1.0)
    if schedule.shape == "cosine":
        share = (1.0 - math.cos(math.pi * share)) / 2.0
    return schedule.start + (schedule.end - schedule.start) * share


def gold_classes(output: StudentOutput, _: Signal | None, batch: Batch, __: float) -> Loss:
    assert batch.gold_N is not None
    has_N = batch.gold_N != NO_LABEL
    return d.cross_entropy(output.scores_NK, batch.gold_N.clamp(min=0)), has_N


WEIGHTS = {"balanced": 1.0, "sqrt": 0.5}


def class_weights(counts_K: np.ndarray, kind: str) -> Tensor:
    """What a row of each class counts for, as its class's count to minus 1 (balanced) or minus
    one half (sqrt), scaled so that the mean over the counted rows is 1: a mean loss over rows is
    then the weighted sum over the sum of weights. A class without rows has 1.

    Raises ValueError for a kind that is not known, or without any row."""
    if kind not in WEIGHTS:
        raise ValueError(unknown("class weights", kind, WEIGHTS))
    there_K = counts_K > 0
    if not there_K.any():
        raise ValueError("class weights need at least one row")
    raw_K = np.where(there_K, np.maximum(counts_K, 1.0) ** -WEIGHTS[kind], 0.0)
    scaled_K = raw_K * counts_K.sum() / (raw_K * counts_K).sum()
    return torch.from_numpy(np.where(there_K, scaled_K, 1.0)).float()


@dataclass(frozen=True)
class WeightedClasses:
    """Cross-entropy with the label, times its class's weight."""

    weights_K: Tensor

    def __call__(
        self, output: StudentOutput, signal: Signal | None, batch: Batch, progress: float
    ) -> Loss:
        loss_N, has_N = gold_classes(output, signal, batch, progress)
        assert batch.gold_N is not None
        weights_K = self.weights_K.to(loss_N.device)
        return loss_N * weights_K[batch.gold_N.clamp(min=0)], has_N


def gold_values(output: StudentOutput, _: Signal | None, batch: Batch, __: float) -> Loss:
    assert batch.gold_N is not None
    has_N = ~torch.isnan(batch.gold_N)
    target_N = torch.where(has_N, batch.gold_N, 0.0)
    return d.logit_mse(output.scores_NK, target_N[:, None]), has_N


def teachers_choice(signal: Signal | None) -> Tensor:
    """The teacher's likeliest choice of each row."""
    if isinstance(signal, Labels):
        return signal.labels_N
    if isinstance(signal, Sparse):  # its likeliest come first
        return signal.top_ids_NT[:, 0].long()
    assert isinstance(signal, Dense)
    return signal.scores_NK.argmax(-1)


def hard_classes(output: StudentOutput, signal: Signal | None, _: Batch, __: float) -> Loss:
    return d.cross_entropy(output.scores_NK, teachers_choice(signal)), None


@dataclass(frozen=True)
class Soft:
    """A divergence of softened scores, times T^2 so that T doesn't change the gradient's scale
    (times T for total variation, whose gradient falls with 1 / T only)."""

    config: TermConfig
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The divergence's own settings that are given."""
        given = {"beta": self.config.beta, "alpha": self.config.alpha}
        return {name: value for name, value in given.items() if value is not None}

    def factor(self, temperature: float, choices: int) -> float:
        """What the divergence at `temperature` is multiplied by."""
        power = 1 if self.name == "total_variation" else 2
        scale = temperature**power if self.config.squared_temperature else 1.0
        return scale / choices if self.config.variant == "reference" else scale

    def __call__(
        self, output: StudentOutput, signal: Signal | None, batch: Batch, progress: float
    ) -> Loss:
        temperature = at(self.config.temperature, progress)
        if isinstance(signal, Sparse):
            return self._sparse(output.scores_NK, signal, temperature), None
        assert isinstance(signal, Dense)
        student_NK, teacher_NK = output.scores_NK, signal.scores_NK
        if self.config.standardise:
            student_NK, teacher_NK = d.standardise(student_NK), d.standardise(teacher_NK)
        settings, choices = self.settings, student_NK.shape[1]
        if self.name == "decoupled":
            settings["target_N"] = _targets(batch, teacher_NK)
        divergence: Callable[..., Tensor] = d.DIVERGENCES[self.name]
        if self.name == "logit_mse":  # at T, times T^2, it is what it is at 1
            loss_N = divergence(student_NK, teacher_NK, **settings)
            return (loss_N / choices if self.config.variant == "reference" else loss_N), None
        softened = (d.soften(x, temperature) for x in (student_NK, teacher_NK))
        wide = self.name == "forward_kl" and choices >= WIDE
        loss_N = forward_kl_wide(*softened) if wide else divergence(*softened, **settings)
        return loss_N * self.factor(temperature, choices), None

    def _sparse(self, student_NK: Tensor, signal: Sparse, temperature: float) -> Tensor:
        """Raises RunError where the probabilities were kept at another temperature."""
        if signal.temperature != temperature:
            raise RunError(
                f"the teacher's answers are kept at temperature {signal.temperature:g}, the soft "
                f"term wants {temperature:g}: label again at it, or set the term's temperature"
            )
        loss_N = sparse.divergence(
            self.name,
            student_NK,
            signal.top_ids_NT,
            signal.top_p_NT,
            signal.tail_N,
            signal.drawn_ids_ND,
            estimator=signal.estimator,
            temperature=temperature,
            **self.settings,
        )
        return loss_N * self.factor(temperature, student_NK.shape[1])


def _targets(batch: Batch, teacher_NK: Tensor) -> Tensor:
    """Decoupled KD's target class: the gold label, the teacher's choice where there is none."""
    choice_N = teacher_NK.argmax(-1)
    if batch.gold_N is None:
        return choice_N
    return torch.where(batch.gold_N == NO_LABEL, choice_N, batch.gold_N)


NEEDED = {"jsd": ("beta",), "skew_kl": ("alpha",)}
TAKEN = {"jsd": ("beta",), "skew_kl": ("alpha",), "decoupled": ("alpha", "beta")}


def check_soft(config: TermConfig, name: str, choices: int, signal: type) -> None:
    if name not in d.DIVERGENCES:
        raise UsageError(unknown("divergence", name, d.DIVERGENCES))
    for option in ("alpha", "beta"):
        given = getattr(config, option) is not None
        if given and option not in TAKEN.get(name, ()):
            raise UsageError(f"divergence {name} takes no {option}")
        if not given and option in NEEDED.get(name, ()):
            raise UsageError(f"divergence {name} needs {option}")
    if signal is Sparse and (name in sparse.REFUSED or config.standardise):
        refused = sparse.REFUSED.get(name, "can't be standardised with part of a distribution")
        raise UsageError(
            f"divergence {name} {refused}: leave label.tokens at live, or take another divergence"
        )
    if choices == 1 and name not in REGRESSION:
        raise UsageError(
            f"a regression's single value has no {name}: "
            "set the soft term's divergence to logit_mse"
        )
    if choices == 1 and config.standardise:
        raise UsageError("a regression's single value can't be standardised")
    lowest = min(t for t in (config.temperature.start, config.temperature.end) if t is not None)
    if lowest <= 0:
        raise UsageError(f"a temperature must be > 0, got {lowest}")
    trial = Dense(torch.zeros(1, choices))
    try:
        Soft(config, name)(
            StudentOutput(trial.scores_NK), trial, Batch({}, np.zeros(1, np.int64)), 0.0
        )
    except ValueError as error:
        raise UsageError(f"divergence {name}: {error}") from None
