"""How much a weight matters: the higher its score, the longer it stays.

Axes: B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.progress import Progress, Silent
from stillhouse.core.types import Batch
from stillhouse.models.forward import run, training_mode
from stillhouse.tasks.base import Data
from stillhouse.training.objective import Objective
from stillhouse.training.steps import StepStats, plain_step

BATCH = 32
MOVED = "stillhouse_movement"


@dataclass(frozen=True)
class Scored:
    """A trained model and what its weights are scored on: `rows` of its training data."""

    model: nn.Module
    data: Data
    objective: Objective
    rows: np.ndarray
    rng: np.random.Generator
    progress: Progress = field(default_factory=Silent)


def magnitude(at: Scored, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w|. Han et al. 2015, sec. 3; Frankle & Carbin 2019."""
    return {name: weight.abs() for name, weight in weights.items()}


def random(at: Scored, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Uniform draws: which weights go is left to chance."""
    return {
        name: torch.from_numpy(at.rng.random(weight.numel())).view(weight.shape)
        for name, weight in weights.items()
    }


def gradient(at: Scored, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w dL/dw|, L the loss summed over the rows: the loss's change, to first order, when a weight
    is set to 0. Mozer & Smolensky 1988; Lee et al. 2019 (SNIP), eq. 4, without its norm."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with at.progress.stage("scoring weights", len(at.rows), "rows") as advance:
        for start in range(0, len(at.rows), BATCH):
            rows = at.rows[start : start + BATCH]
            for name, found in _gradients(at, rows, list(weights)).items():
                total[name] += found
            advance(len(rows))
    return {name: (weights[name] * total[name]).abs() for name in weights}


def fisher(at: Scored, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w^2 / 2 times the mean square of each example's gradient: the loss's change, to second
    order, with the empirical Fisher for the Hessian's diagonal. Theis et al. 2018, eq. 9."""
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with at.progress.stage("scoring weights", len(at.rows), "rows") as advance:
        for row in at.rows:
            for name, found in _gradients(at, np.array([row]), list(weights)).items():
                squares[name] += found**2
            advance(1)
    return {n: weights[n] ** 2 * squares[n] / (2 * len(at.rows)) for n in weights}


def movement(at: Scored, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """-w dL/dw summed over the training's steps: high where a weight went away from 0. Sanh et al.
    2020 (movement pruning), eq. 4. Needs a model that was trained with `Moving`. Without rewinding
    the sums go on from round to round, as the weights do."""
    moved: Any = getattr(at.model, MOVED, None)
    assert moved is not None, "the training kept no movement"
    return {name: moved.of(name) for name in weights}


SCORES: Mapping[str, Callable[[Scored, Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "magnitude": magnitude,
    "movement": movement,
    "gradient": gradient,
    "fisher": fisher,
    "random": random,
}


def _gradients(at: Scored, rows: np.ndarray, names: Sequence[str]) -> dict[str, Tensor]:
    """Gradient of the loss summed over `rows`, without dropout."""
    parameters = dict(at.model.named_parameters())
    with training_mode(at.model, on=False):
        batch: Batch = at.data.batch(rows, np.random.default_rng(int(rows[0])))
        output = run(at.model, batch, precision="float32", fast=False)
        parts = [term(output, None, batch, 0.0).sum for term in at.objective.terms]
        found = torch.autograd.grad(torch.stack(parts).sum(), [parameters[n] for n in names])
    return dict(zip(names, found, strict=True))


class Moving(nn.Module):
    """The sums of -w dL/dw of some weights, as buffers beside them: in the model's checkpoints,
    so that a resumed training has all of its steps."""

    def __init__(self, names: Sequence[str], model: nn.Module) -> None:
        super().__init__()
        parameters = dict(model.named_parameters())
        self.places = {name: f"sum_{i}" for i, name in enumerate(names)}
        for name, place in self.places.items():
            self.register_buffer(place, torch.zeros_like(parameters[name].detach()))

    def of(self, name: str) -> Tensor:
        return self.get_buffer(self.places[name])


def moving_step(model: Any, *args: Any, **settings: Any) -> StepStats:
    """A plain step that also adds to the model's movement."""
    stats = plain_step(model, *args, **settings)
    moved: Moving = getattr(model, MOVED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in moved.places and parameter.grad is not None:
                moved.of(name).addcmul_(parameter, parameter.grad, value=-1.0)
    return stats
