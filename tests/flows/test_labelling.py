"""What rows are taken for is asked where it can't be known, and said where it was guessed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from stillhouse.core.config import FinetuneConfig
from stillhouse.core.errors import DataError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.flows.gold import Gold, prepare_gold
from stillhouse.flows.labelling import label_rule
from stillhouse.flows.prepare import prepare

Distil = Callable[..., Any]
Folders = Callable[..., Path]
SENTENCES = tiny.sentences(60)
AMOUNTS = " of 3 classes, whose names are numbers: if they are amounts, --task regression"


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def binary(tmp_path: Path) -> Path:
    rows = [(text, int(label == "positive")) for text, label in SENTENCES]
    return tiny.write_csv(tmp_path / "binary.csv", ["text", "label"], rows)


@pytest.fixture
def one_output(folders: Folders, tmp_path: Path) -> Callable[[str | None], Path]:
    """A teacher of one output whose config says of what problem."""

    def make(problem: str | None) -> Path:
        folder = shutil.copytree(folders("bert", labels=["value"], layers=2), tmp_path / "one")
        config = json.loads((folder / "config.json").read_text()) | {"problem_type": problem}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


OneOutput = Callable[[str | None], Path]


def test_one_output_and_two_labels_is_asked(
    distil: Distil, one_output: OneOutput, tmp_path: Path
) -> None:
    config = distil(of=one_output(None), data_file=binary(tmp_path))
    with pytest.raises(DataError, match="one output, the data two labels, 0 and 1: say") as caught:
        prepare(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("problem", "task", "name"),
    [
        (None, "classification", "classification"),
        ("multi_label_classification", "auto", "classification"),
        (None, "regression", "regression"),
        ("regression", "auto", "regression"),
    ],
)
def test_one_output_is_what_the_user_or_its_config_says(
    distil: Distil, one_output: OneOutput, tmp_path: Path, problem: str | None, task: str, name: str
) -> None:
    setup = prepare(distil(of=one_output(problem), data_file=binary(tmp_path), task=task))
    assert setup.task.name == name
    assert setup.task.choices == (["0", "1"] if name == "classification" else ["value"])
    with torch.no_grad():
        ids = torch.tensor([[2, 5, 6, 3]])
        assert setup.teacher(input_ids=ids).logits.shape[1] == len(setup.task.choices)
        assert setup.make(0)(input_ids=ids).logits.shape[1] == len(setup.task.choices)


def test_values_need_no_answer(distil: Distil, one_output: OneOutput, tmp_path: Path) -> None:
    rows = [(text, i % 4) for i, (text, _) in enumerate(SENTENCES)]
    data = tiny.write_csv(tmp_path / "values.csv", ["text", "label"], rows)
    assert prepare(distil(of=one_output(None), data_file=data)).task.name == "regression"


def gold(model: Path, path: Path, tmp_path: Path, noting: Noting, **changes: Any) -> Gold:
    columns = {name: changes.pop(name) for name in ("text", "label") if name in changes}
    values = {"model": str(model), "data": {"path": str(path), **columns}, **changes}
    return prepare_gold(parse(FinetuneConfig, {**values, "cache": str(tmp_path / "c")}), noting)


def test_what_was_guessed_is_said_in_one_line(
    distil: Distil, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    said = "text from column text, labels from column label; task: classification of 2 classes"
    noting = Noting()
    prepare(distil(), progress=noting)
    assert noting.notes.count(said) == 1
    noting = Noting()
    gold(teacher, reviews, tmp_path, noting)
    assert noting.notes == [said]


def test_what_was_asked_for_is_not_said(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    noting = Noting()
    gold(teacher, reviews, tmp_path, noting, text="text", label="label", task="classification")
    assert noting.notes == []
    gold(teacher, reviews, tmp_path, noting, text="text", task="classification")
    assert noting.notes == ["labels from column label"]


def test_a_class_without_a_training_row_is_said(teacher: Path, tmp_path: Path) -> None:
    dev = [(text, "mixed" if i % 2 else label) for i, (text, label) in enumerate(SENTENCES[40:])]
    folder = tmp_path / "data"
    tiny.write_csv(folder / "train.csv", ["text", "label"], SENTENCES[:40])
    tiny.write_csv(folder / "dev.csv", ["text", "label"], dev)
    splits = gold(teacher, folder, tmp_path, Noting()).splits
    assert splits is not None
    assert [note for note in splits.notes if "no labelled training row" in note] == [
        "no labelled training row is of class mixed, which held-out or reported rows have"
    ]


def test_labels_that_a_teacher_tells_apart_are_not_merged(
    distil: Distil, folders: Folders, tmp_path: Path
) -> None:
    rows = [(text, "US" if label == "positive" else "us") for text, label in SENTENCES]
    data = tiny.write_csv(tmp_path / "case.csv", ["text", "label"], rows)
    setup = prepare(distil(of=folders(labels=["us", "US"], layers=2), data_file=data))
    assert setup.task.choices == ["us", "US"]
    assert setup.splits is not None
    assert set(setup.splits.labelled.labels) == {"us", "US"}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["1", "3", "5"], AMOUNTS),
        (["-2", "0", "2"], AMOUNTS),
        (["0", "1", "2"], " of 3 classes"),  # as data sets number their classes
        (["1", "5"], " of 2 classes"),
        (["1", "5", "five"], " of 3 classes"),
    ],
)
def test_classes_that_may_be_amounts_are_said(
    teacher: Path, tmp_path: Path, labels: list[str], said: str
) -> None:
    rows = [(text, labels[i % len(labels)]) for i, (text, _) in enumerate(SENTENCES)]
    noting = Noting()
    data = tiny.write_csv(tmp_path / "stars.csv", ["text", "label"], rows)
    gold(teacher, data, tmp_path, noting)
    (guess,) = noting.notes
    assert guess.partition("task: classification")[2] == said


def test_decimal_commas_are_no_classes(teacher: Path, tmp_path: Path) -> None:
    rows = [(text, ["3,5", "4", "-0,25", "2.5"][i % 4]) for i, (text, _) in enumerate(SENTENCES)]
    data = tiny.write_csv(tmp_path / "values.csv", ["text", "label"], rows)
    for task, says in (
        ("auto", "labels such as -0,25 are numbers with a decimal comma: write a point for it"),
        ("regression", "got '-0,25': write its decimals behind a point"),
    ):
        with pytest.raises(DataError, match=re.escape(says)):
            gold(teacher, data, tmp_path, Noting(), task=task)
    made = gold(teacher, data, tmp_path, Noting(), task="classification")
    assert made.task.choices == ["-0,25", "2.5", "3,5", "4"]
    rows = [(text, ["3,5", "four"][i % 2]) for i, (text, _) in enumerate(SENTENCES)]
    data = tiny.write_csv(tmp_path / "names.csv", ["text", "label"], rows)
    assert gold(teacher, data, tmp_path, Noting()).task.choices == ["3,5", "four"]


def test_answers_in_passages_are_values_and_no_classes(teacher: Path) -> None:
    assert label_rule("span", str(teacher), {}).values
    assert not label_rule("classification", str(teacher), {}).values
