"""Run folders of several stages, with ablations, layers compared and a diagnosis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.core.results import (
    Ablation,
    DataSummary,
    Gain,
    Record,
    Similarity,
    StageResult,
    Verdict,
)

from .runs import SEEDS, make_record, models

SHARES = {"embedding": 0.08, "hidden": 0.31, "attention": 0.61}
INTERMEDIATE = StageResult(
    name="intermediate",
    data="the task's rows and 20 variants of each",
    rows=252_000,
    terms=["embedding", "hidden", "attention"],
    steps=600,
    best_steps=[600, 600, 600],
    seconds=1512.0,
    gradient_share=SHARES,
)
PREDICTION = StageResult(
    name="prediction",
    data="the task's rows",
    rows=12_000,
    terms=["soft", "gold"],
    steps=400,
    best_steps=[350, 400, 400],
    seconds=734.0,
    metric="accuracy",
    score=0.921,
    gradient_share={"soft": 0.74, "gold": 0.26},
)
PRETRAIN = StageResult(
    name="pre-train",
    data="wikitext-2",
    rows=18_400,
    terms=["gold", "soft"],
    steps=800,
    best_steps=[800, 800, 750],
    seconds=3912.0,
    metric="perplexity",
    score=21.437,
    gradient_share={"gold": 0.55, "soft": 0.45},
)
DISTIL = PREDICTION.model_copy(
    update={
        "name": "distil",
        "terms": ["soft", "relations", "cosine"],
        "gradient_share": {"soft": 0.52, "relations": 0.4, "cosine": 0.08},
    }
)
FINE_TUNE = PREDICTION.model_copy(
    update={
        "name": "fine-tune",
        "terms": ["gold"],
        "steps": 150,
        "best_steps": [100, 150, 150],
        "score": 0.924,
        "seconds": 201.0,
        "gradient_share": {},
    }
)


def ablation(stage: str, without: str, gain: float, half: float, verdict: Verdict) -> Ablation:
    return Ablation(
        stage=stage,
        without=without,
        score=0.919 - gain,
        interval=(0.905 - gain, 0.932 - gain),
        seeds=[0.918 - gain, 0.92 - gain],
        gain=Gain(
            value=gain,
            interval=(gain - half, gain + half),
            p_value=0.0004 if verdict != "no difference" else 0.52,
            seeds=3,
        ),
        verdict=verdict,
    )


def ablations() -> list[Ablation]:
    return [
        ablation("prediction", "gold", 0.002, 0.006, "no difference"),
        ablation("intermediate", "attention", 0.021, 0.008, "helped"),
        ablation("intermediate", "embedding", -0.009, 0.006, "hurt"),
        ablation("intermediate", "hidden", 0.013, 0.007, "helped"),
    ]


def matrix(rows: int, columns: int, *, sharp: float) -> list[list[float]]:
    """Layers alike where they are equally deep; less so the larger `sharp`."""
    return [
        [
            0.98 * math.exp(-sharp * abs(row / (rows - 1) - column / (columns - 1))) - 0.02 * row
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def similarity(rows: int = 5, columns: int = 13) -> Similarity:
    return Similarity(
        tokens=8192,
        student=matrix(rows, columns, sharp=0.8),
        baseline=matrix(rows, columns, sharp=1.9),
    )


DIAGNOSIS = [
    "The attention term makes up 61 % of the gradient of the stage intermediate and is worth the "
    "most: without it the student loses 2.1 points.",
    "The student's last layer is most like the teacher's layer 11 (CKA 0.90), the baseline's most "
    "like layer 12 (0.88).",
]


def staged(**changes: object) -> Record:
    fields: dict[str, object] = {
        "stages": [INTERMEDIATE, PREDICTION],
        "ablations": ablations(),
        "similarity": similarity(),
        "diagnosis": DIAGNOSIS,
    }
    return make_record(**{**fields, **changes})


def masked_lm(**changes: object) -> Record:
    """A masked language model: tokens for rows, no labels, nothing to disagree on."""
    plain: dict[str, object] = {
        "confusion": None,
        "classes": [],
        "never_predicted": [],
        "reliability": [],
    }
    plain |= {"calibration_error": None}
    measured = {"teacher": (0.671, 5.23), "student": (0.602, 8.749), "baseline": (0.571, 10.96)}
    rows: dict[str, Any] = {}
    for role, (accuracy, perplexity) in measured.items():
        update: dict[str, object] = {**plain, "score": accuracy, "interval": (accuracy, accuracy)}
        update["metrics"] = {"accuracy": accuracy, "perplexity": perplexity}
        update["interval"] = (accuracy - 0.004, accuracy + 0.004)
        if role != "teacher":
            update["seeds"] = [accuracy - 0.001, accuracy, accuracy + 0.001]
        rows[role] = models()[role].model_copy(update=update)
    stage = PRETRAIN.model_copy(update={"terms": ["gold", "soft", "cosine"], "metric": "accuracy"})
    fields: dict[str, object] = {
        "task": "masked_lm",
        "data": DataSummary(
            train=18_400, labelled=0, unlabelled=18_400, held_out=376, reported=920, labels=[]
        ),
        "disagreements": [],
        "exports": [],
        "stages": [stage.model_copy(update={"name": "distil", "score": 0.604})],
    }
    return make_record(**{**rows, **fields, **changes})


def by_perplexity() -> Record:
    """The same, judged by what is better the lower it is."""
    record = masked_lm()
    scores = {"teacher": 5.23, "student": 8.749, "baseline": 10.96}
    rows = {
        role: getattr(record, role).model_copy(
            update={
                "score": score,
                "interval": (score - 0.1, score + 0.1),
                **({} if role == "teacher" else {"seeds": [score - 0.05, score, score + 0.05]}),
            }
        )
        for role, score in scores.items()
    }
    gain = Gain(value=-2.211, interval=(-2.41, -2.02), p_value=0.0001)
    worth = [ablation("distil", "cosine", -0.31, 0.2, "helped")]
    return masked_lm(**rows, metric="perplexity", gain=gain, ablations=worth)


def stage_lines(
    stages: Sequence[StageResult], roles: Sequence[str] = ("student", "baseline")
) -> list[dict[str, object]]:
    """metrics.jsonl of several stages: each one's steps begin at 1. The baseline has no stage
    without labels, and a run without a term is logged too."""
    lines: list[dict[str, object]] = []
    for role in (*roles, "student-without-attention"):
        for stage in stages:
            if role != "baseline" or "gold" in stage.terms:
                for seed in range(SEEDS):
                    lines += _lines(role, stage, seed)
    return lines


def _lines(role: str, stage: StageResult, seed: int) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for step in range(10, stage.steps + 1, 10):
        where = {"run": role, "seed": seed, "step": step, "stage": stage.name}
        fall = math.exp(-step / (0.3 * stage.steps))
        noise = (
            0.05 * math.sin(step * (seed + 2)) + 0.02 * seed + (role not in ("student", "baseline"))
        )
        lines.append({**where, "loss": _loss(stage, fall) + noise, "terms": _terms(stage, fall)})
        if stage.metric is not None and step % 50 == 0:
            score = _score(stage.metric, fall) + 0.004 * math.sin(seed * 9 + step)
            lines.append({**where, "event": "evaluate", "split": "held-out", "score": score})
    return lines


def _loss(stage: StageResult, fall: float) -> float:
    return 0.3 + 1.2 * fall + (4.0 if "hidden" in stage.terms else 0.0)


def _terms(stage: StageResult, fall: float) -> Mapping[str, object]:
    return {
        term: {"value": (place + 1) * (0.2 + fall), "gradient_norm": (0.2 + fall) / (place + 1)}
        for place, term in enumerate(stage.terms)
    }


def _score(metric: str, fall: float) -> float:
    return 21.4 + 190 * fall if metric == "perplexity" else 0.92 - 0.3 * fall
