"""A record says where a model is weak: below a bag of words, or blind to some classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stillhouse as sh
import tiny
from stillhouse.core.progress import Silent
from stillhouse.core.results import FloorResult, ModelResult
from stillhouse.flows.doubts import below_floor, beside, classes_missed, no_nearer, what_helps

FLOOR = FloorResult(
    name="TF-IDF with logistic regression", score=0.654, interval=(0.6, 0.7),
    metrics={"accuracy": 0.654}, rows=1069, seconds=0.31,
)  # fmt: skip


def model(score: float, **more: Any) -> ModelResult:
    return ModelResult(
        parameters=1, bytes=1, name="model", score=score, interval=(0.0, 1.0), metrics={}, **more
    )


def test_a_model_below_the_floor_is_said_to_be() -> None:
    (said,) = below_floor("the model", model(0.292), FLOOR, "accuracy", margin=0.01)
    assert said.startswith(
        "a bag of words (TF-IDF with logistic regression, 0.3 s) scores 0.654, 36.2 points more "
        "than the model (0.292)"
    )


@pytest.mark.parametrize(("score", "floor"), [(0.7, FLOOR), (0.654, FLOOR), (0.1, None)])
def test_a_model_that_is_not_below_it_is_left_alone(
    score: float, floor: FloorResult | None
) -> None:
    assert below_floor("the model", model(score), floor, "accuracy", margin=0.01) == []


def test_a_model_that_is_hardly_below_it_is_not_told_to_train() -> None:
    (said,) = below_floor("the model", model(0.645), FLOOR, "accuracy", margin=0.01)
    assert said.endswith("scores 0.654, and the model 0.645: no better, so the bag of words may do")


@pytest.mark.parametrize(("explained", "told"), [(-0.02, True), (0.0, True), (0.3, False)])
def test_values_that_are_no_nearer_than_their_mean_are_told(explained: float, told: bool) -> None:
    found = model(0.863).model_copy(update={"metrics": {"r_squared": explained}})
    said = no_nearer("the student", found, "pearson")
    assert bool(said) == told
    assert all("pearson 0.863 is of their order only" in each for each in said)
    assert no_nearer("the student", model(0.1), "accuracy") == []


def test_a_score_stands_beside_the_floors() -> None:
    assert "TF-IDF with logistic regression) scores 0.654" in beside(FLOOR)
    assert beside(None) == ""


def test_classes_without_an_answer_are_named_with_their_rows() -> None:
    found = model(0.5, confusion=[[9, 0, 0], [3, 0, 0], [1, 0, 0]], never_predicted=["b", "c"])
    (said,) = classes_missed("the model", found, ["a", "b", "c"])
    assert said.startswith(
        "the model never answers 2 of the 3 classes that the reported rows have: b (3 rows), "
        "c (1 row);"
    )
    assert classes_missed("the model", model(0.5), ["a", "b", "c"]) == []


def test_classes_that_no_reported_row_has_are_not_counted() -> None:
    found = model(0.5, confusion=[[9, 0, 0], [3, 0, 0], [0, 0, 0]], never_predicted=["b"])
    (said,) = classes_missed("the model", found, ["a", "b", "c"])
    assert said.startswith("the model never answers 1 of the 2 classes that the reported rows have")


def test_no_more_than_ten_are_named() -> None:
    names = [f"k{i:02}" for i in range(14)]
    table = [[2] + [0] * 13 for _ in names]
    found = model(0.1, confusion=table, never_predicted=names[1:])
    (said,) = classes_missed("the model", found, names)
    assert "k10 (2 rows) and 3 more" in said
    assert "k11" not in said


@pytest.mark.parametrize(
    ("missed", "weighed", "told"),
    [(["c"], False, "weigh rare"), (["c"], True, "train it longer"), (["b"], False, "train it")],
)
def test_a_class_that_is_missed_is_weighed_where_it_is_rare(
    missed: list[str], weighed: bool, told: str
) -> None:
    said = what_helps(missed, {"a": 70, "b": 60, "c": 10}, weighed=weighed)
    assert said.startswith(told)


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> sh.Run:
    """A model that was hardly trained, on rows whose words tell their class."""
    root = tmp_path_factory.mktemp("weak")
    base = tiny.save(root / "base", "bert", labels=["a", "b"])
    return sh.finetune(
        base,
        {"path": str(tiny.reviews(root / "reviews.csv", 400)), "max_length": 32},
        out=root / "run",
        training={"steps": 1, "lr": 1e-6, "precision": "float32"},
        resamples=50,
        cache=str(root / "cache"),
        progress=Silent(),
    )


def test_a_fine_tuning_below_the_floor_says_so(weak: sh.Run) -> None:
    record = weak.record
    assert record.floor is not None
    assert record.floor.score > 0.85
    assert record.floor.rows == record.data.labelled
    assert record.student.score < record.floor.score
    assert any("more than the model" in warning for warning in record.warnings)
    assert f"scores {record.floor.score:.3f}" in record.sentence
    held = json.loads((weak.out / "record.json").read_text())
    assert held["floor"]["score"] == record.floor.score


def test_a_fine_tuning_names_the_classes_it_never_answers(weak: sh.Run) -> None:
    """One step leaves it with one answer to all."""
    (missed,) = weak.record.student.never_predicted
    assert any(
        f"classes that the reported rows have: {missed} (" in w for w in weak.record.warnings
    )


def test_a_distillation_has_its_floor(tmp_path: Path) -> None:
    teacher = tiny.save(tmp_path / "teacher", "bert", layers=2, labels=tiny.SENTIMENT)
    data = tiny.reviews(tmp_path / "reviews.csv", 400)
    values = tiny.settings(teacher, data, tmp_path / "cache")
    run = sh.distill(**values, out=tmp_path / "run", progress=Silent())
    record = run.record
    assert record.floor is not None
    assert record.teacher is not None
    assert record.floor.score > 0.85 > max(record.teacher.score, record.student.score)
    said = [warning for warning in record.warnings if "a bag of words" in warning]
    assert ["the teacher" in said[0], "the student" in said[1]] == [True, True]
