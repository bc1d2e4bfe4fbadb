"""The floor under a model's score: a bag of words that learns from the same rows in a second.

Words and pairs of neighbouring words, weighed by TF-IDF with sublinear counts, into a logistic
regression (of values a ridge regression), both scikit-learn's. Of two texts also what they share
and where they differ. Nothing is tuned, so it is a floor, not a rival.

Axes: N rows, F features, K choices.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from stillhouse.core.results import FloorResult
from stillhouse.core.seeding import generator
from stillhouse.core.types import Example, Predictions
from stillhouse.data.sources import Pool, Splits
from stillhouse.evaluation.evaluate import interval
from stillhouse.tasks.base import Task

# Chinese, Japanese and Korean put no space between words: there each character is one.
ALONE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
TOKEN = rf"[{ALONE}]|[^\W{ALONE}]+|[^\w\s]"
ROWS, CHARACTERS = 20_000, 4_000_000  # at most, of the training rows
OF_TEXT = 2_000  # characters: more than 300 words
CELLS = 800_000  # rows times classes
WEIGHTS, FEWEST, MOST = 300_000, 4_000, 50_000  # features times classes; features
WORK, ITERATIONS = 1e9, (20, 100)  # products in a whole fit; lbfgs's iterations
STRENGTH = {False: 10.0, True: 1.0}  # C, without and with a second text

Answer = Callable[[Any], tuple[np.ndarray, np.ndarray | None]]  # N x F: answers, probabilities
Fit = Callable[[Any, np.ndarray, bool, int], Answer]


def floor_of(task: Task, splits: Splits | None, *, resamples: int) -> FloorResult | None:
    """How a bag of words does on the reported rows, learnt from the labelled ones.

    Large data are cut to what takes a second or two: `rows` of the result says how many it learnt
    from. None of a task without an answer a row, of running text, and where fewer than two
    different answers are there to learn.
    """
    found = FLOORS.get(task.name)
    if found is None or splits is None or not len(splits.reported):
        return None
    name, fit = found
    started = time.perf_counter()
    examples, gold_N = _learnt_from(task, splits.labelled)
    if len(np.unique(gold_N)) < 2:
        return None
    bag = _Bag(examples, outputs=task.width)
    answer = fit(bag.features(examples), gold_N, bag.pairs, task.width)
    seconds = time.perf_counter() - started
    reported_N = task.gold(splits.reported.labels).numpy()
    predictions = _answers(bag, answer, splits.reported, reported_N)
    metrics = task.score(predictions)
    return FloorResult(
        name=name,
        score=metrics[task.metric],
        interval=interval(
            task,
            [predictions.answers_N],
            reported_N,
            resamples=resamples,
            rng=generator(0, "interval", "floor"),
        ),
        metrics=metrics,
        rows=len(examples),
        seconds=seconds,
    )


def _learnt_from(task: Task, pool: Pool) -> tuple[list[Example], np.ndarray]:
    """The rows to learn from, all or a fair draw of them, and their answers."""
    drawn = generator(0, "floor").permutation(len(pool))[: min(ROWS, CELLS // _outputs(task.width))]
    examples = pool.at(drawn)
    read_N = np.cumsum([sum(map(len, _texts(example))) for example in examples])
    kept = int((read_N <= CHARACTERS).sum())
    return examples[:kept], task.gold(pool.labels[drawn[:kept]]).numpy()


def _texts(example: Example) -> list[str]:
    return [text[:OF_TEXT] for text in (example.text, example.pair) if text is not None]


def _outputs(width: int) -> int:
    """How many weights a feature has: two classes need one."""
    return width if width > 2 else 1


class _Bag:
    """Texts as counts of words and of pairs of neighbours, N x F."""

    def __init__(self, examples: list[Example], *, outputs: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        most = int(np.clip(WEIGHTS // _outputs(outputs), FEWEST, MOST))
        self.pairs = examples[0].pair is not None
        self._words = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            token_pattern=TOKEN,
            max_features=most // 4 if self.pairs else most,  # each has four places then
            dtype=np.float32,  # pyright: ignore[reportArgumentType]
        )
        self._words.fit(text for example in examples for text in _texts(example))

    def features(self, examples: list[Example]) -> Any:
        """A sparse matrix; of two texts: each, their product, their distance, and the cosine."""
        import scipy.sparse as sp

        first = self._words.transform([example.text[:OF_TEXT] for example in examples])
        if not self.pairs:
            return first
        second = self._words.transform([(example.pair or "")[:OF_TEXT] for example in examples])
        both = first.multiply(second)
        cosine = sp.csr_matrix(np.asarray(both.sum(1), dtype=np.float32))
        return sp.hstack([first, second, both, abs(first - second), cosine]).tocsr()


def _answers(
    bag: _Bag,
    answer: Answer,
    pool: Pool,
    gold_N: np.ndarray,
) -> Predictions:
    """Answers to all rows of a pool, some at a time."""
    parts = [
        answer(bag.features(pool.at(np.arange(first, min(first + ROWS, len(pool))))))
        for first in range(0, len(pool), ROWS)
    ]
    answers_N = np.concatenate([answers for answers, _ in parts])
    held = [probabilities for _, probabilities in parts if probabilities is not None]
    return Predictions(answers_N, np.concatenate(held) if held else None, gold_N)


def _classes(features_NF: Any, gold_N: np.ndarray, pairs: bool, width: int) -> Answer:
    """A logistic regression over the classes, stopped early where it would take long."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    outputs = _outputs(width)
    work = 2 * features_NF.nnz * outputs + 20 * features_NF.shape[1] * outputs
    iterations = int(np.clip(WORK // max(1, work), *ITERATIONS))
    model = LogisticRegression(C=STRENGTH[pairs], max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features_NF, gold_N)

    def answer(rows_NF: Any) -> tuple[np.ndarray, np.ndarray]:
        known_NK = model.predict_proba(rows_NF)
        probabilities_NK = np.zeros((known_NK.shape[0], width), known_NK.dtype)
        probabilities_NK[:, model.classes_] = known_NK  # one that no row taught stays at 0
        return probabilities_NK.argmax(-1), probabilities_NK

    return answer


def _values(features_NF: Any, gold_N: np.ndarray, pairs: bool, width: int) -> Answer:
    """A ridge regression of the values."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0).fit(features_NF, gold_N)
    return lambda rows_NF: (np.asarray(model.predict(rows_NF)), None)


FLOORS: dict[str, tuple[str, Fit]] = {
    "classification": ("TF-IDF with logistic regression", _classes),
    "regression": ("TF-IDF with ridge regression", _values),
}
