"""Distil a model in one stage or several, beside the same student trained without the teacher."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from stillhouse.core.config import WRITING, DistillConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.manifest import manifest
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import check_free, claim, write_json
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch
from stillhouse.flows.ablation import gold_instead, without
from stillhouse.flows.plan import Plan
from stillhouse.flows.prepare import prepare
from stillhouse.flows.setup import Setup
from stillhouse.flows.several import teacher_scores
from stillhouse.flows.stages import (
    Stage,
    Trained,
    best_of,
    load_trained,
    stage_path,
    train,
)
from stillhouse.flows.training_data import seen_before, seen_share
from stillhouse.flows.written import Writing
from stillhouse.signals.cache import CachedTeacher
from stillhouse.tasks.base import Data, Dataset
from stillhouse.training.objective import term_names


@dataclass
class Without:
    """The run again without one term of one stage."""

    stage: str
    term: str
    gold_instead: bool
    runs: list[Trained]


@dataclass
class Outcome:
    """What a distillation leaves for the record. Axes: N rows, K choices."""

    setup: Setup
    student: nn.Module
    best: Trained
    stages: list[Stage]
    students: list[Trained]
    baselines: list[Trained]
    ablations: list[Without]
    teacher_scores_NK: np.ndarray
    held_out: Data
    teacher_held_out: Data
    reported: Data
    teacher_reported: Data
    teacher_s: float
    total_s: float
    teacher_rows: tuple[int, int] = (0, 0)  # that needed an answer, and that had one before
    notes: list[str] = field(default_factory=list)
    writing: Writing | None = None
    best_baseline: Trained | None = None
    seen: float = 0.0  # share of the reported rows that a model it starts from was trained on


def distill(config: DistillConfig, out: Path, *, progress: Progress | None = None) -> Outcome:
    """Trains students and baselines over the seeds in the run folder `out`.

    A run that was killed goes on where it was. Raises UsageError, RunError.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    settings = config.model_dump(mode="json")
    setup = prepare(config, auto=Auto.of(out), progress=progress)
    auto, told, config = setup.auto, setup.auto.notes(config), setup.config
    _check_answers(setup)
    content = setup.content
    check_free(out, settings, content)
    for note in [*setup.notes, *told]:
        progress.note(note)
    plan = Plan(setup, progress)
    stages = plan.stages(setup.config.plan)
    alone = plan.alone(setup.config.plan) if config.evaluation.baseline else []
    variants = _variants(setup, plan) if config.evaluation.ablation else []
    claim(out, settings, content)
    doubts = seen_before(starts(config), setup.data)
    doubts += [*_no_better_than_chance(plan), *_one_of_several(config)]
    for doubt in doubts:
        progress.note(doubt)
    facts = {
        "seeds": config.evaluation.seeds,
        "data": content["data"],
        "teacher": content["teacher"],
    }
    write_json(out / "manifest.json", manifest(**facts, content=content, auto=auto.facts))
    if len(stages) > 1:
        for stage in stages:
            steps = stage.steps(config.evaluation.seeds[0])
            progress.note(
                f"stage {stage.name}: {len(stage.data):,} {stage.described}, {steps:,} steps"
            )
    if variants:
        each = 1 + bool(alone) + len(variants)
        progress.note(f"{each} trainings a seed: the student's, {len(variants)} without a term"
                      + (", the baseline's" if alone else ""))  # fmt: skip
    common = {"task": setup.task, "reported": plan.reported, "out": out, "progress": progress}
    students, baselines = [], []
    ablations = [variant for variant, _ in variants]
    for seed in config.evaluation.seeds:
        make = lambda seed=seed: setup.make(seed)  # noqa: E731
        students.append(train("student", seed, make, stages, **common))
        if alone:
            start = _shared_start(out, seed, stages, alone)
            baselines.append(train("baseline", seed, make, alone, **common, start=start))
        for found, changed in variants:
            role = f"student-without-{found.stage}-{found.term}"
            start = _shared_start(out, seed, stages, changed)
            found.runs.append(train(role, seed, make, changed, **common, start=start))
    for teacher in (setup.teacher, *setup.teachers.values()):
        teacher.to("cpu")  # pyright: ignore[reportArgumentType]  # from where the students trained
    best = best_of(students, _deciding(stages))
    return Outcome(
        setup=setup,
        student=load_trained(best, setup.make(best.seed)),
        best=best,
        stages=stages,
        students=students,
        baselines=baselines,
        ablations=ablations,
        teacher_scores_NK=teacher_scores(setup, plan.teacher_reported, progress),
        held_out=plan.held_out,
        teacher_held_out=plan.teacher_held_out,
        reported=plan.reported,
        teacher_reported=plan.teacher_reported,
        teacher_s=plan.teacher.seconds,
        total_s=time.perf_counter() - started,
        teacher_rows=(plan.teacher.rows, plan.teacher.cached),
        notes=[*setup.notes, *plan.notes, *doubts],
        writing=plan.writing if setup.writes else None,
        best_baseline=best_of(baselines, _deciding(alone)) if baselines else None,
        seen=seen_share(starts(config), setup.data),
    )


def _deciding(stages: list[Stage]) -> int:
    """The stage whose held-out score chooses the seed: the last on the run's own task that has
    one."""
    scored = [i for i, stage in enumerate(stages) if stage.on_rows and stage.metric is not None]
    return scored[-1] if scored else len(stages) - 1


def _check_answers(setup: Setup) -> None:
    """Raises UsageError where no stage would train what the student answers with."""
    rows = [stage for stage in setup.config.plan if not stage.corpus]
    if setup.writes:
        return  # it has no inner terms
    if not any(isinstance(term, TermConfig) for stage in rows for term in stage.objective):
        raise UsageError(
            "no term looks at the student's answers, so its head would stay as it is made: add a "
            "soft or gold term, or a stage with one"
        )


def _variants(setup: Setup, plan: Plan) -> list[tuple[Without, list[Stage]]]:
    """For each term of the teacher's, the stages without it."""
    configs = setup.config.plan
    found: list[tuple[Without, list[Stage]]] = []
    for config in configs:
        terms = zip(term_names(config.objective), config.objective, strict=True)
        for name, term in terms:
            if term.kind == "gold":
                continue
            changed = without(configs, config.name, name)
            if changed is not None:
                left_out = Without(config.name, name, gold_instead(config, name), [])
                found.append((left_out, plan.stages(changed)))
    return found


def _shared_start(
    out: Path, seed: int, stages: list[Stage], changed: list[Stage]
) -> tuple[int, Path] | None:
    """How many first stages a variant (or the baseline) shares with the whole run, and the
    weights after them: training these again would give the same."""
    same = 0
    for mine, theirs in zip(stages, changed, strict=False):
        if mine.name != theirs.name or mine.objective is not theirs.objective:
            break
        same += 1
    if same == 0 or same == len(changed):
        return None
    path = stage_path(out, "student", seed, same - 1)
    return (same, path) if path.exists() else None


def _one_of_several(config: DistillConfig) -> list[str]:
    if len(config.teachers) < 2 or config.combine == "route":
        return []
    return [f"the student is compared with one of its teachers, {config.teacher}"]


def starts(config: DistillConfig) -> list[tuple[str, str]]:
    """Every model whose knowledge the student gets: what it is, and its name."""
    names = [config.teacher, *(each.model for each in config.teachers)]
    names += [stage.teacher for stage in config.plan if stage.teacher]
    teachers = list(dict.fromkeys(names))
    told = ["the teacher"] if len(teachers) == 1 else [f"the teacher {name}" for name in teachers]
    found = list(zip(told, teachers, strict=True))
    source = config.student.model or config.student.source
    if source and source not in teachers:
        found.append((f"{source}, which the student is made of,", source))
    return found


def _no_better_than_chance(plan: Plan) -> list[str]:
    """A warning where the teacher answers the labelled rows no better than one class would."""
    setup = plan.setup
    if setup.task.name != "classification" or not plan.teacher.asked:
        return []
    source, train = plan.teacher.asked[0]
    return _chance(source, train, setup)


def _chance(source: CachedTeacher, train: Dataset, setup: Setup) -> list[str]:
    rows = np.flatnonzero(setup.task.has_gold(train.gold_N).numpy())
    if not len(rows):
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
    if config.task == "masked_lm":
        raise UsageError("a masked language model is asked anew for every mask: nothing to keep")
    if config.task in WRITING:
        return _label_writing(config, progress)
    setup = prepare(config, progress=progress)
    if setup.task.name == "span":
        raise UsageError("a model of spans is asked live: there is nothing to keep")
    for note in [*setup.auto.notes(config), *setup.notes]:
        progress.note(note)
    train_rows = setup.rows.train
    Plan(setup, progress).answers(train_rows, "training rows")
    return setup.store, len(train_rows)


def _label_writing(config: DistillConfig, progress: Progress) -> tuple[Path, int]:
    """What the run's stages will ask a teacher that writes: its distributions, its texts."""
    by_token = any(term.kind != "gold" for stage in config.plan for term in stage.objective)
    if all(stage.targets == "gold" for stage in config.plan) and not (
        by_token and config.label.tokens == "sparse"
    ):
        raise UsageError(
            "a model that writes is asked live: to keep its distributions use --set "
            "label.tokens=sparse, to keep its texts --method seq-kd"
        )
    setup = prepare(config, progress=progress)
    for note in [*setup.auto.notes(config), *setup.notes]:
        progress.note(note)
    stages = Plan(setup, progress).stages(setup.config.plan)
    return setup.store, max(len(stage.data) for stage in stages)
