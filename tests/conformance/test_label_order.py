"""Row: labels in another order than the teacher's head. Names are matched, never positions; a
mismatch stops the run in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.errors import DataError
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.flows.distill import distill, prepare

Distil = Callable[..., Any]


def turned(folder: Path, labels: list[str]) -> Path:
    """The teacher with its head's outputs in reverse order, named `labels`."""
    model = tiny.model(layers=4, labels=labels)
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter.flip(0))
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_teacher_with_its_labels_in_another_order_is_the_same_teacher(
    distil: Distil, tmp_path: Path
) -> None:
    other = turned(tmp_path / "teacher", ["positive", "negative"])
    plain = distill(distil(), tmp_path / "plain")
    swapped = distill(distil(of=other), tmp_path / "swapped")
    assert plain.setup.task.choices == ["negative", "positive"]
    assert swapped.setup.task.choices == ["positive", "negative"]
    np.testing.assert_allclose(
        swapped.teacher_scores_NK, plain.teacher_scores_NK[:, ::-1], atol=1e-6
    )
    assert torch.equal(swapped.reported.gold_N, 1 - plain.reported.gold_N)
    scores = [
        outcome.setup.task.metric_of(
            outcome.teacher_scores_NK.argmax(-1), outcome.reported.gold_N.numpy(), "accuracy"
        )
        for outcome in (plain, swapped)
    ]
    assert scores[0] == scores[1]
    assert [plain.student.config.id2label[i] for i in (0, 1)] == ["negative", "positive"]
    assert [swapped.student.config.id2label[i] for i in (0, 1)] == ["positive", "negative"]
    np.testing.assert_allclose(
        score_rows(swapped.student, swapped.reported)[:, ::-1],
        score_rows(plain.student, plain.reported),
        atol=1e-3,
    )


def test_a_label_map_gives_names_to_a_head_without(distil: Distil, tmp_path: Path) -> None:
    other = turned(tmp_path / "teacher", ["LABEL_0", "LABEL_1"])
    mapped = {"label_map": {"LABEL_0": "positive", "LABEL_1": "negative"}}
    assert prepare(distil(of=other, data=mapped)).task.choices == ["positive", "negative"]


def test_labels_that_the_teacher_does_not_know_stop_the_run(distil: Distil, tmp_path: Path) -> None:
    other = turned(tmp_path / "teacher", ["LABEL_0", "LABEL_1"])
    with pytest.raises(DataError, match="doesn't know: negative, positive") as caught:
        distill(distil(of=other), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
