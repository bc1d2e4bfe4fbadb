"""What heads, neurons and layers are worth, seen on data.

Axes: B examples, T tokens, W width of what is gated, A heads, F neurons, N rows, K choices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.core.progress import Advance
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.models import surgery
from stillhouse.models.forward import run, training_mode
from stillhouse.models.student import blocks
from stillhouse.models.surgery import Kept, parts_of, sizes
from stillhouse.numerics.divergences import forward_kl
from stillhouse.tasks.base import Data

BATCH = 32


def unit_worth(
    model: PreTrainedModel,
    data: Data,
    rows: np.ndarray,
    rng: np.random.Generator,
    *,
    progress: Advance = lambda rows: None,
) -> tuple[list[Tensor], list[Tensor]]:
    """By layer, the worth of each head (A) and each neuron (F): the mean square of the gradient of
    an example's log-probability by a gate on it, which is the change of the model's distribution,
    to second order, when it is removed (the Fisher information of the gate, labels drawn from the
    model itself; for a regression, of its value). Theis et al. 2018; Molchanov et al. 2019."""
    own = sizes(model)
    heads = [torch.zeros(count) for count in own.heads]
    neurons = [torch.zeros(count) for count in own.neurons]
    with training_mode(model, on=False):
        for start in range(0, len(rows), BATCH):
            batch = data.batch(rows[start : start + BATCH])
            gates = _Gates(model, len(batch.rows))
            with gates.open():
                scores_NK = run(model, batch, precision="float32", fast=False).scores_NK
            loss = _drawn(scores_NK, rng)
            found = torch.autograd.grad(loss, gates.of_heads + gates.of_neurons)
            for total, gradient in zip(heads + neurons, found, strict=True):
                total += gradient.square().sum(0)
            progress(len(batch.rows))
    return [h / len(rows) for h in heads], [n / len(rows) for n in neurons]


def _drawn(scores_NK: Tensor, rng: np.random.Generator) -> Tensor:
    """The log-probability of answers drawn from the scores; a value's is the value itself."""
    if scores_NK.shape[1] == 1:
        return scores_NK.sum()
    logp_NK = scores_NK.log_softmax(-1)
    noise_NK = torch.from_numpy(rng.gumbel(size=tuple(scores_NK.shape)).astype(np.float32))
    drawn_N = (logp_NK.detach() + noise_NK).argmax(-1)
    return logp_NK.gather(1, drawn_N[:, None]).sum()


class _Gates:
    """A factor of 1 on every head and neuron, an example each, that gradients are taken of."""

    def __init__(self, model: PreTrainedModel, examples: int) -> None:
        own, self._parts = sizes(model), parts_of(model)
        self._blocks, self._head = blocks(model)[1], own.head
        self.of_heads = [torch.ones(examples, n, requires_grad=True) for n in own.heads]
        self.of_neurons = [torch.ones(examples, n, requires_grad=True) for n in own.neurons]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Inside the block, what enters the layers after heads and neurons passes the gates."""
        handles: list[Any] = []
        try:
            for block, heads, neurons in zip(
                self._blocks, self.of_heads, self.of_neurons, strict=True
            ):
                wide = heads.repeat_interleave(self._head, 1)
                for name, gate in ((self._parts[1], wide), (self._parts[3], neurons)):
                    module: nn.Module = block.get_submodule(name)
                    handles.append(module.register_forward_pre_hook(_times(gate)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _times(gate_BW: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * gate_BW[:, None], *args[1:])

    return hook


def best_units(worth: Tensor, count: int) -> tuple[int, ...]:
    """The `count` units that are worth most, rising."""
    return tuple(sorted(worth.argsort(descending=True, stable=True)[:count].tolist()))


class Damage:
    """How far a cut model's answers to `rows` are from the whole one's: mean KL(whole || cut),
    nats; of a regression, the mean squared difference over the variance. `cut` makes the model
    (None: as `surgery.cut` does)."""

    def __init__(
        self,
        model: PreTrainedModel,
        data: Data,
        rows: np.ndarray,
        *,
        cut: Callable[[Sequence[Kept]], PreTrainedModel] | None = None,
    ) -> None:
        self.cut = cut or partial(surgery.cut, model)
        self._data = _Part(data, rows)
        self._whole_NK = torch.from_numpy(score_rows(model, self._data, fast=True))

    def __call__(self, kept: Sequence[Kept]) -> float:
        found_NK = torch.from_numpy(score_rows(self.cut(kept), self._data, fast=True))
        if found_NK.shape[1] == 1:
            spread = self._whole_NK.var().clamp_min(1e-12)
            return float((found_NK - self._whole_NK).square().mean() / spread)
        return float(forward_kl(found_NK, self._whole_NK).mean())


class _Part:
    """Some rows of a data set."""

    def __init__(self, data: Data, rows: np.ndarray) -> None:
        self._data, self._rows = data, rows
        self.lengths, self.keys_N2 = data.lengths[rows], data.keys_N2[rows]
        self.gold_N = data.gold_N[torch.from_numpy(rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Any:
        return self._data.batch(self._rows[rows], rng)

    def places(self, rows: np.ndarray) -> np.ndarray:
        return rows
