"""A bag of words under every model: it learns in a second, and says how much it learnt from."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import tiny
from stillhouse.core.config import DataConfig
from stillhouse.core.results import FloorResult
from stillhouse.data.sources import Splits, load
from stillhouse.evaluation import floor as floors
from stillhouse.evaluation.evaluate import never_predicted
from stillhouse.evaluation.floor import floor_of
from stillhouse.flows.common import gold_task
from stillhouse.tasks.base import Task
from stillhouse.tasks.classification import Classification
from stillhouse.tasks.span import Span

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty"]


def read(
    folder: Path, rows: list[tuple[object, ...]], names: tuple[str, ...] = ("text", "label"),
    test: list[tuple[object, ...]] | None = None,
) -> tuple[Task, Splits]:  # fmt: skip
    """A file of rows (and one to report on), split, and its task."""
    tiny.write_csv(folder / "data" / "train.csv", names, rows)
    if test is not None:
        tiny.write_csv(folder / "data" / "dev.csv", names, test)
    path = folder / "data" if test is not None else folder / "data" / "train.csv"
    splits = load(DataConfig(path=str(path)), folder / "rows")
    pools = [splits.labelled, splits.held_out, splits.reported]
    return gold_task(pools, asked="auto"), splits


def found(task: Task, splits: Splits | None) -> FloorResult:
    result = floor_of(task, splits, resamples=50)
    assert result is not None
    return result


def test_it_is_scikit_learns_own_pipeline(tmp_path: Path) -> None:
    """The same answers as TF-IDF and a logistic regression by hand, on the same rows."""
    rows = [(text, label if i % 9 else "odd") for i, (text, label) in
            enumerate(tiny.sentences(300))]  # fmt: skip
    task, splits = read(tmp_path, rows)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    train, reported = list(splits.labelled), list(splits.reported)
    model = LogisticRegression(C=10).fit(
        words.fit_transform(e.text for e in train), [e.label for e in train]
    )
    answers = model.predict(words.transform(e.text for e in reported))
    by_hand = np.mean([a == e.label for a, e in zip(answers, reported, strict=True)])
    result = found(task, splits)
    assert result.score == result.metrics["accuracy"] == pytest.approx(by_hand)
    assert result.rows == len(train)
    low, high = result.interval
    assert low < result.score < high
    assert result.name == "TF-IDF with logistic regression"


def test_twice_is_the_same(tmp_path: Path) -> None:
    task, splits = read(tmp_path, tiny.sentences(120))
    first, second = found(task, splits), found(task, splits)
    assert first.model_copy(update={"seconds": 0.0}) == second.model_copy(update={"seconds": 0.0})


def test_values_are_learnt_too(tmp_path: Path) -> None:
    """A text's value is the sum of its words' values."""
    rng, rows = random.Random(0), []
    for _ in range(400):
        held = rng.sample(range(10), 3)
        rows.append((" ".join(WORDS[i] for i in held), f"{sum(held) / 2 + 0.25}"))
    task, splits = read(tmp_path, rows)
    result = found(task, splits)
    assert task.name == "regression"
    assert result.name == "TF-IDF with ridge regression"
    assert result.score == result.metrics["pearson"] > 0.95


def test_two_texts_are_compared(tmp_path: Path) -> None:
    """Whether both hold the same words can't be told from either alone."""
    rng, rows = random.Random(0), []
    for i in range(500):
        words = rng.sample(WORDS, 4)
        other = rng.sample(words, 4) if i % 2 else rng.sample([*WORDS[::-1]], 4)
        rows.append((" ".join(words), " ".join(other), "same" if i % 2 else "other"))
    task, splits = read(tmp_path, rows, ("text", "pair", "label"))
    assert found(task, splits).score > 0.9


def test_texts_without_spaces_have_words(tmp_path: Path) -> None:
    rng, rows = random.Random(0), []
    for i in range(200):
        middle = [*"天地玄黄宇宙洪荒"]
        rng.shuffle(middle)
        middle.insert(4, "好" if i % 2 else "坏")
        rows.append(("".join(middle), "good" if i % 2 else "bad"))
    task, splits = read(tmp_path, rows)
    assert found(task, splits).score == 1


def test_large_data_are_cut_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, splits = read(tmp_path, sorted(tiny.sentences(300), key=lambda row: row[1]))
    monkeypatch.setattr(floors, "ROWS", 60)
    result = found(task, splits)
    assert result.rows == 60 < len(splits.labelled)
    assert result.score > 0.7, "a fair draw of rows that stand by class"
    monkeypatch.setattr(floors, "CHARACTERS", 1_000)
    assert 10 < found(task, splits).rows < 60


@pytest.mark.parametrize("unheard", ["above", "never", "unheard"])
def test_a_class_that_no_row_teaches_is_only_missed(tmp_path: Path, unheard: str) -> None:
    """Wherever it stands among those that are taught."""
    train, test = tiny.sentences(200)[:150], tiny.sentences(200)[150:]
    test = [*test, ("a text of another kind", unheard)]
    task, splits = read(tmp_path, train, test=test)
    assert task.choices == sorted(["negative", "positive", unheard])
    assert 0.7 < found(task, splits).score < 1


def test_where_there_is_nothing_to_learn_there_is_none(tmp_path: Path) -> None:
    task, splits = read(tmp_path, tiny.sentences(60))
    assert floor_of(task, None, resamples=50) is None
    assert floor_of(Span(), splits, resamples=50) is None
    same = [(f"{text} {i}", "one") for i, (text, _) in enumerate(tiny.sentences(40))]
    _, splits = read(tmp_path / "one", same, test=[*tiny.sentences(20), ("some text", "one")])
    assert floor_of(Classification(["negative", "one", "positive"]), splits, resamples=50) is None


def test_products_are_sparse(tmp_path: Path) -> None:
    """What two texts make of their words never becomes a full matrix."""
    _, splits = read(tmp_path, [(a, b, c) for (a, c), (b, _) in
        zip(tiny.sentences(40), tiny.sentences(40, 1), strict=True)],
        ("text", "pair", "label"))  # fmt: skip
    examples = list(splits.labelled)
    assert sp.issparse(floors._Bag(examples, outputs=2).features(examples))


@pytest.mark.parametrize(
    ("table", "missed"),
    [
        (None, []),
        ([[3, 0, 0], [0, 2, 0], [0, 0, 1]], []),
        ([[3, 0, 0], [2, 0, 0], [1, 0, 0]], ["b", "c"]),
        ([[0, 0, 0], [2, 0, 0], [1, 0, 1]], ["b"]),  # b has rows; a has none, and is answered
        ([[4, 0, 0], [1, 3, 0], [0, 0, 0]], []),  # c has no row
    ],
)
def test_a_class_with_rows_and_no_answer_is_never_predicted(
    table: list[list[int]] | None, missed: list[str]
) -> None:
    assert never_predicted(table, Classification(["a", "b", "c"])) == missed
