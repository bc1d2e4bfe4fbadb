"""The test rows with every model's answer, as a run's folder has them: predictions.jsonl.

`pandas.read_json(path, lines=True)` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.config import WRITING
from stillhouse.core.errors import RunError
from stillhouse.core.rundir import atomic
from stillhouse.core.types import Predictions
from stillhouse.data.sources import Pool
from stillhouse.flows.distill import Outcome
from stillhouse.prediction.answers import OUTPUTS, likeliest
from stillhouse.prediction.output import json_value
from stillhouse.prediction.run import TOP
from stillhouse.tasks.base import Data, Task

FILE = "predictions.jsonl"


def has_rows(task: Task) -> bool:
    """Whether a model has an answer for each test row: where tokens are scored it has none."""
    return task.judges_texts or (task.name in OUTPUTS and task.name not in WRITING)


def write_predictions(
    path: Path, pool: Pool, task: Task, data: Data, models: Mapping[str, Predictions]
) -> Path:
    """One line a test row, in the data's order: its line in its file, its texts, the gold answer,
    and of each model its answer, how likely that is, and the likeliest labels. Raises RunError
    where they answered other rows."""
    asked = sum(_are_asked(pool, task, data))
    if any(len(each.gold_N) != asked for each in models.values()):
        told = ", ".join(f"{name} {len(each.gold_N):,}" for name, each in models.items())
        raise RunError(f"{path} is not written: of {asked:,} test rows {told} were answered")
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in _rows(pool, task, data, models):
            file.write(json.dumps(json_value(row), ensure_ascii=False) + "\n")
    return path


def write_distilled(outcome: Outcome, exports: Mapping[str, np.ndarray], out: Path) -> None:
    """The test rows of the run in `out` with the answers of the teacher, of the shipped student, of
    the baseline of the seed that was the best of the baselines on the held-out rows (the one that
    is kept and whose score the record has), and of the exported files, whose scores are given."""
    setup, task = outcome.setup, outcome.setup.task
    if setup.splits is None or not has_rows(task):
        return
    found = {"teacher": task.predictions(outcome.teacher_scores_NK, outcome.teacher_reported)}
    own = {"student": outcome.best.scores_NK}
    if outcome.best_baseline is not None:
        own["baseline"] = outcome.best_baseline.scores_NK
    own |= {name.replace("-", "_"): scores for name, scores in exports.items()}
    found |= {name: task.predictions(scores, outcome.reported) for name, scores in own.items()}
    write_predictions(out / FILE, setup.splits.reported, task, outcome.reported, found)


def _are_asked(pool: Pool, task: Task, data: Data) -> list[bool]:
    """Which rows have an answer: those with a gold one; models of spans answer no others."""
    spans: Any = getattr(data, "answers", None) if task.name == "span" else None
    return [spans is None or bool(spans[i]) for i in range(len(pool))]


def _rows(
    pool: Pool, task: Task, data: Data, models: Mapping[str, Predictions]
) -> Iterator[dict[str, Any]]:
    answered = _are_asked(pool, task, data)
    lines, at = pool.lines, 0
    for number, example in enumerate(pool):
        if not answered[number]:
            continue
        gold = next(iter(models.values())).gold_N[at]
        row: dict[str, Any] = {"line": int(lines[number]), "text": example.text}
        if example.pair is not None:
            row["pair"] = example.pair
        row["gold"] = _value(gold, task)
        for name, predictions in models.items():
            row |= _of_model(name, predictions, at, task)
        yield row
        at += 1


def _of_model(name: str, predictions: Predictions, at: int, task: Task) -> dict[str, Any]:
    found = {name: _value(predictions.answers_N[at], task)}
    if predictions.probabilities_NK is not None:
        row_K = predictions.probabilities_NK[at]
        found[f"{name}_probability"] = float(row_K[int(predictions.answers_N[at])])
        found[f"{name}_probabilities"] = likeliest(row_K, task.choices, TOP)
    return found


def _value(answer: Any, task: Task) -> Any:
    return float(answer) if isinstance(answer, float | np.floating) else task.show(answer)
