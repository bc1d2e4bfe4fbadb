"""From a model's scores to what is written for a row.

Axes: N rows, K choices, W windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillhouse.core.inference import Inference
from stillhouse.prediction.encoding import Piece

LONGEST = 30  # tokens of an answer in a passage
IMPOSSIBLE = -1e4  # the score of a place where no span may begin or end
OUTPUTS = {
    "classification": ("answer", "probability", "probabilities"),
    "regression": ("answer",),
    "span": ("answer", "answer_start"),
    "seq2seq": ("answer",),
    "causal_lm": ("answer",),
}
Answer = Mapping[str, Any]


def softmax(scores_NK: np.ndarray) -> np.ndarray:
    """Probabilities, N x K, in the scores' precision."""
    raised_NK = np.exp(scores_NK - scores_NK.max(-1, keepdims=True))
    return raised_NK / raised_NK.sum(-1, keepdims=True)


def likeliest(probabilities_K: np.ndarray, labels: list[str], top: int | None) -> dict[str, float]:
    """The `top` likeliest labels (None: all), likeliest first; of equals the first in the head."""
    order = np.argsort(-probabilities_K, kind="stable")[:top]
    return {labels[i]: float(probabilities_K[i]) for i in order.tolist()}


def of_classes(scores_NK: np.ndarray, labels: list[str], top: int | None) -> list[Answer]:
    found: list[Answer] = []
    for row_K in softmax(scores_NK.astype(np.float32)):
        best = int(row_K.argmax())
        found.append(
            {
                "answer": labels[best],
                "probability": float(row_K[best]),
                "probabilities": likeliest(row_K, labels, top),
            }
        )
    return found


def best_spans(scores_W2T: np.ndarray, answerable_WT: np.ndarray) -> list[tuple[int, int, float]]:
    """Of each window its best span of up to 30 tokens: first token, last token, and its score."""
    held_W2T = np.where(answerable_WT[:, None], scores_W2T.astype(np.float32), IMPOSSIBLE)
    first_WT, last_WT = held_W2T[:, 0], held_W2T[:, 1]
    width = first_WT.shape[1]
    best_W = np.full(len(first_WT), -np.inf, np.float32)
    start_W, end_W = np.zeros((2, len(first_WT)), np.int64)
    for further in range(min(LONGEST, width)):
        sums_WT = first_WT[:, : width - further] + last_WT[:, further:]
        at_W = sums_WT.argmax(-1)
        score_W = np.take_along_axis(sums_WT, at_W[:, None], -1)[:, 0]
        better = score_W > best_W
        best_W = np.where(better, score_W, best_W)
        start_W, end_W = np.where(better, at_W, start_W), np.where(better, at_W + further, end_W)
    return list(zip(start_W.tolist(), end_W.tolist(), best_W.tolist(), strict=True))


def of_spans(
    spans: Sequence[tuple[int, int, float]], pieces: Sequence[Piece], passages: Sequence[str]
) -> list[Answer]:
    """The best span of each row's windows."""
    best: dict[int, tuple[float, int, int]] = {}
    for piece, (first, last, score) in zip(pieces, spans, strict=True):
        assert piece.chars_T2 is not None
        if piece.owner not in best or score > best[piece.owner][0]:
            begin, end = int(piece.chars_T2[first, 0]), int(piece.chars_T2[last, 1])
            best[piece.owner] = (score, begin, end)
    found: list[Answer] = []
    for owner, passage in enumerate(passages):
        _, begin, end = best[owner]
        found.append({"answer": passage[begin:end], "answer_start": begin})
    return found


def of_values(scores_NK: np.ndarray) -> list[Answer]:
    return [{"answer": value} for value in scores_NK[:, 0].astype(np.float64).tolist()]


def from_scores(
    scores: Sequence[np.ndarray],
    pieces: Sequence[Piece],
    answerable: Sequence[np.ndarray | None],
    passages: Sequence[str],
    facts: Inference,
    top: int | None,
) -> list[Answer]:
    """Answers to rows from the scores of their pieces, which are K wide, or 2 x T of a window."""
    if facts.task == "span":
        spans = [
            best_spans(score_2T[None], held_T[None])[0]
            for score_2T, held_T in zip(scores, answerable, strict=True)
            if held_T is not None
        ]
        return of_spans(spans, pieces, passages)
    stacked = np.stack(scores)
    return of_values(stacked) if facts.task == "regression" else of_classes(
        stacked, facts.labels, top
    )  # fmt: skip
