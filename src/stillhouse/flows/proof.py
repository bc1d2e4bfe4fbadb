"""From a run's answers to its record: the gain and the verdict in words.

Axes: N rows, K choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillhouse.core.machine import machine
from stillhouse.core.results import (
    Efficiency,
    ExportResult,
    Record,
    Timing,
)
from stillhouse.core.terms import TermConfig
from stillhouse.core.units import amount, margin_of, spoken
from stillhouse.evaluation.comparison import trained_on
from stillhouse.evaluation.evaluate import groups_of
from stillhouse.evaluation.floor import floor_of
from stillhouse.flows.conclusion import Findings, lead, sentence, weak_signs
from stillhouse.flows.diagnose import diagnosis, similarity, stage_results
from stillhouse.flows.distill import Outcome
from stillhouse.flows.doubts import below_floor, beside, classes_missed, no_nearer, what_helps
from stillhouse.flows.finetune import Finetuned
from stillhouse.flows.measured import (
    ablation_of,
    disagreements,
    gain_of,
    measured,
    measured_over_seeds,
    summary,
)
from stillhouse.flows.stages import Trained
from stillhouse.flows.unfinished import unfinished
from stillhouse.numerics.sequences import signatures

INT8_GAIN = 1.05  # times as fast as float32: less can't be told from none


def distillation_record(
    outcome: Outcome, costs: Mapping[str, Efficiency], exports: list[ExportResult], out: Path
) -> Record:
    """The record of a distillation in `out`. `costs` are the teacher's and the student's."""
    setup, config = outcome.setup, outcome.setup.config
    task, reported, resamples = setup.task, outcome.reported, config.evaluation.resamples
    teacher_answers = task.predictions(outcome.teacher_scores_NK, outcome.teacher_reported)
    teacher = measured(
        "teacher", task, teacher_answers, costs["teacher"],
        resamples=resamples, groups=groups_of(reported),
    )  # fmt: skip
    by_token = setup.writes and not task.judges_texts
    shared = {
        "task": task,
        "cost": costs["student"],
        "teacher": None if by_token and not setup.same_tokens else teacher_answers,
        "teacher_score": teacher.score,
        "data": reported,
        "resamples": resamples,
    }
    student = measured_over_seeds("student", runs=outcome.students, best=outcome.best, **shared)
    judged = {"margin": config.evaluation.margin, "resamples": resamples}
    baseline = compared = None
    if outcome.best_baseline is not None:
        baseline = measured_over_seeds(
            "baseline", runs=outcome.baselines, best=outcome.best_baseline, **shared
        )
        compared = gain_of(
            task, outcome.students, outcome.baselines, reported, seen=outcome.seen, **judged
        )
    seconds = sum(run.seconds for run in outcome.students)
    terms = [term for stage in setup.config.plan for term in stage.objective]
    soft = next((t for t in terms if isinstance(t, TermConfig) and t.kind == "soft"), None)
    ablations = [ablation_of(task, outcome, each, reported, **judged) for each in outcome.ablations]
    alike = similarity(outcome)
    floor = floor_of(task, setup.splits, resamples=resamples)
    wide = margin_of(task.metric, config.evaluation.margin)
    doubts = [
        *below_floor("the teacher", teacher, floor, task.metric, margin=wide),
        *below_floor("the student", student, floor, task.metric, margin=wide),
        *no_nearer("the teacher", teacher, task.metric),
        *no_nearer("the student", student, task.metric),
        *classes_missed("the teacher", teacher, task.choices),
        *classes_missed("the student", student, task.choices),
    ]
    rows, cached = outcome.teacher_rows
    stages = stage_results(outcome, out)
    weak = weak_signs(
        task.metric, teacher, baseline, floor,
        margin=wide,
        unfinished=unfinished(config.teacher),
    )  # fmt: skip
    found = Findings(
        metric=task.metric,
        teacher=teacher,
        student=student,
        rows=f"{len(reported):,} {'test rows' if setup.splits else 'blocks of test text'}",
        baseline=baseline,
        gain=compared and compared.gain,
        verdict=compared and compared.verdict,
        reason=compared.gain.reason if compared else trained_on(outcome.seen, wide, task.metric),
        floor=floor,
        weak=weak,
        margin=wide,
    )
    return Record(
        flow="distill",
        task=task.name,
        metric=task.metric,
        data=summary(setup.splits, setup.corpus, task.choices),
        teacher=teacher,
        student=student,
        baseline=baseline,
        gain=found.gain,
        verdict=found.verdict,
        not_comparable=found.reason,
        best=found.best,
        lead=lead(found),
        sentence=sentence(found),
        weak_teacher=weak,
        timing=Timing(
            teacher_s=outcome.teacher_s,
            student_s=seconds,
            baseline_s=sum(r.seconds for r in outcome.baselines) if outcome.baselines else None,
            total_s=outcome.total_s,
            examples_per_s=sum(run.examples for run in outcome.students) / max(seconds, 1e-9),
            teacher_asked=rows - cached if rows else None,
            teacher_cached=cached if rows else None,
        ),
        exports=exports,
        disagreements=disagreements(
            outcome, task, teacher_answers, task.predictions(outcome.best.scores_NK, reported)
        ),
        warnings=[
            *outcome.notes,
            *doubts,
            *(outcome.writing.doubts if outcome.writing else []),
            *int8_gains_nothing(exports, instructions=machine().int8),
            *int8_is_worse(exports, task.metric, judged["margin"]),
            *_run_warnings(outcome.students),
        ],
        temperature=soft.temperature.start if soft else None,
        stages=stages,
        ablations=ablations,
        similarity=alike,
        diagnosis=diagnosis(stages, ablations, alike, found.verdict, metric=task.metric),
        **(
            {}
            if outcome.writing is None
            else outcome.writing.results(outcome.student, outcome.students)
        ),
        signatures=signatures() if task.judges_texts else {},
        floor=floor,
    )


def int8_gains_nothing(exports: Sequence[ExportResult], *, instructions: bool) -> list[str]:
    """A warning where the int8 file was measured to be no faster than the float32 one, at one row
    and at many. `instructions`: whether this CPU has any for int8 dot products."""
    found = {each.format: each for each in exports}
    plain, small = found.get("onnx"), found.get("onnx-int8")
    if plain is None or small is None:
        return []
    times = (plain.latency_ms, small.latency_ms, plain.throughput_per_s, small.throughput_per_s)
    if None in times:
        return []
    plain_ms, small_ms, plain_per_s, small_per_s = times
    if small_ms * INT8_GAIN < plain_ms or small_per_s > INT8_GAIN * plain_per_s:  # pyright: ignore
        return []
    lacking = "" if instructions else ", which has no instructions for it (VNNI)"
    return [
        f"int8 gains nothing on this CPU{lacking}: {small_ms:.2f} ms a row, and the float32 file "
        f"{plain_ms:.2f}; here the int8 file is only smaller"
    ]


def int8_is_worse(
    exports: Sequence[ExportResult], metric: str, margin: float | None = None
) -> list[str]:
    """A warning where the int8 file scores lower than the float32 one by more than the margin, on
    the same rows. `margin`: in points, as in the settings."""
    found = {each.format: each for each in exports}
    plain, small = found.get("onnx"), found.get("onnx-int8")
    if plain is None or small is None or plain.score - small.score <= margin_of(metric, margin):
        return []
    lost = amount(plain.score - small.score, metric)
    return [
        f"the int8 file scores {small.score:.3f} in {spoken(metric)}, {lost} less than the float32 "
        f"file ({plain.score:.3f}), and gives the student's answer to "
        f"{100 * small.agreement:.1f} % of the rows: take {plain.path}"
    ]


def _run_warnings(runs: list[Trained]) -> list[str]:
    return [f"{run.role}, seed {run.seed}: {text}" for run in runs for text in run.warnings]


def finetune_record(done: Finetuned, cost: Efficiency) -> Record:
    """The record of a fine-tuning: one model, no teacher, no verdict."""
    gold = done.gold
    task = gold.task
    model = measured_over_seeds(
        "model",
        task=task,
        runs=[done.trained],
        best=done.trained,
        cost=cost,
        teacher=None,
        teacher_score=None,
        data=done.reported,
        resamples=done.config.resamples,
    )
    seconds = done.trained.seconds
    low, high = model.interval
    rows = "rows" if gold.corpus is None else "blocks of text"
    floor = floor_of(task, gold.splits, resamples=done.config.resamples)
    counts = Counter([] if gold.splits is None else filter(None, gold.splits.labelled.labels))
    weights = done.config.training.class_weights
    advice = what_helps(model.never_predicted, counts, weighed=weights == "balanced")
    return Record(
        flow="finetune",
        task=task.name,
        metric=task.metric,
        data=summary(gold.splits, gold.corpus, task.choices),
        teacher=None,
        student=model,
        baseline=None,
        gain=None,
        verdict=None,
        sentence=f"{spoken(task.metric)} {model.score:.3f} on {len(done.reported):,} {rows} "
        f"(95 % interval {low:.3f} to {high:.3f}){beside(floor)}.",
        timing=Timing(
            teacher_s=0.0,
            student_s=seconds,
            total_s=done.total_s,
            examples_per_s=done.trained.examples / max(seconds, 1e-9),
        ),
        warnings=[
            *gold.notes,
            *below_floor("the model", model, floor, task.metric, margin=margin_of(task.metric)),
            *no_nearer("the model", model, task.metric),
            *classes_missed("the model", model, task.choices, advice=advice),
            *_run_warnings([done.trained]),
        ],
        signatures=signatures() if task.judges_texts else {},
        floor=floor,
    )
