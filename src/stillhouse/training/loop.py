"""The training loop: every flow trains with this one.

A run is bit for bit the same whether it was interrupted or not (CPU, same thread count): batches
and dropout follow from the seed and the step's number, and a checkpoint holds weights, optimizer
state and the best weights so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from stillhouse.core.config import TrainingConfig
from stillhouse.core.errors import RunError
from stillhouse.core.machine import machine
from stillhouse.core.memory import Pieces, keep_freed
from stillhouse.core.seeding import generator
from stillhouse.core.types import Callback, LoopState, SignalSource
from stillhouse.models.forward import training_mode
from stillhouse.models.masks import apply_masks, check_masks
from stillhouse.models.weights import NO_MASKS, Leaf, Masks, own_leaves
from stillhouse.tasks.base import Data
from stillhouse.training.metrics import MetricsLog, finite, imbalance
from stillhouse.training.objective import Objective, at
from stillhouse.training.on_policy import Rewrite
from stillhouse.training.optim import Optimizer, learning_rate
from stillhouse.training.order import step_batches, steps_per_epoch
from stillhouse.training.ranks import Ranks
from stillhouse.training.resume import Kept, Parts, Position
from stillhouse.training.steps import Forward, StepStats, leaves_of, plain_step


@dataclass
class FitResult:
    """A finished training. `score` is the held-out one of the weights that were kept, which are
    those of `best_step`; `peak` is the best there was, at `peak_step`. `kept`: the last states of
    what a checkpoint held besides."""

    steps: int
    best_step: int
    score: float | None
    examples: int
    seconds: float
    warnings: list[str] = field(default_factory=list)
    peak: float | None = None
    peak_step: int | None = None
    kept: dict[str, Any] = field(default_factory=dict)


def fit(
    model: nn.Module,
    data: Data,
    objective: Objective,
    source: SignalSource | None,
    config: TrainingConfig,
    *,
    seed: int,
    forward: Forward,
    evaluate: Callable[[nn.Module], float] | None = None,
    log: MetricsLog | None = None,
    resume: Path | None = None,
    callbacks: Sequence[Callback] = (),
    step_fn: Callable[..., StepStats] = plain_step,
    masks: Masks = NO_MASKS,
    start: int = 0,
    accelerator: Accelerator | None = None,
    rewrite: Rewrite | None = None,
    kept: Mapping[str, Kept] | None = None,
) -> FitResult:
    """Trains `model` in place; leaves the kept weights in it (best on `evaluate`, or the last).

    `resume` is a checkpoint's path: read if it exists, written every `config.checkpoint_s`.
    `masks`, by parameter's name, are True where a weight is trained; the others are 0, and stay
    exactly 0. `start`: the step to begin at, in schedule and data order too (late rewinding).
    `rewrite`: what a micro-batch is replaced by before its rows are counted. `kept`: what of the
    run's parts a checkpoint holds besides, by name.

    Raises ValueError for masks that don't fit the model, or a start that is no step of it.
    """
    accelerator = accelerator or Accelerator(cpu=machine().device == "cpu")
    if step_fn is plain_step:
        step_fn = partial(plain_step, head_memory=config.head_memory_mb * 2**20)
    keep_freed()
    model.to(accelerator.device)
    objective.bridges.to(accelerator.device)
    objective.reset(seed)
    masks = apply_masks(model, masks)
    with training_mode(model, on=True), leaves_of(forward, model, masks) as leaves:
        run = _Run(
            model,
            [
                *leaves,
                *(b._replace(name=f"bridge.{b.name}") for b in own_leaves(objective.bridges)),
            ],
            data,
            objective,
            source,
            config,
            seed,
            forward,
            evaluate,
            log or MetricsLog(None),
            resume,
            accelerator,
            start,
            rewrite,
            kept or {},
        )
        run.train(callbacks, step_fn)
        result = run.finish()
    check_masks(model, masks)
    return result


class _Run:
    """The state of one `fit` and its parts, each a screen long."""

    def __init__(
        self,
        model: nn.Module,
        leaves: Sequence[Leaf],
        data: Data,
        objective: Objective,
        source: SignalSource | None,
        config: TrainingConfig,
        seed: int,
        forward: Forward,
        evaluate: Callable[[nn.Module], float] | None,
        log: MetricsLog,
        resume: Path | None,
        accelerator: Accelerator,
        start: int,
        rewrite: Rewrite | None,
        kept: Mapping[str, Kept],
    ) -> None:
        self.model, self.rewrite = model, rewrite
        self.data, self.objective, self.source = data, objective, source
        self.config, self.seed, self.forward, self.evaluate = config, seed, forward, evaluate
        self.log = log if accelerator.is_main_process else MetricsLog(None)
        self.resume, self.accelerator, self.ranks = resume, accelerator, Ranks(accelerator)
        self.optimizer = Optimizer(model, config, leaves)
        aside = {id(p) for p in objective.bridges.parameters()}  # thrown away: not the student's
        self.measured = [p for p in self.optimizer.parameters if id(p) not in aside]
        self.per_epoch = steps_per_epoch(data, config, seed)
        self.steps = config.steps or max(1, round(config.epochs * self.per_epoch))
        self.every = max(1, self.steps // config.evaluations) if evaluate is not None else 0
        if not 0 <= start < self.steps:
            raise ValueError(f"a training of {self.steps} steps can't begin at step {start}")
        self.parts = Parts(model, objective.bridges, self.optimizer, kept)
        resumed = self.parts.load(resume) if resume else None
        self.at, self.best = resumed or (Position(step=start), {})
        self.log.cut(self.at.step)
        self._logged = (time.perf_counter(), self.at.examples)

    def train(self, callbacks: Sequence[Callback], step_fn: Callable[..., StepStats]) -> None:
        stream = step_batches(self.data, self.config, self.seed)
        for _ in range(self.at.step):
            next(stream)
        saved = started = time.perf_counter()
        before = self.at.seconds
        state, pieces = LoopState(self.at.step, self.steps, 0.0, self.model), Pieces()
        while self.at.step < self.steps and not self._out_of_patience():
            stats = self._step(next(stream), step_fn)
            pieces.step()
            self.at.seconds = before + time.perf_counter() - started
            self._note(stats, state)
            for callback in callbacks:
                callback(state)
            if self.every and (self.at.step % self.every == 0 or self.at.step == self.steps):
                paused = time.perf_counter()
                self._evaluate()
                before -= time.perf_counter() - paused
            if self.resume and time.perf_counter() - saved > self.config.checkpoint_s:
                if self.accelerator.is_main_process:
                    self.parts.save(self.resume, self.at, self.best)
                saved = time.perf_counter()
            if state.stop:
                break

    def _step(self, rows: list[np.ndarray], step_fn: Callable[..., StepStats]) -> StepStats:
        rank, step, total = self.ranks.rank, self.at.step, sum(map(len, rows))
        mine = self.ranks.share(rows)
        batches = [
            self.data.batch(part, generator(self.seed, "masks", step, i, rank)).to(
                self.accelerator.device
            )
            for i, part in enumerate(mine)
        ]
        if self.rewrite is not None:
            batches = [
                self.rewrite(self.model, batch, generator(self.seed, "rewrite", step, i, rank))
                for i, batch in enumerate(batches)
            ]
        rngs = [generator(self.seed, "dropout", step, i, rank) for i in range(len(batches))]
        norms = (step + 1) % self.config.log_every == 0 or step == 0
        stats = step_fn(
            self.model,
            batches,
            self.objective,
            self.source,
            self.forward,
            progress=step / self.steps,
            rngs=rngs,
            totals=self.ranks.totals(batches, total),
            norms=norms,
            parameters=self.measured,
        )
        self.ranks.reduce(self.optimizer, stats)
        norm = self.optimizer.clip()
        if norms and len(self.objective.terms) == 1:
            stats.gradient_norms = {self.objective.terms[0].name: norm}
        self.total_norm = norm
        self.optimizer.step(learning_rate(self.config, step, self.steps))
        self.at.step += 1
        self.at.examples += total
        return stats

    def _note(self, stats: StepStats, state: LoopState) -> None:
        """Logs every `log_every` steps; a loss that is not finite ends the run."""
        state.step, state.epoch = self.at.step, self.at.step / self.per_epoch
        first = self.at.step == 1
        if not first and self.at.step % self.config.log_every and self.at.step != self.steps:
            return
        progress = (self.at.step - 1) / self.steps
        loss, norm = float(stats.loss), float(self.total_norm)
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise RunError(
                f"the loss is {loss} and its gradient's norm {norm} at step {self.at.step}: lower "
                "training.lr, or use --set training.precision=float32"
            )
        terms = {
            term.name: {
                "value": float(stats.values[term.name]),
                "gradient_norm": float(stats.gradient_norms.get(term.name, float("nan"))),
                "weight": at(term.weight, progress),
            }
            for term in self.objective.terms
        }
        warned = any("times" in warning for warning in self.at.warnings)  # one a run is enough
        if not warned and (found := imbalance(terms, self.at.step)):
            self.at.warnings.append(found)
        now = time.perf_counter()
        then, examples = self._logged
        rate = (self.at.examples - examples) / (now - then) if now > then else None
        self._logged = (now, self.at.examples)
        state.metrics = {"loss": loss, "rate": rate}
        self.log.write(
            step=self.at.step,
            epoch=round(state.epoch, 4),
            loss=loss,
            gradient_norm=norm,
            lr=learning_rate(self.config, self.at.step - 1, self.steps),
            examples_per_s=rate,
            terms={k: finite(v) for k, v in terms.items()},
        )

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        with training_mode(self.model, on=False), torch.no_grad():
            score = self.evaluate(self.model)
        self.log.write(
            step=self.at.step,
            epoch=round(self.at.step / self.per_epoch, 4),
            event="evaluate",
            split="held-out",
            score=score,
        )
        self.at.last_score = score
        if self.at.best_score is None or score > self.at.best_score:
            self.at.best_score, self.at.best_step, self.at.since_best = score, self.at.step, 0
            if self.config.select == "best":
                self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        else:
            self.at.since_best += 1

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.at.since_best >= self.config.patience

    def finish(self) -> FitResult:
        for p in (*self.model.parameters(), *self.objective.bridges.parameters()):
            p.grad = None
        if self.best:
            self.model.load_state_dict(self.best)
        at = self.at
        return FitResult(
            steps=at.step,
            best_step=at.best_step if self.best else at.step,
            score=at.best_score if self.best else at.last_score,
            examples=at.examples,
            seconds=at.seconds,
            warnings=list(at.warnings),
            peak=at.best_score,
            peak_step=None if at.best_score is None else at.best_step,
            kept=self.parts.states(),
        )
