"""The trainings of a search for tickets, in the order they depend on each other.

Frankle & Carbin 2019, sec. 1; with late rewinding, Frankle et al. 2020, sec. 2. Beside the ticket,
the same training of the dense model, of random masks and of fresh weights.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import derive, generator
from stillhouse.core.ticket_results import Kind
from stillhouse.core.types import Callback, LoopState
from stillhouse.data.batching import sorted_batches
from stillhouse.flows.gold import Gold
from stillhouse.flows.stages import Stage, Trained, load_trained, train
from stillhouse.models.forward import run as forward
from stillhouse.models.student import like
from stillhouse.numerics import masks as numerics
from stillhouse.tasks.base import Data
from stillhouse.tickets.config import TicketsConfig
from stillhouse.tickets.prunable import output_weights, prunable
from stillhouse.tickets.prune import counts, next_masks
from stillhouse.tickets.scores import MOVED, SCORES, Moving, Scored, moving_step
from stillhouse.training import checkpoint
from stillhouse.training.objective import Objective
from stillhouse.training.sparse import load_masks, save_masks

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Rung:
    """One training of a search."""

    kind: Kind
    round: int
    seed: int
    remaining: float
    kept: int
    trained: Trained


def masks_path(out: Path, seed: int, number: int) -> Path:
    """Where a seed's masks for a round are."""
    return out / "masks" / f"{seed}-{number}.safetensors"


def theta_path(out: Path, seed: int) -> Path:
    """Where the weights are that a seed rewinds to, if that is late."""
    return out / "theta" / f"{seed}.safetensors"


class Search:
    """The trainings of a search, in the order they depend on each other."""

    def __init__(
        self,
        config: TicketsConfig,
        gold: Gold,
        out: Path,
        progress: Progress,
        *,
        theta: Path | None = None,
    ) -> None:
        """`theta`: the folder of the run whose weights are rewound to, if that is another."""
        self.config, self.gold, self.out, self.progress = config, gold, out, progress
        self.theta = theta or out
        self.prune = config.prune
        model = gold.make(config.evaluation.seeds[0])
        named = prunable(model, include=self.prune.include, exclude=self.prune.exclude)
        self.sizes = {name: weight.numel() for name, weight in named.items()}
        self.shapes = {name: weight.shape for name, weight in named.items()}
        self.output = output_weights(model)
        self.counts = counts(self.sizes, self.output, self.prune)

    @cached_property
    def _data(self) -> tuple[Data, Data, Data]:
        return self.gold.datasets(self.progress)

    @property
    def reported(self) -> Data:
        return self._data[2]

    @property
    def trainings(self) -> int:
        rounds = self.prune.rounds
        controls = len(self.config.evaluation.controls)
        return (
            1 + rounds + controls * (rounds if self.config.evaluation.controls_at == "all" else 1)
        )

    def check(self) -> None:
        """Raises UsageError for a rewinding that no training reaches, or that one may end before,
        and for a sparsity that leaves nothing."""
        steps = self.stage(0).steps(self.config.evaluation.seeds[0])
        if self.prune.rewind != "none" and self.prune.rewind >= steps:
            raise UsageError(
                f"can't rewind to step {self.prune.rewind} of {steps}: give an earlier one"
            )
        if self.prune.rewind not in ("none", 0) and self.config.training.patience is not None:
            raise UsageError(
                f"training.patience may end the first training before step {self.prune.rewind}: "
                "leave it out, or rewind to 0"
            )
        if sum(self.counts[-1]) == 0:
            raise UsageError(
                f"a sparsity of {self.prune.sparsity:g} leaves no weight: ask for less"
            )

    def of(self, seed: int) -> list[Rung]:
        """All trainings of one seed."""
        last = self.prune.rounds
        every = self.config.evaluation.controls_at == "all"
        held: Masks = {n: torch.ones(shape, dtype=torch.bool) for n, shape in self.shapes.items()}
        found = [self._rung("dense", 0, seed, held, lambda: self.gold.make(seed))]
        before = found[0].trained
        for number in range(1, last + 1):
            held = self._masks(seed, number, held, before)
            start = partial(self._start, seed, before)
            found.append(self._rung("ticket", number, seed, held, start))
            _forget(before)
            before = found[-1].trained
            if every or number == last:
                found += self._controls(seed, number, held)
        return found

    def _controls(self, seed: int, number: int, held: Masks) -> list[Rung]:
        found: list[Rung] = []
        for kind in self.config.evaluation.controls:
            if kind == "random":
                own = numerics.random_like(held, generator(seed, "random mask", number))
                found.append(self._rung(kind, number, seed, own, partial(self.rewound, seed)))
            else:
                start = partial(self._fresh, seed)
                found.append(self._rung(kind, number, seed, held, start))
            _forget(found[-1].trained)
        return found

    def _fresh(self, seed: int) -> PreTrainedModel:
        return fresh(self.gold.make(seed), seed)

    def rewound(self, seed: int) -> PreTrainedModel:
        """The model that survivors are reset to: made anew each time, so that nothing trained since
        can be in it. Without rewinding, the one that the first training began with."""
        model = self.gold.make(seed)
        if self.prune.rewind not in ("none", 0):
            found = checkpoint.load(theta_path(self.theta, seed))
            assert found is not None, "the dense training keeps it"
            model.load_state_dict(found[0])
        return model

    def train_masked(self, title: str, seed: int, masks: Masks) -> Trained:
        """Another ticket's masks on this search's first weights, trained as its own tickets are."""
        held = {name: mask for name, mask in masks.items() if name in self.shapes}
        trained = self._train(title, seed, held, partial(self.rewound, seed), late=True)
        _forget(trained)
        return trained

    def _start(self, seed: int, before: Trained) -> PreTrainedModel:
        """What a ticket's training begins with."""
        if self.prune.rewind == "none":
            return load_trained(before, self.movable(self.gold.make(seed)))  # pyright: ignore
        return self.rewound(seed)

    def _rung(
        self, kind: Kind, number: int, seed: int, held: Masks, make: Callable[[], PreTrainedModel]
    ) -> Rung:
        scored, late = kind in ("dense", "ticket"), kind != "dense"
        title = f"{kind}-{number}"
        trained = self._train(title, seed, held, make, late=late, scored=scored)
        kept = sum(int(mask.sum()) for mask in held.values())
        return Rung(kind, number, seed, kept / sum(self.sizes.values()), kept, trained)

    def _train(
        self,
        title: str,
        seed: int,
        held: Masks,
        make: Callable[[], PreTrainedModel],
        *,
        late: bool,
        scored: bool = False,
    ) -> Trained:
        """One training, done once. `late`: from the step that is rewound to; `scored`: its weights
        will be, so what the score needs is summed on the way."""
        stage = replace(self.stage(None if late else seed), masks=held)
        if late and self.prune.rewind != "none":
            stage = replace(stage, start=self.prune.rewind)
        if self.prune.score == "movement":
            step = moving_step if scored else stage.step_fn
            stage = replace(stage, step_fn=step, fast=False)  # controls draw the same dropout
        return train(
            title,
            seed,
            lambda: self.movable(make()) if scored else make(),
            [stage],
            task=self.gold.task,
            reported=self.reported,
            out=self.out,
            progress=self.progress,
        )

    def movable(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model, ready to sum its weights' movement where the score needs it."""
        if self.prune.score == "movement" and not hasattr(model, MOVED):
            model.add_module(MOVED, Moving(list(self.sizes), model))
        return model

    def _masks(self, seed: int, number: int, held: Masks, before: Trained) -> Masks:
        """The round's masks, from disk or from the training before it."""
        path = masks_path(self.out, seed, number)
        if path.exists():
            return load_masks(path)[0]
        model = load_trained(before, self.movable(self.gold.make(seed)))
        scores = self._scores(model, seed, number)
        found = next_masks(
            scores,
            held,
            self.output,
            self.counts[number - 1],
            scope=self.prune.scope,
            floor=self.prune.floor,
            rng=generator(seed, "ties", number),
        )
        save_masks(path, found, seed=seed, round=number, remaining=numerics.density(found))
        return found

    def _scores(self, model: nn.Module, seed: int, number: int) -> Mapping[str, Tensor]:
        training = self._data[0]
        rows = generator(seed, "score rows", number).permutation(len(training))
        weights = {n: p.detach() for n, p in model.named_parameters() if n in self.sizes}
        at = Scored(
            model,
            training,
            self.gold.objective,
            np.sort(rows[: self.prune.score_rows]),
            generator(seed, "scores", number),
            self.progress,
        )
        return SCORES[self.prune.score](at, weights)

    def stage(self, seed: int | None) -> Stage:
        """The training that every model of the search gets. With a seed it keeps the weights that
        this seed is to be rewound to."""
        training, held_out, _ = self._data
        scored = len(held_out) > 0
        return Stage(
            name="train",
            described=self.gold.described,
            data=training,
            objective=self.gold.objective,
            source=None,
            training=self.config.training,
            on_rows=True,
            metric="held-out loss, negative" if scored else None,
            evaluate=minus_loss(self.gold.objective, held_out, self.config.training.precision)
            if scored
            else None,
            callbacks=() if seed is None else self._keeping(seed),
        )

    def _keeping(self, seed: int) -> tuple[Callback, ...]:
        step, path = self.prune.rewind, theta_path(self.out, seed)
        if step in ("none", 0):
            return ()

        def keep(state: LoopState) -> None:
            if state.step == step:
                held = {n: t for n, t in state.model.state_dict().items() if MOVED not in n}
                checkpoint.save(path, held, {"step": step})

        return (keep,)


def _forget(trained: Trained) -> None:
    """Keeps of a finished training on disk only what it answered: its weights are not needed."""
    found = checkpoint.load(trained.path)
    if found is not None and len(found[0]) > 1:
        checkpoint.save(trained.path, {"|reported": found[0]["|reported"]}, found[1])


def fresh(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same shape with fresh weights: nothing pretrained in it."""
    return like(model, model.config, derive(seed, "reinitialised") % 2**31).eval()


def minus_loss(objective: Objective, data: Data, precision: str) -> Callable[[nn.Module], float]:
    """Minus the mean loss on `data`, which is higher for better models."""

    def evaluate(model: nn.Module) -> float:
        device = next(model.parameters()).device
        total, count = 0.0, 0
        for rows in sorted_batches(data.lengths, size=64, max_tokens=16_384):
            batch = data.batch(rows).to(device)
            output = forward(model, batch, precision=precision)
            for term in objective.terms:
                found = term(output, None, batch, 1.0)
                total, count = total + float(found.sum), count + found.count
        return -total / count

    return evaluate
