"""Distil a classifier or a regressor, beside the same student trained without the teacher."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import SOFT_AND_GOLD, DistillConfig
from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import claim, manifest, write_json
from stillhouse.core.seeding import generator, shape_seed
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense
from stillhouse.data.encoding import tokenizer_fingerprint
from stillhouse.data.sources import Splits, load, shared
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.flows.common import (
    TRAINED_ON,
    Trained,
    best_of,
    check_padding,
    dataset,
    load_trained,
    max_tokens,
    store_root,
    teacher_task,
    train_once,
)
from stillhouse.models.load import (
    fingerprint,
    folder_fingerprint,
    load_classifier,
    load_tokenizer,
)
from stillhouse.models.student import build, refuse_larger
from stillhouse.signals.cache import AnswerCache, CachedTeacher
from stillhouse.signals.teacher import TOLERANCE, LiveTeacher, check, label
from stillhouse.tasks.base import Dataset, Task
from stillhouse.training import objective as objectives
from stillhouse.training.order import steps_per_epoch


@dataclass
class Setup:
    """Everything checked and ready, before a file of the run is written."""

    config: DistillConfig
    task: Task
    splits: Splits
    teacher: PreTrainedModel
    teacher_tokenizer: PreTrainedTokenizerBase
    tokenizer: PreTrainedTokenizerBase
    make: Callable[[int], PreTrainedModel]
    store: Path

    @property
    def content(self) -> dict[str, str]:
        """Fingerprints of what the config names by path."""
        found = {
            "teacher": fingerprint(self.teacher),
            "teacher's tokenizer": tokenizer_fingerprint(self.teacher_tokenizer),
            "data": self.splits.fingerprint,
        }
        if named := self.config.student.model or self.config.student.source:
            found["student's model"] = folder_fingerprint(named)
        return found


@dataclass
class Outcome:
    """What a distillation leaves for the record. Axes: N rows, K choices."""

    setup: Setup
    student: nn.Module
    best: Trained
    students: list[Trained]
    baselines: list[Trained]
    teacher_scores_NK: np.ndarray
    reported: Dataset
    teacher_reported: Dataset
    teacher_s: float
    total_s: float
    notes: list[str]


def default_objective(config: DistillConfig, task: Task) -> tuple[TermConfig, ...]:
    """The asked objective; for a regression left at the default, its soft term is the squared
    difference of values, which has no temperature."""
    if task.name != "regression" or config.objective != SOFT_AND_GOLD:
        return config.objective
    soft, gold = SOFT_AND_GOLD
    return (TermConfig(kind="soft", divergence="logit_mse", weight=soft.weight), gold)


def prepare(config: DistillConfig) -> Setup:
    """Loads and checks everything a run needs. Raises UsageError before anything is trained."""
    store = store_root(config.cache)
    splits = load(config.data, store / "rows")
    trust = config.trust_remote_code
    teacher = load_classifier(config.teacher, trust_remote_code=trust)
    teacher_tokenizer = load_tokenizer(config.teacher, trust_remote_code=trust)
    labelled = [splits.labelled, splits.held_out, splits.reported]
    task = teacher_task(
        teacher.config,
        labelled,
        asked=config.task,
        label_map=config.data.label_map,
        metric=config.proof.metric,
    )
    check_metric(task, config.proof.metric)
    shape = config.student
    named = shape.model or shape.source
    tokenizer = load_tokenizer(named, trust_remote_code=trust) if named else teacher_tokenizer

    def make(seed: int) -> PreTrainedModel:
        source = teacher
        if named:
            with torch.random.fork_rng(devices=[]):  # for a head that the named model lacks
                torch.manual_seed(shape_seed(seed))
                source = load_classifier(named, labels=task.choices, trust_remote_code=trust)
        return source if shape.model else build(source, shape, seed=shape_seed(seed))

    student = make(config.proof.seeds[0])
    refuse_larger(student, teacher)
    check_padding(teacher, teacher_tokenizer)
    check_padding(student, tokenizer)
    objectives.build(
        default_objective(config, task),
        choices=len(task.choices),
        signal=Dense,
        has_gold=bool(len(splits.labelled)),
    )
    return Setup(config, task, splits, teacher, teacher_tokenizer, tokenizer, make, store)


def ask_teacher(setup: Setup, data: Dataset, progress: Progress) -> tuple[CachedTeacher, float]:
    """The teacher's answers to all training rows, from its cache; and the seconds it took.

    A sample is asked again live and compared, so that a cache of another teacher is noticed.
    """
    config, teacher = setup.config.label, setup.teacher
    identity: dict[str, object] = {
        "teacher": fingerprint(teacher),
        "tokenizer": tokenizer_fingerprint(setup.teacher_tokenizer),
        "max_length": max_tokens(teacher, setup.config.data.max_length),
        "precision": config.precision,
        "choices": setup.task.choices,
    }
    started = time.perf_counter()
    cache = AnswerCache(setup.store, identity)
    live = LiveTeacher(teacher, data, fingerprint=cache.fingerprint, precision=config.precision)
    with progress.stage("asking the teacher", len(data), "rows") as advance:
        label(live, cache, config, progress=advance)
    seconds = time.perf_counter() - started
    source = CachedTeacher(cache, data.keys_N2)
    sample = generator(0, "cache check").permutation(len(data))[: config.check_rows]
    exact = LiveTeacher(teacher, data, fingerprint="live", precision="float32", fast=False)
    worst = check(exact, source.signal, rows=np.sort(sample), tolerance=TOLERANCE[config.precision])
    progress.note(
        f"cached answers agree with the live teacher within {worst:.4f} on {len(sample)} rows"
    )
    return source, seconds


def distill(config: DistillConfig, out: Path, *, progress: Progress | None = None) -> Outcome:
    """Trains students and baselines over the seeds in the run folder `out`.

    A run that was killed goes on where it was. Raises UsageError, RunError.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    setup = prepare(config)
    claim(out, config.model_dump(mode="json"), setup.content)
    for note in setup.splits.notes:
        progress.note(note)
    task, splits, training = setup.task, setup.splits, config.training
    length = max_tokens(setup.make(config.proof.seeds[0]), config.data.max_length)
    teacher_length = max_tokens(setup.teacher, config.data.max_length)

    def ready(pool, title: str, *, of_teacher: bool = False) -> Dataset:  # noqa: ANN001
        tokenizer = setup.teacher_tokenizer if of_teacher else setup.tokenizer
        return dataset(
            task,
            pool,
            tokenizer,
            setup.store,
            progress=progress,
            title=title,
            max_length=teacher_length if of_teacher else length,
        )

    train, held_out = ready(splits.train, "training rows"), ready(splits.held_out, "held-out rows")
    reported = ready(splits.reported, "reported rows")
    same_tokens = setup.tokenizer is setup.teacher_tokenizer and length == teacher_length
    for_teacher = (
        train if same_tokens else ready(splits.train, "rows for the teacher", of_teacher=True)
    )
    source, teacher_s = ask_teacher(setup, for_teacher, progress)
    terms = default_objective(config, task)
    objective = objectives.build(
        terms, choices=len(task.choices), signal=Dense, has_gold=bool(len(splits.labelled))
    )
    alone = objectives.build(
        [TermConfig(kind="gold")], choices=len(task.choices), signal=None, has_gold=True
    )
    labelled = train if not len(splits.unlabelled) else ready(splits.labelled, "labelled rows")
    doubts = [*_seen_by_teacher(setup), *_no_better_than_chance(task, source, train)]
    for doubt in doubts:
        progress.note(doubt)
    facts = {
        "seeds": config.proof.seeds,
        "teacher": source.fingerprint,
        "data": splits.train.fingerprint,
        "reported": splits.reported.fingerprint,
    }
    write_json(out / "manifest.json", manifest(**facts, content=setup.content))
    students, baselines = [], []
    common = {
        "task": task,
        "held_out": held_out,
        "reported": reported,
        "out": out,
        "progress": progress,
    }
    for seed in config.proof.seeds:
        make = lambda seed=seed: setup.make(seed)  # noqa: E731
        students.append(
            train_once("student", seed, make, train, objective, source, training, **common)
        )
        if config.proof.baseline:
            steps = training.steps or max(
                1, round(training.epochs * steps_per_epoch(train, training, seed))
            )
            same = training.model_copy(update={"steps": steps})
            baselines.append(
                train_once("baseline", seed, make, labelled, alone, None, same, **common)
            )
    teacher_reported = (
        reported if same_tokens else ready(splits.reported, "reported rows", of_teacher=True)
    )
    best = best_of(students)
    return Outcome(
        setup,
        load_trained(best, setup.make(best.seed)),
        best,
        students,
        baselines,
        score_rows(setup.teacher, teacher_reported),
        reported,
        teacher_reported,
        teacher_s,
        time.perf_counter() - started,
        [*setup.splits.notes, *doubts],
    )


def _seen_by_teacher(setup: Setup) -> list[str]:
    """A warning where rows to report on were the teacher's training rows, if it says which."""
    path = Path(setup.config.teacher) / TRAINED_ON
    if not path.is_file():
        return []
    reported_N2 = setup.splits.reported.folded_N2
    count = int(shared(reported_N2, np.load(path)).sum())
    if not count:
        return []
    return [
        f"the teacher was trained on {count} of the {len(reported_N2)} rows to report on: "
        "its score is flattered, and with it the student's"
    ]


def _no_better_than_chance(task: Task, source: CachedTeacher, train: Dataset) -> list[str]:
    """A warning where the teacher answers the labelled rows no better than one class would."""
    rows = np.flatnonzero(task.has_gold(train.gold_N).numpy())
    if task.name != "classification" or not len(rows):
        return []
    gold_N = train.gold_N.numpy()[rows]
    answers_N = source.signal(Batch({}, rows)).scores_NK.argmax(-1).numpy()
    right, most = float((answers_N == gold_N).mean()), np.bincount(gold_N).max() / len(rows)
    if right > most:
        return []
    return [
        f"the teacher is right on {100 * right:.1f} % of the labelled rows, the commonest label "
        f"on {100 * most:.1f} %: are its labels matched as you meant (--label-map)?"
    ]


def label_only(config: DistillConfig, *, progress: Progress | None = None) -> tuple[Path, int]:
    """Writes the teacher's answers to every training row into the cache; where, and how many."""
    progress = progress or Silent()
    setup = prepare(config)
    for note in setup.splits.notes:
        progress.note(note)
    train = dataset(
        setup.task,
        setup.splits.train,
        setup.teacher_tokenizer,
        setup.store,
        progress=progress,
        max_length=max_tokens(setup.teacher, config.data.max_length),
        title="training rows",
    )
    ask_teacher(setup, train, progress)
    return setup.store, len(train)


def require_gold(splits: Splits) -> None:
    if not len(splits.labelled):
        raise DataError("no training row has a label: a baseline and a verdict need some")


def check_metric(task: Task, metric: str | None) -> None:
    """Raises UsageError for a metric that the task doesn't have."""
    known = {
        "classification": ("accuracy", "macro_f1", "matthews"),
        "regression": ("pearson", "spearman"),
    }[task.name]
    if metric is not None and metric not in known:
        raise UsageError(f"{task.name} has no metric {metric}: choose {', '.join(known)}")
