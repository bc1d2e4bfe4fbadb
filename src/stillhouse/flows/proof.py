"""From a run's answers to its record: scores, intervals, the gain and the verdict in words.

Axes: N rows, K choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from stillhouse.core.results import (
    Ablation,
    DataSummary,
    Disagreement,
    Efficiency,
    ExportResult,
    Gain,
    ModelResult,
    Record,
    Timing,
    TrainedResult,
    Verdict,
)
from stillhouse.core.seeding import generator
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Predictions
from stillhouse.data.corpus import Corpus
from stillhouse.data.sources import Splits
from stillhouse.evaluation.evaluate import calibration, confusion, interval
from stillhouse.flows.diagnose import diagnosis, similarity, stage_results
from stillhouse.flows.distill import Outcome, Without
from stillhouse.flows.finetune import Finetuned
from stillhouse.flows.setup import stage_terms
from stillhouse.flows.stages import Trained
from stillhouse.numerics import stats
from stillhouse.tasks.base import Task

SHOWN = 30


def _summary(splits: Splits | None, corpus: Corpus | None, labels: list[str]) -> DataSummary:
    """Rows by what they are for; of running text, blocks."""
    if splits is None:
        assert corpus is not None
        return DataSummary(
            train=len(corpus.train),
            labelled=0,
            unlabelled=len(corpus.train),
            held_out=len(corpus.held_out),
            reported=len(corpus.reported),
            labels=[],
        )
    return DataSummary(
        train=len(splits.train),
        labelled=len(splits.labelled),
        unlabelled=len(splits.unlabelled),
        held_out=len(splits.held_out),
        reported=len(splits.reported),
        labels=labels,
        dropped=splits.dropped,
    )


def _model(
    name: str, task: Task, predictions: Predictions, cost: Efficiency, *, resamples: int
) -> ModelResult:
    rng = generator(0, "interval", name)
    error, bins = calibration(predictions)
    metrics = task.score(predictions)
    return ModelResult(
        **cost.model_dump(),
        name=name,
        score=metrics[task.metric],
        metrics=metrics,
        interval=interval(
            task, [predictions.answers_N], predictions.gold_N, resamples=resamples, rng=rng
        ),
        calibration_error=error,
        reliability=bins,
        confusion=confusion(predictions, task),
    )


def _trained(
    name: str,
    task: Task,
    runs: list[Trained],
    best: Trained,
    cost: Efficiency,
    teacher: Predictions | None,
    teacher_score: float | None,
    gold_N: Tensor,
    *,
    resamples: int,
) -> TrainedResult:
    """Means over seeds; calibration and confusion of the seed that is shipped."""
    all_answers = [task.predictions(run.scores_NK, gold_N) for run in runs]
    scored = [task.score(predictions) for predictions in all_answers]
    metrics = {key: float(np.mean([s[key] for s in scored])) for key in scored[0]}
    shipped = task.predictions(best.scores_NK, gold_N)
    error, bins = calibration(shipped)
    score = metrics[task.metric]
    agreement = None
    if teacher is not None:
        agreement = float(
            np.mean([task.agreement(p.answers_N, teacher.answers_N) for p in all_answers])
        )
    return TrainedResult(
        **cost.model_dump(),
        name=name,
        score=score,
        metrics=metrics,
        interval=interval(
            task,
            [p.answers_N for p in all_answers],
            shipped.gold_N,
            resamples=resamples,
            rng=generator(0, "interval", name),
        ),
        calibration_error=error,
        reliability=bins,
        confusion=confusion(shipped, task),
        seeds=[s[task.metric] for s in scored],
        shipped_seed=best.seed,
        shipped_score=task.score(shipped)[task.metric],
        agreement=agreement,
        retention=score / teacher_score if teacher_score else None,
        best_steps=[run.fit.best_step for run in runs],
    )


def _disagreements(
    outcome: Outcome, task: Task, teacher: Predictions, student: Predictions
) -> list[Disagreement]:
    """The reported rows where the two differ most: by the teacher's confidence in classification,
    by distance in regression. None of running text."""
    if outcome.setup.splits is None:
        return []
    if teacher.probabilities_NK is None or student.probabilities_NK is None:
        order = np.argsort(-np.abs(teacher.answers_N - student.answers_N), kind="stable")
    else:
        confidence = teacher.probabilities_NK.max(-1)
        differ = teacher.answers_N != student.answers_N
        order = np.argsort(-np.where(differ, confidence, -1.0), kind="stable")[: int(differ.sum())]
    chosen = order[:SHOWN]
    examples = outcome.setup.splits.reported.at(chosen)

    def confidence_of(predictions: Predictions, row: int) -> float | None:
        held = predictions.probabilities_NK
        return None if held is None else float(held[row].max())

    return [
        Disagreement(
            text=example.text,
            pair=example.pair,
            gold=task.show(float(teacher.gold_N[row])),
            teacher=task.show(float(teacher.answers_N[row])),
            student=task.show(float(student.answers_N[row])),
            teacher_confidence=confidence_of(teacher, row),
            student_confidence=confidence_of(student, row),
        )
        for row, example in zip(chosen.tolist(), examples, strict=True)
    ]


def _gain(
    task: Task,
    students: list[Trained],
    baselines: list[Trained],
    gold_N: Tensor,
    *,
    resamples: int,
) -> tuple[Gain, Verdict]:
    answers = [
        [task.predictions(run.scores_NK, gold_N).answers_N for run in runs]
        for runs in (students, baselines)
    ]
    found = stats.paired_gain(
        lambda a, g: task.metric_of(a, g, task.metric),
        answers[0],
        answers[1],
        task.predictions(students[0].scores_NK, gold_N).gold_N,
        resamples=resamples,
        rng=generator(0, "gain"),
    )
    gain = Gain(value=found.value, interval=found.interval, p_value=found.p_value)
    return gain, stats.verdict(found)


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def sentence(
    task: Task,
    teacher: ModelResult,
    student: TrainedResult,
    gain: Gain | None,
    verdict: Verdict | None,
) -> str:
    """The result in words, for people in a hurry."""
    kept = (
        f"keeps {100 * student.retention:.1f} % of the teacher's {task.metric}"
        if student.retention
        else (f"scores {student.score:.3f} in {task.metric}")
    )
    if student.latency_ms and teacher.latency_ms:
        kept += f" at {teacher.latency_ms / student.latency_ms:.1f} times its speed"
    kept += f" and {100 * student.parameters / teacher.parameters:.0f} % of its parameters"
    if gain is None or verdict is None:
        return f"The student {kept}. No baseline was trained, so whether distilling helped is open."
    low, high = gain.interval
    against = (
        f"{_points(gain.value)} points against the same student trained without the teacher "
        f"(95 % interval {_points(low)} to {_points(high)})"
    )
    lead = {
        "helped": "Distilling helped",
        "hurt": "Distilling hurt",
        "no difference": "Distilling made no difference that these data can show",
    }[verdict]
    return f"{lead}: {against}. The student {kept}."


def distillation_record(
    outcome: Outcome, costs: Mapping[str, Efficiency], exports: list[ExportResult], out: Path
) -> Record:
    """The record of a distillation in `out`. `costs` are the teacher's and the student's."""
    setup, config = outcome.setup, outcome.setup.config
    task, gold_N, resamples = setup.task, outcome.reported.gold_N, config.proof.resamples
    teacher_answers = task.predictions(outcome.teacher_scores_NK, gold_N)
    teacher = _model("teacher", task, teacher_answers, costs["teacher"], resamples=resamples)
    shared = {
        "task": task,
        "cost": costs["student"],
        "teacher": teacher_answers,
        "teacher_score": teacher.score,
        "gold_N": gold_N,
        "resamples": resamples,
    }
    student = _trained("student", runs=outcome.students, best=outcome.best, **shared)
    baseline = gain = verdict = None
    if outcome.baselines:
        matching = next(run for run in outcome.baselines if run.seed == outcome.best.seed)
        baseline = _trained("baseline", runs=outcome.baselines, best=matching, **shared)
        gain, verdict = _gain(
            task, outcome.students, outcome.baselines, gold_N, resamples=resamples
        )
    seconds = sum(run.seconds for run in outcome.students)
    terms = [term for stage in config.plan for term in stage_terms(stage, task)]
    soft = next((t for t in terms if isinstance(t, TermConfig) and t.kind == "soft"), None)
    ablations = [_ablation(task, outcome, each, gold_N, resamples) for each in outcome.ablations]
    alike = similarity(outcome)
    stages = stage_results(outcome, out)
    return Record(
        flow="distill",
        task=task.name,
        metric=task.metric,
        data=_summary(setup.splits, setup.corpus, task.choices),
        teacher=teacher,
        student=student,
        baseline=baseline,
        gain=gain,
        verdict=verdict,
        sentence=sentence(task, teacher, student, gain, verdict),
        timing=Timing(
            teacher_s=outcome.teacher_s,
            student_s=seconds,
            baseline_s=sum(r.seconds for r in outcome.baselines) if outcome.baselines else None,
            total_s=outcome.total_s,
            examples_per_s=sum(run.examples for run in outcome.students) / max(seconds, 1e-9),
        ),
        exports=exports,
        disagreements=_disagreements(
            outcome, task, teacher_answers, task.predictions(outcome.best.scores_NK, gold_N)
        ),
        warnings=[*outcome.notes, *_run_warnings(outcome.students)],
        temperature=soft.temperature.start if soft else None,
        stages=stages,
        ablations=ablations,
        similarity=alike,
        diagnosis=diagnosis(stages, ablations, alike, verdict),
    )


def _ablation(
    task: Task, outcome: Outcome, found: Without, gold_N: Tensor, resamples: int
) -> Ablation:
    """The whole run against the same without one term."""
    gain, verdict = _gain(task, outcome.students, found.runs, gold_N, resamples=resamples)
    predictions = [task.predictions(run.scores_NK, gold_N) for run in found.runs]
    scores = [task.score(each)[task.metric] for each in predictions]
    covered = interval(
        task,
        [each.answers_N for each in predictions],
        predictions[0].gold_N,
        resamples=resamples,
        rng=generator(0, "interval", found.stage, found.term),
    )
    return Ablation(
        stage=found.stage,
        without=found.term,
        score=float(np.mean(scores)),
        interval=covered,
        seeds=scores,
        gain=gain,
        verdict=verdict,
    )


def _run_warnings(runs: list[Trained]) -> list[str]:
    return [f"{run.role}, seed {run.seed}: {text}" for run in runs for text in run.warnings]


def finetune_record(done: Finetuned, cost: Efficiency) -> Record:
    """The record of a fine-tuning: one model, no teacher, no verdict."""
    task, gold_N = done.task, done.reported.gold_N
    model = _trained(
        "model",
        task=task,
        runs=[done.trained],
        best=done.trained,
        cost=cost,
        teacher=None,
        teacher_score=None,
        gold_N=gold_N,
        resamples=done.config.resamples,
    )
    seconds = done.trained.seconds
    low, high = model.interval
    return Record(
        flow="finetune",
        task=task.name,
        metric=task.metric,
        data=_summary(done.splits, done.corpus, task.choices),
        teacher=None,
        student=model,
        baseline=None,
        gain=None,
        verdict=None,
        sentence=f"{task.metric} {model.score:.3f} on {len(done.reported):,} rows "
        f"(95 % interval {low:.3f} to {high:.3f}).",
        timing=Timing(
            teacher_s=0.0,
            student_s=seconds,
            total_s=done.total_s,
            examples_per_s=done.trained.examples / max(seconds, 1e-9),
        ),
        warnings=[*done.notes, *_run_warnings([done.trained])],
    )
