"""What can't work stops before anything is trained, in exactly one line that says what to do."""

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
from stillhouse.core.errors import UsageError
from stillhouse.core.settings import parse
from stillhouse.flows.distill import distill
from stillhouse.flows.finetune import finetune

Distil = Callable[..., Any]
Folders = Callable[..., Path]


@pytest.fixture
def refused(distil: Distil, tmp_path: Path) -> Callable[..., None]:
    def check(says: str, **changes: Any) -> None:
        with pytest.raises(UsageError, match=says) as caught:
            distill(distil(**changes), tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert str(caught.value).strip()
        assert not (tmp_path / "run").exists(), "nothing is written for a call that was wrong"

    return check


Refused = Callable[..., None]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"path": "missing.csv"}}, "no file or folder missing.csv"),
        ({"data": {"text": "body"}}, "no column 'body'; it has text, label"),
        ({"data": {"unlabelled": "missing.txt"}}, "no file missing.txt"),
        ({"data": {"dev": "missing.csv"}}, "no file missing.csv"),
        ({"training": {"learning_rate": 1}}, "unknown setting 'learning_rate'"),
        ({"training": {"warm_up": 1}}, "did you mean 'warmup'"),
        ({"objective": [{"kind": "soft", "divergence": "foward_kl"}]}, "did you mean 'forward_kl'"),
        ({"objective": [{"kind": "soft", "divergence": "jsd"}]}, "jsd needs beta"),
        ({"student": {"layers": 5}}, "5 layers is larger than its source's 4"),
        ({"student": {"layers": [1, 9]}}, "not all among the source's 1 to 4"),
        ({"student": {"layers": 4, "ffn": 500}}, "the student is larger than its teacher"),
        ({"teacher": "/nowhere/at/all"}, "is no model folder"),
        ({"task": "regression"}, "needs a teacher of one output, this one has 2"),
        ({"evaluation": {"metric": "pearson"}}, "classification has no metric pearson"),
        ({"data": {"label_map": {"good": "positive"}}}, "names good, which the teacher has not"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_settings(refused: Refused, changes: dict[str, Any], says: str) -> None:
    refused(says, **changes)


def test_a_folder_that_is_no_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    refused("is no model folder: it has no config.json", of=tmp_path / "photos")


def test_a_model_and_a_tokenizer_that_pad_otherwise(
    refused: Refused, teacher: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(teacher, tmp_path / "t")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 3}))
    refused("pads with id", teacher=str(folder))
    many = shutil.copytree(teacher, tmp_path / "m")
    kind = {"problem_type": "multi_label_classification"}
    (many / "config.json").write_text(json.dumps(config | kind))
    refused("multi-label", teacher=str(many))


def test_a_folder_with_pickled_weights(refused: Refused, teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teacher, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(tiny.model().state_dict(), folder / "pytorch_model.bin")
    refused("pickled weights are not loaded", of=folder)


def test_a_teacher_that_was_never_taught(refused: Refused, tmp_path: Path) -> None:
    tiny.model().base_model.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    refused("no classification head", of=tmp_path / "base")


def test_labels_that_the_teacher_does_not_know(refused: Refused, folders: Folders) -> None:
    refused(
        "doesn't know: negative, positive; it knows sad, glad", of=folders(labels=["sad", "glad"])
    )


def test_a_named_student_larger_than_its_teacher(refused: Refused, folders: Folders) -> None:
    refused("larger than its teacher", student={"layers": None, "model": str(folders(layers=6))})


@pytest.mark.parametrize(
    ("term", "says"),
    [
        ({"kind": "soft", "divergence": "forward_kl"}, "has no forward_kl: .*logit_mse"),
        ({"kind": "hard"}, "a regression has no hard labels"),
        ({"kind": "soft", "divergence": "logit_mse", "standardise": True}, "can't be standardised"),
    ],
)
def test_a_regression_with_a_term_for_classes(
    refused: Refused, folders: Folders, tmp_path: Path, term: dict[str, Any], says: str
) -> None:
    rows = [(text, i / 7) for i, (text, _) in enumerate(tiny.sentences(40))]
    data = tiny.write_csv(tmp_path / "values.csv", ["text", "label"], rows)
    teacher = folders("bert", labels=["value"], layers=2)
    refused(says, of=teacher, data_file=data, objective=[term])


def test_a_regression_with_words_for_labels(refused: Refused, folders: Folders) -> None:
    refused("labels are numbers", of=folders("bert", labels=["value"], layers=2))


def test_a_regression_with_a_metric_for_classes(
    refused: Refused, folders: Folders, tmp_path: Path
) -> None:
    rows = [(text, i / 7) for i, (text, _) in enumerate(tiny.sentences(40))]
    data = tiny.write_csv(tmp_path / "values.csv", ["text", "label"], rows)
    teacher = folders("bert", labels=["value"], layers=2)
    refused(
        "regression has no metric accuracy",
        of=teacher,
        data_file=data,
        evaluation={"metric": "accuracy"},
    )


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        ([(t, "same") for t, _ in tiny.sentences(30)], {}, "at least two labels are needed"),
        ([(t, f"id {i}") for i, (t, _) in enumerate(tiny.sentences(80))], {}, "are no classes"),
        (tiny.sentences(30), {"task": "regression"}, "labels are numbers"),
    ],
)
def test_fine_tuning_on_labels_that_fit_no_task(
    folders: Folders,
    tmp_path: Path,
    rows: list[tuple[str, str]],
    changes: dict[str, Any],
    says: str,
) -> None:
    data = tiny.write_csv(tmp_path / "d.csv", ["text", "label"], rows)
    settings = {"model": str(folders()), "data": {"path": str(data)}, "cache": str(tmp_path / "c")}
    config = parse(FinetuneConfig, {**settings, **changes})
    with pytest.raises(UsageError, match=says) as caught:
        finetune(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
