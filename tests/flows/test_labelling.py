"""What rows are taken for is asked where it can't be known, and said where it was guessed."""

from __future__ import annotations

import json
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
from stillhouse.flows.prepare import prepare

Distil = Callable[..., Any]
Folders = Callable[..., Path]
SENTENCES = tiny.sentences(60)


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
