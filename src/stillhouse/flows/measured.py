"""Scores as they stand in a record: of a model, over seeds, against another, without a term.

Axes: N rows, K choices.
"""

from __future__ import annotations

import numpy as np

from stillhouse.core.results import (
    Ablation,
    DataSummary,
    Disagreement,
    Efficiency,
    ModelResult,
    TrainedResult,
)
from stillhouse.core.seeding import generator
from stillhouse.core.types import Predictions
from stillhouse.data.corpus import Corpus
from stillhouse.data.sources import Splits
from stillhouse.evaluation.comparison import Comparison, compare
from stillhouse.evaluation.evaluate import (
    calibration,
    classes,
    confusion,
    groups_of,
    interval,
    never_predicted,
)
from stillhouse.flows.distill import Outcome, Without
from stillhouse.flows.stages import Trained
from stillhouse.numerics.sequences import sentence_bleu
from stillhouse.tasks.base import Data, Task

SHOWN = 30


def summary(splits: Splits | None, corpus: Corpus | None, labels: list[str]) -> DataSummary:
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


def measured(
    name: str,
    task: Task,
    predictions: Predictions,
    cost: Efficiency,
    *,
    resamples: int,
    groups: np.ndarray | None,
) -> ModelResult:
    """One model's scores; `groups` as in `evaluate.groups_of`."""
    rng = generator(0, "interval", name)
    error, bins = calibration(predictions)
    metrics = task.score(predictions)
    table = confusion(predictions, task)
    return ModelResult(
        **cost.model_dump(),
        name=name,
        score=metrics[task.metric],
        metrics=metrics,
        interval=interval(
            task,
            [predictions.answers_N],
            predictions.gold_N,
            resamples=resamples,
            rng=rng,
            groups=groups,
        ),
        calibration_error=error,
        reliability=bins,
        confusion=table,
        never_predicted=never_predicted(table, task),
        classes=classes(table, task),
    )


def measured_over_seeds(
    name: str,
    task: Task,
    runs: list[Trained],
    best: Trained,
    cost: Efficiency,
    teacher: Predictions | None,
    teacher_score: float | None,
    data: Data,
    *,
    resamples: int,
) -> TrainedResult:
    """Means over seeds; calibration and confusion of the seed that is shipped."""
    all_answers = [task.predictions(run.scores_NK, data) for run in runs]
    scored = [task.score(predictions) for predictions in all_answers]
    metrics = {key: float(np.mean([s[key] for s in scored])) for key in scored[0]}
    shipped = task.predictions(best.scores_NK, data)
    error, bins = calibration(shipped)
    table = confusion(shipped, task)
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
            groups=groups_of(data),
        ),
        calibration_error=error,
        reliability=bins,
        confusion=table,
        never_predicted=never_predicted(table, task),
        classes=classes(table, task),
        seeds=[s[task.metric] for s in scored],
        shipped_seed=best.seed,
        shipped_score=task.score(shipped)[task.metric],
        agreement=agreement,
        retention=score / teacher_score if teacher_score and teacher_score > 0 else None,
        best_steps=[run.fit.best_step for run in runs],
    )


def disagreements(
    outcome: Outcome, task: Task, teacher: Predictions, student: Predictions
) -> list[Disagreement]:
    """The reported rows where the two differ most: by the teacher's confidence in classification,
    by distance in regression, by words in texts. None of running text."""
    if outcome.setup.splits is None or (outcome.setup.writes and not task.judges_texts):
        return []
    if task.judges_texts:
        alike = _likeness(teacher.answers_N["text"], student.answers_N["text"])
        order = np.argsort(alike, kind="stable")[: int((alike < 1).sum())]
    elif teacher.answers_N.dtype == object:
        pairs = zip(teacher.answers_N, student.answers_N, strict=True)
        alike = np.array([task.agreement(*map(_alone, pair)) for pair in pairs])
        order = np.argsort(alike, kind="stable")[: int((alike < 1).sum())]
    elif teacher.probabilities_NK is None or student.probabilities_NK is None:
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
            gold=task.show(teacher.gold_N[row]),
            teacher=task.show(teacher.answers_N[row]),
            student=task.show(student.answers_N[row]),
            teacher_confidence=confidence_of(teacher, row),
            student_confidence=confidence_of(student, row),
        )
        for row, example in zip(chosen.tolist(), examples, strict=True)
    ]


def _likeness(theirs_N: np.ndarray, mine_N: np.ndarray) -> np.ndarray:
    """Smoothed BLEU of each of my texts against theirs."""
    pairs = zip(theirs_N, mine_N, strict=True)
    return np.array([sentence_bleu(m.split(), t.split(), smoothing="halving") for t, m in pairs])


def _alone(answer: object) -> np.ndarray:
    return np.array([answer], object)


def gain_of(
    task: Task,
    students: list[Trained],
    baselines: list[Trained],
    data: Data,
    *,
    margin: float | None,
    resamples: int,
    seen: float = 0.0,
) -> Comparison:
    """The students against the baselines of the same seeds; `margin` and `seen` as in `compare`."""
    answers = [
        [task.predictions(run.scores_NK, data).answers_N for run in runs]
        for runs in (students, baselines)
    ]
    return compare(
        task,
        answers[0],
        answers[1],
        task.predictions(students[0].scores_NK, data).gold_N,
        margin=margin,
        resamples=resamples,
        rng=generator(0, "gain"),
        groups=groups_of(data),
        seen=seen,
    )


def ablation_of(
    task: Task,
    outcome: Outcome,
    found: Without,
    data: Data,
    *,
    margin: float | None,
    resamples: int,
) -> Ablation:
    """The whole run against the same without one term."""
    compared = gain_of(
        task, outcome.students, found.runs, data, margin=margin, resamples=resamples,
        seen=outcome.seen,
    )  # fmt: skip
    predictions = [task.predictions(run.scores_NK, data) for run in found.runs]
    scores = [task.score(each)[task.metric] for each in predictions]
    covered = interval(
        task,
        [each.answers_N for each in predictions],
        predictions[0].gold_N,
        resamples=resamples,
        rng=generator(0, "interval", found.stage, found.term),
        groups=groups_of(data),
    )
    return Ablation(
        stage=found.stage,
        without=found.term,
        gold_instead=found.gold_instead,
        score=float(np.mean(scores)),
        interval=covered,
        seeds=scores,
        gain=compared.gain,
        verdict=compared.verdict,
    )
