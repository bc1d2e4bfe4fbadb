"""A training in stages, each done once: a killed run goes on inside the stage where it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.core.config import TrainingConfig
from stillhouse.core.progress import Progress
from stillhouse.core.types import Callback, SignalSource
from stillhouse.evaluation.evaluate import predict, score_rows
from stillhouse.flows.common import set_dropout, state_of
from stillhouse.models.weights import Masks
from stillhouse.tasks.base import Data, Task
from stillhouse.training import checkpoint
from stillhouse.training.callbacks import advancing
from stillhouse.training.loop import FitResult, fit
from stillhouse.training.metrics import MetricsLog
from stillhouse.training.objective import Objective
from stillhouse.training.on_policy import Rewrite
from stillhouse.training.order import steps_per_epoch
from stillhouse.training.resume import Kept
from stillhouse.training.steps import StepStats, TextForward, plain_step

View = Callable[[PreTrainedModel, int], nn.Module]


def whole(model: PreTrainedModel, _: int) -> nn.Module:
    return model


@dataclass(frozen=True)
class Own:
    """What one training of a stage has for itself: its source, what is called after each step,
    what its checkpoint holds besides, and what a batch is replaced by."""

    source: SignalSource | None
    callbacks: tuple[Callback, ...] = ()
    kept: Mapping[str, Kept] = field(default_factory=dict)
    rewrite: Rewrite | None = None


@dataclass(frozen=True)
class Stage:
    """One part of a training, ready to run. `view` is what of the run's model it trains (with a
    seed for what is fresh); `on_rows` says that it trains the run's own task; `evaluate` gives
    the held-out `metric` of what it trains; `answers` says whether the stage, or in a baseline
    the one it stands for, has a term on answers. `masks`, `start` and `step_fn` are the loop's;
    without `fast`, every parameter has its own gradient for `step_fn` to see. `choices`: of a
    model that writes. `by_seed`: what is made anew for each training."""

    name: str
    described: str
    data: Data
    objective: Objective
    source: SignalSource | None
    training: TrainingConfig
    on_rows: bool
    view: View = whole
    metric: str | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    counted: Callable[[int], int] | None = None
    answers: bool = True
    masks: Masks = field(default_factory=dict)
    start: int = 0
    step_fn: Callable[..., StepStats] = plain_step
    fast: bool = True
    callbacks: tuple[Callback, ...] = ()
    choices: int | None = None
    by_seed: Callable[[int], Own] | None = None

    def steps(self, seed: int) -> int:
        """Optimizer steps of a training with `seed`."""
        if self.counted is not None:
            return self.counted(seed)
        per_epoch = steps_per_epoch(self.data, self.training, seed)
        return self.training.steps or max(1, round(self.training.epochs * per_epoch))

    @property
    def gold_only(self) -> bool:
        return self.on_rows and not self.objective.needs_teacher


def score_on(task: Task, held_out: Data, precision: str) -> Callable[[nn.Module], float]:
    """What selects: the task's metric on held-out rows."""

    def evaluate(model: nn.Module) -> float:
        found = predict(model, held_out, task, precision=precision, fast=True, quick=True)
        return task.score(found)[task.metric]

    return evaluate


def joined(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, gold ones on rows that follow each other as one with all their steps.

    It trains as the longest of them that stands for a stage with a term on answers, and selects
    as the last of these does.
    """
    found: list[Stage] = []
    for gold, group in itertools.groupby(stages, key=lambda stage: stage.gold_only):
        members = list(group)
        found += [_one_of(members)] if gold else members
    return found


def _one_of(members: list[Stage]) -> Stage:
    if len(members) == 1:
        return members[0]
    scored = [stage for stage in members if stage.answers] or members
    longest = max(reversed(scored), key=lambda stage: stage.steps(0))
    last = scored[-1].training
    selecting = {name: getattr(last, name) for name in ("select", "evaluations", "patience")}
    return replace(
        members[-1],
        training=longest.training.model_copy(update=selecting),
        counted=lambda seed: sum(stage.steps(seed) for stage in members),
    )


@dataclass(frozen=True)
class Trained:
    """One finished training: the facts of its stages, what its task keeps of its scores of the
    reported rows; weights on disk."""

    role: str
    seed: int
    fits: list[FitResult]
    scores_NK: np.ndarray
    path: Path

    @property
    def fit(self) -> FitResult:
        """The last stage's, which made the weights that are kept."""
        return self.fits[-1]

    @property
    def seconds(self) -> float:
        return sum(fit.seconds for fit in self.fits)

    @property
    def examples(self) -> int:
        return sum(fit.examples for fit in self.fits)

    @property
    def warnings(self) -> list[str]:
        return [text for fit in self.fits for text in fit.warnings]


def train(
    role: str,
    seed: int,
    make: Callable[[], PreTrainedModel],
    stages: Sequence[Stage],
    *,
    task: Task,
    reported: Data,
    out: Path,
    progress: Progress,
    start: tuple[int, Path] | None = None,
) -> Trained:
    """Trains one model of a run through its stages (at least one), or finds that it was done.

    Selection sees held-out rows only. The reported rows are answered once, when all is over, in
    the last stage's precision.
    `start`: stages to leave out, and another training's weights after these.
    """
    path = out / "checkpoints" / f"{role}-{seed}.safetensors"
    found = checkpoint.load(path)
    if found is not None:
        progress.note(f"{role}, seed {seed}: trained before")
        tensors, facts = found
        fits = [FitResult(**each) for each in facts["fits"]]
        return Trained(role, seed, fits, tensors["|reported"].numpy(), path)
    model = make()
    made = state_of(model)
    fits: list[FitResult] = []
    first, half = 0, _half(out, role, seed, None)
    if start is not None:
        first, before = start
        fits = _resume(model, before)
    for position, stage in enumerate(stages[first:], start=first):
        done = stage_path(out, role, seed, position)
        if position < len(stages) - 1 and done.exists():
            progress.note(f"{role}, seed {seed}, {stage.name}: trained before")
            fits = _resume(model, done)
            continue
        half = _half(out, role, seed, stage if len(stages) > 1 else None)
        made.restore()
        fits = [*fits, _one(role, seed, model, stage, len(stages) > 1, out, half, progress)]
        if position < len(stages) - 1:
            checkpoint.save(done, dict(model.state_dict()), {"fits": [asdict(f) for f in fits]})
            half.unlink(missing_ok=True)
    tensors = dict(model.state_dict())
    precision = stages[-1].training.precision
    title = f"answering reported rows, {role}, seed {seed}"
    with progress.stage(title, len(reported), "rows") as advance:
        scores_NS = score_rows(model, reported, task, precision=precision, progress=advance)
    tensors["|reported"] = torch.from_numpy(scores_NS)
    checkpoint.save(path, tensors, {"fits": [asdict(f) for f in fits]})
    half.unlink(missing_ok=True)
    return Trained(role, seed, fits, tensors["|reported"].numpy(), path)


def stage_path(out: Path, role: str, seed: int, position: int) -> Path:
    """Where the weights after a stage are, until the run is done."""
    return out / "checkpoints" / f"{role}-{seed}.stage-{position}.safetensors"


def _half(out: Path, role: str, seed: int, stage: Stage | None) -> Path:
    """Where the checkpoint of a training that is under way is."""
    name = f"{role}-{seed}" + (f".{stage.name}" if stage else "")
    return out / "checkpoints" / f"{name}.partial.safetensors"


def _resume(model: nn.Module, path: Path) -> list[FitResult]:
    found = checkpoint.load(path)
    assert found is not None
    model.load_state_dict(found[0])
    return [FitResult(**each) for each in found[1]["fits"]]


def _one(
    role: str, seed: int, model: PreTrainedModel, stage: Stage, several: bool, out: Path,
    half: Path, progress: Progress,
) -> FitResult:  # fmt: skip
    """Trains one stage in place; its checkpoint stays until its weights are kept elsewhere."""
    set_dropout(model, stage.training.dropout)
    trained = stage.view(model, seed)
    set_dropout(trained, stage.training.dropout)
    labels = {"run": role, "seed": seed} | ({"stage": stage.name} if several else {})
    title = f"{role}, seed {seed}" + (f", {stage.name}" if several else "")
    if half.exists():
        progress.note(f"{title}: goes on from its last checkpoint")
    steps = stage.steps(seed)
    objective = stage.objective
    forward = TextForward(
        stage.training,
        fast=stage.fast,
        reads=objective.student_taps,
        scored=objective.scores_student,
        choices=stage.choices,
    )
    own = Own(stage.source) if stage.by_seed is None else stage.by_seed(seed)
    with progress.stage(f"training {title}", steps, "steps") as advance:
        result = fit(
            trained,
            stage.data,
            objective,
            own.source,
            stage.training.model_copy(update={"steps": steps}),
            seed=seed,
            forward=forward,
            evaluate=stage.evaluate,
            log=MetricsLog(out / "metrics.jsonl", **labels),
            resume=half,
            callbacks=[advancing(advance), *stage.callbacks, *own.callbacks],
            step_fn=stage.step_fn,
            masks=stage.masks,
            start=stage.start,
            rewrite=own.rewrite,
            kept=own.kept,
        )
    return result


def load_trained(trained: Trained, model: nn.Module) -> nn.Module:
    """`model` with the weights of a finished training."""
    found = checkpoint.load(trained.path)
    assert found is not None
    weights = {name: tensor for name, tensor in found[0].items() if not name.startswith("|")}
    model.load_state_dict(weights)
    return model.eval()


def best_of(runs: list[Trained], stage: int = -1) -> Trained:
    """The run to ship: the best on held-out rows after a stage; without any, the first seed's."""

    def score(run: Trained) -> float:
        found = run.fits[stage].score
        return -np.inf if found is None else found

    return max(runs, key=score)
