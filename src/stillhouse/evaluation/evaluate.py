"""A model's answers to a split, and what they are worth. Axes: N rows, K choices."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.head import Factored
from stillhouse.core.precision import precision_of
from stillhouse.core.progress import Advance
from stillhouse.core.results import Bin, ClassResult, Interval
from stillhouse.core.types import Predictions, StudentOutput
from stillhouse.data.batching import sorted_batches
from stillhouse.evaluation.writing import PART, written_rows
from stillhouse.models.forward import fast_weights, has_fast_path, run, training_mode
from stillhouse.numerics import metrics, stats
from stillhouse.tasks.base import Data, Task


def score_rows(
    model: nn.Module,
    data: Data,
    task: Task | None = None,
    *,
    fast: bool = False,
    size: int = 64,
    max_tokens: int = 16_384,
    precision: str = "float32",
    quick: bool = False,
    progress: Advance = lambda rows: None,
) -> np.ndarray:
    """What the task keeps of the scores of every row (without one: all of them), float32, N x S,
    in the data's order; where it judges texts, see `writing.written_rows`. Eval mode, no gradient.
    """
    precision = precision_of(precision)
    if task is not None and task.judges_texts:
        how = {"precision": precision, "quick": quick, "progress": progress}
        return written_rows(model, data, task, **how)  # pyright: ignore
    device = next(model.parameters()).device
    out: np.ndarray | None = None
    with training_mode(model, on=False), torch.no_grad():
        weights = fast_weights(model, precision) if fast and has_fast_path(model) else None
        for rows in sorted_batches(data.lengths, size=size, max_tokens=max_tokens):
            batch = data.batch(rows).to(device)
            choices = None if task is None else task.width
            answers = run(
                model, batch, precision=precision, fast=fast, weights=weights, choices=choices
            )
            assert batch.gold_N is not None
            kept = reduced(answers, batch.gold_N, task).cpu().numpy()
            if out is None:
                out = np.empty((len(data.gold_N), kept.shape[1]), np.float32)
            out[data.places(rows)] = kept
            progress(len(rows))
    assert out is not None, "an empty split is never scored"
    return out


def reduced(answers: StudentOutput, gold_N: Tensor, task: Task | None) -> Tensor:
    """What the task keeps of scores, N x S; of a large vocabulary, some rows at a time."""
    if task is None:
        return answers.scores_NK
    if not isinstance(answers.scores, Factored):
        return task.reduce(answers.scores, gold_N)
    step = max(1, PART // answers.width)
    rows = [slice(first, first + step) for first in range(0, max(1, len(answers)), step)]
    return torch.cat([task.reduce(answers.part(r).scores_NK, gold_N[r]) for r in rows])


def predict(
    model: nn.Module,
    data: Data,
    task: Task,
    *,
    precision: str = "float32",
    fast: bool = False,
    quick: bool = False,
    progress: Advance = lambda rows: None,
) -> Predictions:
    """The model's answers by its own forward (`fast`: by the equal fast path; `quick`: texts are
    written greedily only)."""
    scores_NS = score_rows(
        model, data, task, precision=precision, fast=fast, quick=quick, progress=progress
    )
    return task.predictions(scores_NS, data)


def interval(
    task: Task,
    answers: list[np.ndarray],
    gold_N: np.ndarray,
    *,
    resamples: int,
    rng: np.random.Generator,
    groups: np.ndarray | None = None,
) -> Interval:
    """95 % interval of the task's metric, averaged over seeds: one array of answers a seed.
    `groups`: see `groups_of`."""
    return stats.bootstrap_interval(
        lambda a, g: task.metric_of(a, g, task.metric),
        answers,
        gold_N,
        resamples=resamples,
        rng=rng,
        bounds=BOUNDS[task.metric],
        groups=groups,
    )


def groups_of(data: Data) -> np.ndarray | None:
    """Which example each answer belongs to, where an example has several (the masked tokens of a
    text): they are no independent evidence. None where each has its own."""
    return getattr(data, "groups_N", None)


BOUNDS = {
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "exact_match": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
    "bleu": (0.0, 100.0),
    "chrf": (0.0, 100.0),
    "log_likelihood": (-math.inf, 0.0),
}


def calibration(predictions: Predictions) -> tuple[float | None, list[Bin]]:
    """Expected calibration error and its bins; None for a regression."""
    if predictions.confidence_N is not None and predictions.right_N is not None:
        error, bins = metrics.confidence_error(predictions.confidence_N, predictions.right_N)
    elif predictions.probabilities_NK is not None:
        error, bins = metrics.calibration_error(predictions.probabilities_NK, predictions.gold_N)
    else:
        return None, []
    return error, [Bin(confidence=c, accuracy=a, count=n) for c, a, n in bins]


def confusion(predictions: Predictions, task: Task) -> list[list[int]] | None:
    """Counts by gold row and answered column; None for a regression."""
    if predictions.probabilities_NK is None:
        return None
    return metrics.confusion(
        predictions.answers_N, predictions.gold_N, classes=len(task.choices)
    ).tolist()


def never_predicted(counts_KK: list[list[int]] | None, task: Task) -> list[str]:
    """The classes that are some row's gold answer, and the answer to no row at all."""
    if counts_KK is None:
        return []
    table_KK = np.array(counts_KK)
    missed_K = (table_KK.sum(1) > 0) & (table_KK.sum(0) == 0)
    return [name for name, missed in zip(task.choices, missed_K, strict=True) if missed]


def classes(table: list[list[int]] | None, task: Task) -> list[ClassResult]:
    """Each label's precision, recall and F1, and what it is taken for most often."""
    if table is None:
        return []
    table_KK = np.array(table)
    wrong_KK = table_KK - np.diag(np.diag(table_KK))
    found: list[ClassResult] = []
    for i, shares in enumerate(zip(*metrics.per_class(table_KK), strict=True)):
        precision, recall, f1 = shares
        most = int(wrong_KK[i].argmax())
        count = int(wrong_KK[i, most])
        found.append(
            ClassResult(
                label=task.choices[i],
                rows=int(table_KK[i].sum()),
                answered=int(table_KK[:, i].sum()),
                precision=precision,
                recall=recall,
                f1=f1,
                confused_with=task.choices[most] if count else None,
                confused_rows=count,
            )
        )
    return found
