"""Span question answering: where in a passage the answer begins and ends. The form is SQuAD's, and
so are the scores: exact match and F1 over words (Rajpurkar et al. 2016).

A window has two scored rows, where a span begins and where it ends, over its tokens. Positions
outside the passage are impossible. Of a passage in several windows the best span of all counts.

Axes: W windows, N = 2 W scored rows, K token positions, E examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import DataError
from stillhouse.core.progress import Progress
from stillhouse.core.types import NO_LABEL, Batch, Predictions
from stillhouse.data.sources import Pool
from stillhouse.data.windows import Windows, windows
from stillhouse.numerics.qa_metrics import exact_match, f1
from stillhouse.tasks.base import Data

LONGEST = 30  # tokens of an answer
SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Answer:
    """A piece of a passage, and where it begins if that is known."""

    text: str
    start: int | None = None


def parse_label(label: str) -> list[Answer]:
    """The answers of a label as rows keep it: SQuAD's object of texts and starts, a list of such
    answers, or one answer's text. Raises DataError."""
    try:
        held = json.loads(label)
    except ValueError:
        return [Answer(label)]
    if isinstance(held, dict):
        texts, starts = held.get("text"), held.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts
        if isinstance(texts, list):
            starts = starts if isinstance(starts, list) else [None] * len(texts)
            if len(starts) == len(texts) and all(isinstance(text, str) for text in texts):
                return [Answer(t, s) for t, s in zip(texts, starts, strict=True)]
    elif isinstance(held, list) and all(isinstance(each, dict) for each in held):
        return [answer for each in held for answer in parse_label(json.dumps(each))]
    elif not isinstance(held, list):  # an answer that is a number
        return [Answer(label)]
    raise DataError(
        f"answers are {{'text': [...], 'answer_start': [...]}} as in SQuAD, got {label[:80]}"
    )


def place(passage: str, answer: Answer) -> tuple[int, int] | None:
    """Where in the passage the answer stands: where it says so, else its nearest occurrence; one
    that is only there in other case or spacing counts too."""
    at = answer.start or 0
    loose = r"\s+".join(map(re.escape, answer.text.split()))
    for pattern in (re.escape(answer.text), f"(?i){loose}"):
        found = [m.span() for m in re.finditer(pattern, passage)] if loose else []
        if found:
            return min(found, key=lambda each: abs(each[0] - at))
    return None


class Spans:
    """Windows as the loop sees them. `labels`: of each example, None where it has none. Gold is a
    window's first and last token of the first answer; NO_LABEL where it isn't all in the window."""

    def __init__(self, source: Windows, pool: Pool, labels: Sequence[str | None]) -> None:
        self._source, self._pool = source, pool
        self.answers = [[] if label is None else parse_label(label) for label in labels]

    def __len__(self) -> int:
        return len(self._source)

    @property
    def examples(self) -> int:
        return len(self._pool)

    @property
    def lengths(self) -> np.ndarray:
        return self._source.lengths

    @property
    def owners_W(self) -> np.ndarray:
        return self._source.owners_W

    @property
    def keys_N2(self) -> np.ndarray:
        return self._keys_W2

    @cached_property
    def _keys_W2(self) -> np.ndarray:
        """Of windows: their example's key and how many came before of the same."""
        owners_W = self.owners_W
        first_W = np.searchsorted(owners_W, owners_W)
        found = self._pool.keys_N2[owners_W].copy()
        with np.errstate(over="ignore"):  # spread over 64 bits: keys are looked up by these
            found[:, 0] ^= (np.arange(len(owners_W)) - first_W).astype(np.uint64) * SPREAD
        return found

    @cached_property
    def passages(self) -> list[str]:
        return [each.pair or "" for each in self._pool]

    @property
    def gold_N(self) -> Tensor:
        return self._gold_N

    @cached_property
    def _gold_N(self) -> Tensor:
        found = np.full((len(self), 2), NO_LABEL)
        spans = [
            place(passage, answers[0]) if answers else None
            for passage, answers in zip(self.passages, self.answers, strict=True)
        ]
        for window, owner in enumerate(self.owners_W.tolist()):
            span = spans[owner]
            if span is not None:
                found[window] = _tokens(np.asarray(self._source.chars(window)), span)
        return torch.from_numpy(found.reshape(-1))

    @property
    def unplaced(self) -> int:
        """Examples with answers of which the first is not in the passage: nothing to train on."""
        return sum(
            bool(answers) and place(passage, answers[0]) is None
            for passage, answers in zip(self.passages, self.answers, strict=True)
        )

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """The windows at `rows`; where their spans may begin and end."""
        del rng  # nothing is drawn
        inputs = self._source.inputs(rows)
        answerable_BT = np.zeros(inputs["input_ids"].shape, bool)
        for i, row in enumerate(rows.tolist()):
            chars_T2 = self._source.chars(row)
            answerable_BT[i, : len(chars_T2)] = chars_T2[:, 1] > 0
        gold_N = self.gold_N[torch.from_numpy(self.places(rows))]
        return Batch(inputs, rows, gold_N, answerable_BT=torch.from_numpy(answerable_BT))

    def places(self, rows: np.ndarray) -> np.ndarray:
        return (2 * rows[:, None] + np.arange(2)).reshape(-1)

    def text(self, window: int, first: int, last: int) -> str:
        """The passage from one token of a window to another."""
        chars_T2 = self._source.chars(window)
        return self.passages[int(self.owners_W[window])][chars_T2[first, 0] : chars_T2[last, 1]]


def span_data(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    store: Path,
    *,
    max_length: int,
    progress: Progress,
    title: str,
    labels: Sequence[str | None] | None = None,
) -> Spans:
    """A pool of questions and passages; with `labels`, these instead of its own."""
    with progress.stage(f"reading {title}", len(pool), "rows") as advance:
        found = windows(pool, tokenizer, store / "tokens", max_length=max_length, progress=advance)
    return Spans(found, pool, list(pool.labels) if labels is None else labels)


def _tokens(chars_T2: np.ndarray, span: tuple[int, int]) -> tuple[int, int]:
    """The first and the last token of a span of characters."""
    inside = np.flatnonzero(chars_T2[:, 1] > 0)
    begins = inside[chars_T2[inside, 0] <= span[0]]
    ends = inside[chars_T2[inside, 1] >= span[1]]
    if not len(begins) or not len(ends) or chars_T2[inside[-1], 1] <= span[0]:
        return NO_LABEL, NO_LABEL
    first, last = int(begins[-1]), int(ends[0])
    return (first, last) if first <= last else (NO_LABEL, NO_LABEL)


class Span:
    """Answers are texts: predictions hold them by example, beside tuples of the gold ones."""

    name = "span"
    judges_texts = False

    def __init__(self, metric: str | None = None, *, width: int = 384) -> None:
        self.metric = metric or "f1"
        self.choices: list[str] = []
        self.width = width

    def gold(self, labels: np.ndarray) -> Tensor:
        """No gold for any row: where an answer stands is for its windows to say (Spans)."""
        return torch.full((2 * len(labels),), NO_LABEL)

    def has_gold(self, gold_N: Tensor) -> Tensor:
        return gold_N != NO_LABEL

    def reduce(self, scores_NK: Tensor, gold_N: Tensor) -> Tensor:
        """Of each window its best span of up to 30 tokens, N x 2: its first token, then its last,
        each beside the span's score, the sum of both."""
        del gold_N
        by_window_W2K = scores_NK.float().view(-1, 2, scores_NK.shape[-1])
        first_WK, last_WK = by_window_W2K.unbind(1)
        width = scores_NK.shape[-1]
        best_W = first_WK.new_full((len(first_WK),), -torch.inf)
        at_W2 = torch.zeros(len(first_WK), 2, dtype=torch.long, device=scores_NK.device)
        for further in range(min(LONGEST, width)):
            sums_WK = first_WK[:, : width - further] + last_WK[:, further:]
            score_W, start_W = sums_WK.max(-1)
            better = score_W > best_W
            best_W = torch.where(better, score_W, best_W)
            found_W2 = torch.stack([start_W, start_W + further], -1)
            at_W2 = torch.where(better[:, None], found_W2, at_W2)
        return torch.stack([at_W2.float(), best_W[:, None].expand(-1, 2)], -1).view(-1, 2)

    def predictions(self, scores_NK: np.ndarray, data: Data) -> Predictions:
        """The answer to each example that has a gold one."""
        assert isinstance(data, Spans)
        return self.judged(self.texts(scores_NK, data), data.answers)

    def judged(self, texts: Sequence[str], golds: Sequence[Sequence[Answer]]) -> Predictions:
        """Answers beside the gold ones, where there are any."""
        both = [
            (text, tuple(answer.text for answer in gold))
            for text, gold in zip(texts, golds, strict=True)
            if gold
        ]
        return Predictions(_objects([t for t, _ in both]), None, _objects([g for _, g in both]))

    def texts(self, scores_NK: np.ndarray, data: Spans) -> list[str]:
        """The best answer to each example, from what `reduce` kept."""
        kept = scores_NK.reshape(-1, 2, 2)
        best = np.full(data.examples, -np.inf)
        window_E = np.zeros(data.examples, np.int64)
        for window, owner in enumerate(data.owners_W.tolist()):
            if kept[window, 0, 1] > best[owner]:
                best[owner], window_E[owner] = kept[window, 0, 1], window
        return [data.text(w, int(kept[w, 0, 0]), int(kept[w, 1, 0])) for w in window_E.tolist()]

    def metric_of(self, answers_N: np.ndarray, gold_N: np.ndarray, name: str) -> float:
        score = {"f1": f1, "exact_match": exact_match}[name]
        pairs = zip(answers_N.tolist(), gold_N.tolist(), strict=True)
        return float(np.mean([score(answer, golds) for answer, golds in pairs]))

    def score(self, predictions: Predictions) -> dict[str, float]:
        """f1 and exact_match, each from 0 to 1."""
        return {
            name: self.metric_of(predictions.answers_N, predictions.gold_N, name)
            for name in ("f1", "exact_match")
        }

    def agreement(self, mine_N: np.ndarray, theirs_N: np.ndarray) -> float:
        """F1 of one model's answers against another's."""
        pairs = zip(mine_N.tolist(), theirs_N.tolist(), strict=True)
        return float(np.mean([f1(mine, (theirs,)) for mine, theirs in pairs]))

    def show(self, answer: object) -> str:
        """An answer, or the first of several gold ones."""
        return str(answer[0]) if isinstance(answer, tuple) else str(answer)


def _objects(values: Sequence[object]) -> np.ndarray:
    found = np.empty(len(values), object)
    for i, value in enumerate(values):
        found[i] = value
    return found
