"""Step functions: from micro-batches to gradients.

A step's loss is the sum of its terms over all its rows (or examples, which differ where rows are
tokens), divided once by how many those are.
It therefore does not change with how the rows are cut into micro-batches, padded, or spread
over processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.config import TrainingConfig
from stillhouse.core.head import Factored
from stillhouse.core.precision import precision_of
from stillhouse.core.types import (
    Batch,
    Dense,
    Signal,
    SignalSource,
    StudentOutput,
    Tap,
    Unit,
    Unscored,
)
from stillhouse.models.forward import (
    DTYPES,
    NOTHING,
    fast_layers,
    has_fast_path,
    needed,
    readable_fast,
    run,
)
from stillhouse.models.weights import (
    NO_MASKS,
    FlatWeights,
    Leaf,
    Masks,
    flattened,
    own_leaves,
    shares_layers,
)
from stillhouse.training.chunked import MEMORY, chunked, fits
from stillhouse.training.fused import can_fuse
from stillhouse.training.objective import Objective, Part, at

Forward = Callable[[nn.Module, Batch, np.random.Generator], StudentOutput]


class TextForward:
    """Outputs of a transformers model in training, dropout drawn from the step's generator.
    `reads`: what else to read inside it. Without `scored`, it is run for these only."""

    def __init__(
        self,
        config: TrainingConfig,
        *,
        fast: bool = True,
        reads: Collection[Tap] = NOTHING,
        scored: bool = True,
        choices: int | None = None,
    ) -> None:
        self._precision = precision_of(config.precision)
        self._reads, self._scored, self._choices = frozenset(reads), scored, choices
        self._fast = fast and readable_fast(reads)
        self._flat: FlatWeights | None = None
        self._model: nn.Module | None = None

    @contextlib.contextmanager
    def training(self, model: nn.Module, masks: Masks = NO_MASKS) -> Iterator[list[Leaf]]:
        """What an optimizer is to train inside the block: the model's parameters; with a fast
        path, its blocks as two flat tensors."""
        own = own_leaves(model, masks=masks)
        stop = None if self._scored else needed(self._reads)
        layers = fast_layers(model, stop) if self._fast and has_fast_path(model) else []
        if not layers or shares_layers(layers):
            yield own
            return
        by_id = {id(p): masks[name] for name, p in model.named_parameters() if name in masks}
        with flattened(layers, by_id) as flat:
            inside = flat.parameters()
            if not inside <= {id(leaf.tensor) for leaf in own}:  # some are frozen
                yield own
                return
            self._flat, self._model = flat, model
            try:
                yield [leaf for leaf in own if id(leaf.tensor) not in inside] + flat.leaves()
            finally:
                self._flat = self._model = None

    def __call__(self, model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        settings: dict[str, Any] = {
            "precision": self._precision,
            "rng": rng,
            "fast": self._fast,
            "reads": self._reads,
            "scored": self._scored,
            "choices": self._choices,
        }
        if self._flat is not None and model is self._model:
            settings["weights"] = self._flat.pairs(DTYPES[self._precision])
            if next(model.parameters()).device.type == "cpu":  # all its dropout is from `rng`
                return run(model, batch, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            return run(model, batch, **settings)


def leaves_of(
    forward: Forward, model: nn.Module, masks: Masks = NO_MASKS
) -> contextlib.AbstractContextManager[list[Leaf]]:
    """What to train of a model whose scores come from `forward`."""
    if isinstance(forward, TextForward):
        return forward.training(model, masks)
    return contextlib.nullcontext(own_leaves(model, masks=masks))


@dataclass
class StepStats:
    """A step's loss and its terms: mean values (on the graph no more), and gradient norms if they
    were asked for."""

    loss: Tensor
    values: dict[str, Tensor]
    gradient_norms: dict[str, Tensor]


def plain_step(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    source: SignalSource | None,
    forward: Forward,
    *,
    progress: float,
    rngs: Sequence[np.random.Generator],
    totals: Mapping[Unit, int],
    norms: bool,
    parameters: Sequence[Tensor] | None = None,
    head_memory: int = MEMORY,
) -> StepStats:
    """Adds the step's gradient to the parameters. `totals` count all examples and all scored rows
    of the step, over all micro-batches and processes. Scores over a vocabulary that would take
    more than `head_memory` bytes are worked on a few rows at a time. With `norms`, each term's own
    gradient norm over `parameters` (else the model's) is measured."""
    if parameters is None:
        parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    values = {term.name: torch.zeros((), device=device) for term in objective.terms}
    parts: dict[str, list[Tensor | None]] = {}
    beyond: list[Tensor] = []  # of the loss: what is not a term's value times its weight
    for batch, rng in zip(batches, rngs, strict=True):
        signal = source.signal(batch) if source is not None and objective.needs_teacher else None
        output = forward(model, batch, rng)
        found, losses = _losses(
            objective,
            output,
            signal,
            batch,
            progress=progress,
            totals=totals,
            memory=head_memory,
            apart=norms,
        )
        for term, part in zip(objective.terms, found, strict=True):
            values[term.name] += part.value
            if part.extra is not None:
                beyond.append(part.extra)
        if norms and len(losses) > 1:
            _add_parts(parts, objective, losses, parameters)
        torch.stack(losses).sum().backward()
    loss = torch.stack([values[t.name] * at(t.weight, progress) for t in objective.terms]).sum()
    if beyond:
        loss = loss + torch.stack(beyond).sum()
    measured = {name: _norm(gradients) for name, gradients in parts.items()}
    return StepStats(loss, values, measured)


def _losses(
    objective: Objective,
    output: StudentOutput,
    signal: Signal | None,
    batch: Batch,
    *,
    progress: float,
    totals: Mapping[Unit, int],
    memory: int,
    apart: bool,
) -> tuple[list[Part], list[Tensor]]:
    """Each term's part of the step, and losses that add up to all of it; `apart`: one a term."""
    settings: dict[str, Any] = {"progress": progress, "totals": totals}
    scores = output.scores
    answers = [term for term in objective.terms if term.unit == "scored"]
    if not isinstance(scores, Factored) or (
        fits(scores, memory) and not can_fuse(answers, signal)  # written down, it is faster anyway
    ):
        if isinstance(scores, Factored):  # multiplied out once, not by each term
            output = StudentOutput(scores.dense(), output.states)
        if isinstance(signal, Unscored):
            signal = Dense(signal.factored.dense(), signal.states, signal.taught_N)
        found = objective.parts(output, signal, batch, **settings)
        return found, [part.loss for part in found]
    inner = [term for term in objective.terms if term.unit != "scored"]
    found = objective.parts(output, signal, batch, terms=inner, **settings)
    parts = {term.name: part for term, part in zip(inner, found, strict=True)}
    losses = {name: part.loss for name, part in parts.items()}
    for terms in [[term] for term in answers] if apart else [answers] if answers else []:
        settings["once"] = not apart  # else the norms take a pass of their own
        done = chunked(objective, terms, scores, signal, batch, memory=memory, **settings)
        parts |= {term.name: part for term, part in zip(terms, done.parts, strict=True)}
        losses[terms[0].name] = done.loss
    names = [term.name for term in objective.terms if term.name in losses]
    return [parts[term.name] for term in objective.terms], [losses[name] for name in names]


def _add_parts(
    parts: dict[str, list[Tensor | None]],
    objective: Objective,
    losses: list[Tensor],
    parameters: Sequence[Tensor],
) -> None:
    """Adds each weighted term's own gradient to what earlier micro-batches gave."""
    for term, loss in zip(objective.terms, losses, strict=True):
        if not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        held = parts.get(term.name)
        parts[term.name] = (
            list(found)
            if held is None
            else [
                b if a is None else a if b is None else a + b
                for a, b in zip(held, found, strict=True)
            ]
        )


def _norm(gradients: list[Tensor | None]) -> Tensor:
    flat = [g.coalesce().values() if g.is_sparse else g for g in gradients if g is not None]
    return torch.stack([g.float().norm() for g in flat]).norm()
