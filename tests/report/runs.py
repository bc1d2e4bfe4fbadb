"""Run folders written by hand: no model, no training, every part of a record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from stillhouse.core.results import (
    BatchResult,
    Bin,
    ClassResult,
    DataSummary,
    Disagreement,
    ExportResult,
    Gain,
    ModelResult,
    Record,
    Timing,
    TrainedResult,
)

SEEDS = 3
STEPS = 400


class WriteRun(Protocol):
    def __call__(
        self,
        name: str = "small",
        *,
        record: Record | None = None,
        lines: list[dict[str, object]] | None = None,
    ) -> Path: ...


def bins(bias: float) -> list[Bin]:
    middles = [0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95]
    counts = [3, 9, 24, 61, 90, 160, 290, 763]
    return [
        Bin(confidence=middle, accuracy=max(0.0, middle - bias * middle * (1 - middle)), count=rows)
        for middle, rows in zip(middles, counts, strict=True)
    ]


COSTED: dict[str, Any] = {"tokens": 24, "batch": 32, "batch_tokens": 28, "memory_batch": 32}


def classes() -> list[ClassResult]:
    """Of five labels one that is never answered, and one that no row has."""
    shares = [
        (350, 356, 0.902, 0.917, 0.909),
        (350, 355, 0.93, 0.943, 0.936),
        (12, 0, None, 0.0, 0.0),
        (350, 335, 0.866, 0.829, 0.847),
        (0, 0, None, None, None),
    ]
    names = ["world", "sport", "weather", "technology", "obituaries"]
    return [
        ClassResult(
            label=name,
            rows=rows,
            answered=answered,
            precision=precision,
            recall=recall,
            f1=f1,
            confused_with="sport" if name == "weather" else None,
            confused_rows=12 if name == "weather" else 0,
        )
        for name, (rows, answered, precision, recall, f1) in zip(names, shares, strict=True)
    ]


def models() -> dict[str, Any]:
    """Teacher, student and baseline of a classifier with four labels."""
    small = {
        "parameters": 22_700_000,
        "bytes": 90_900_000,
        "flops": 1_360_000_000,
        "latency_ms": 4.21,
        "latency_p95_ms": 5.02,
        "throughput_per_s": 912.0,
        "peak_memory_bytes": 231_000_000,
        **COSTED,
        "classes": classes(),
        "never_predicted": ["weather"],
        "confusion": [[321, 12, 9, 8], [10, 330, 6, 4], [14, 5, 298, 33], [11, 8, 41, 290]],
    }
    return {
        "teacher": ModelResult(
            name="bert-base-news",
            score=0.934,
            interval=(0.920, 0.946),
            metrics={"accuracy": 0.934, "macro_f1": 0.933},
            calibration_error=0.021,
            reliability=bins(0.1),
            parameters=109_000_000,
            bytes=438_000_000,
            flops=11_200_000_000,
            latency_ms=21.6,
            latency_p95_ms=24.9,
            throughput_per_s=164.0,
            peak_memory_bytes=702_000_000,
            **COSTED,
        ),
        "student": TrainedResult(
            name="bert-base-news, 3 layers",
            score=0.919,
            interval=(0.905, 0.932),
            metrics={"accuracy": 0.919, "macro_f1": 0.917},
            calibration_error=0.034,
            reliability=bins(0.3),
            seeds=[0.917, 0.921, 0.919],
            agreement=0.951,
            retention=0.984,
            best_steps=[350, 400, 400],
            **small,
        ),
        "baseline": TrainedResult(
            name="3 layers, labels only",
            score=0.901,
            interval=(0.885, 0.915),
            metrics={"accuracy": 0.901, "macro_f1": 0.899},
            calibration_error=0.072,
            reliability=bins(0.7),
            seeds=[0.898, 0.904, 0.901],
            agreement=0.917,
            retention=0.965,
            best_steps=[300, 350, 250],
            **small,
        ),
    }


def exports() -> list[ExportResult]:
    common = {"agreement": 0.999, "score": 0.919, "path": "onnx/model.onnx"}
    return [
        ExportResult(
            format="onnx",
            bytes=91_000_000,
            latency_ms=2.9,
            latency_p95_ms=3.3,
            throughput_per_s=1320.0,
            max_difference=2.4e-6,
            tokens=24,
            batch=32,
            batch_tokens=28,
            **common,  # type: ignore[arg-type]
        ),
        ExportResult(
            format="onnx-int8",
            bytes=23_400_000,
            latency_ms=1.62,
            latency_p95_ms=1.9,
            throughput_per_s=2410.0,
            max_difference=0.18,
            tokens=24,
            batch=32,
            batch_tokens=28,
            batches=BatchResult(rows=500, batch=32, alone=0.916, together=0.91, changed=13),
            **{**common, "score": 0.915, "agreement": 0.988},  # type: ignore[arg-type]
        ),
    ]


def make_record(**changes: object) -> Record:
    disagreements = [
        Disagreement(
            text=f"Shares of the chip maker fell {n} per cent after its quarterly forecast, "
            "as a weaker outlook for data centres outweighed record sales of phones.",
            gold="business" if n % 3 else "technology",
            teacher="business",
            student="technology",
            teacher_confidence=0.83,
            student_confidence=0.5 + n / 100,
        )
        for n in range(1, 6)
    ]
    fields: dict[str, Any] = {
        "flow": "distill",
        "task": "text_classification",
        "metric": "accuracy",
        "data": DataSummary(
            train=12_000,
            labelled=12_000,
            unlabelled=40_000,
            held_out=1_200,
            reported=1_400,
            labels=["world", "sport", "business", "technology"],
            dropped={"empty text": 12, "also_in_held_out": 37},
        ),
        **models(),
        "gain": Gain(value=0.018, interval=(0.007, 0.029), p_value=0.0021, margin=0.01, seeds=3),
        "verdict": "helped",
        "sentence": "The student keeps 98.4 % of the teacher's accuracy at a fifth of its size, "
        "and is better for having had a teacher.",
        "timing": Timing(
            teacher_s=41.2, student_s=734.0, baseline_s=702.0, total_s=5125.0, examples_per_s=312.4
        ),
        "exports": exports(),
        "disagreements": disagreements,
        "warnings": ["Seed 1 stopped at its last step: it may still have been improving."],
        "temperature": 2.0,
    }
    return Record.model_validate({**fields, **changes})


def metric_lines(roles: tuple[str, ...] = ("student", "baseline")) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for role in roles:
        for seed in range(SEEDS):
            for step in range(10, STEPS + 1, 10):
                lines.append(step_line(role, seed, step))
                if step % 50 == 0:
                    lines.append(evaluation_line(role, seed, step))
    return lines


def step_line(role: str, seed: int, step: int) -> dict[str, object]:
    noise = 0.06 * math.sin(step * (seed + 2)) + 0.02 * seed
    loss = 1.3 * math.exp(-step / 120) + 0.2 + noise
    terms = {
        "soft": {"value": loss * 0.8, "gradient_norm": 1.4 * loss, "weight": 0.9},
        "gold": {"value": loss * 1.2, "gradient_norm": 0.8 * loss, "weight": 0.1},
        "hidden": {"value": loss * 9, "gradient_norm": 0.1 * loss, "weight": 0.01},
    }
    return {
        "run": role,
        "seed": seed,
        "step": step,
        "epoch": step / 200,
        "lr": 1e-4,
        "loss": loss,
        "gradient_norm": 1.2,
        "examples_per_s": 310.0,
        "terms": terms if role == "student" else {},
    }


def evaluation_line(role: str, seed: int, step: int) -> dict[str, object]:
    best = {"student": 0.92, "baseline": 0.90, "teacher": 0.935}[role]
    score = best - 0.3 * math.exp(-step / 90) + 0.004 * math.sin(seed * 9 + step)
    where = {"run": role, "seed": seed, "step": step, "epoch": step / 200}
    return {**where, "event": "evaluate", "split": "held-out", "score": score}


MANIFEST = {
    "versions": {"python": "3.11.7", "stillhouse": "0.1.0", "torch": "2.9.0"},
    "git_revision": "3f0c2d1",
    "hardware": {"processor": "EPYC 9354", "cores": 32},
    "seeds": [0, 1, 2],
    "data": {"fingerprint": "9d5ed678fe57bcca610140957afab571", "rows": 12_000},
}
CONFIG = "training:\n  epochs: 2\n  lr: 0.0001\nobjective:\n  soft:\n    weight: 0.9\n"


def write(
    root: Path,
    name: str = "small",
    *,
    record: Record | None = None,
    lines: list[dict[str, object]] | None = None,
) -> Path:
    """The folder of a finished run, at root / name."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "record.json").write_text((record or make_record()).model_dump_json())
    lines = metric_lines() if lines is None else lines
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / "config.yaml").write_text(CONFIG)
    return folder
