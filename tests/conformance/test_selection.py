"""Row: best epoch chosen on the reported set. Selection reads the held-out rows; what the reported
rows say changes no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import tiny
from stillhouse.flows.distill import distill
from stillhouse.models.forward import scores, training_mode

Distil = Callable[..., Any]
ROWS = tiny.sentences(140)
FLIP = {"positive": "negative", "negative": "positive"}


def run(
    folder: Path, distil: Distil, *, dev: list[tuple[str, str]], test: list[tuple[str, str]]
) -> Any:
    for name, rows in (("train", ROWS[:60]), ("dev", dev), ("test", test)):
        tiny.write_csv(folder / "data" / f"{name}.csv", ["text", "label"], rows)
    training = {"steps": 30, "lr": 5e-3, "evaluations": 10}
    return distill(distil(data_file=folder / "data", training=training), folder / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "run" / "checkpoints" / "student-0.safetensors")
    return {name: tensor for name, tensor in found.items() if not name.startswith("|")}


def test_the_reported_labels_change_no_weight(distil: Distil, tmp_path: Path) -> None:
    dev, test = ROWS[60:100], ROWS[100:]
    flipped = [(text, FLIP[label]) for text, label in test]
    one = run(tmp_path / "a", distil, dev=dev, test=test)
    other = run(tmp_path / "b", distil, dev=dev, test=flipped)
    assert one.best.fit.best_step == other.best.fit.best_step
    assert one.best.fit.score == other.best.fit.score
    mine, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (one.best.scores_NK == other.best.scores_NK).all()
    assert (one.reported.gold_N != other.reported.gold_N).all()


def test_the_held_out_labels_do(distil: Distil, tmp_path: Path) -> None:
    """So that the test above can fail: selection does look at some rows."""
    dev, test = ROWS[60:100], ROWS[100:]
    flipped = [(text, FLIP[label]) for text, label in dev]
    one = run(tmp_path / "a", distil, dev=dev, test=test)
    other = run(tmp_path / "b", distil, dev=flipped, test=test)
    assert one.best.fit.best_step != other.best.fit.best_step
    mine, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert not all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_kept_weights_are_those_that_were_selected(distil: Distil, tmp_path: Path) -> None:
    """The shipped student's held-out score, computed again, is the one that chose it."""
    outcome = run(tmp_path, distil, dev=ROWS[60:100], test=ROWS[100:])
    student, task = outcome.student, outcome.setup.task
    examples = list(outcome.setup.splits.held_out)
    inputs = tiny.tokenizer()([e.text for e in examples], padding=True, return_tensors="pt")
    precision = outcome.stages[-1].training.precision
    with torch.no_grad(), training_mode(student, on=False):
        answers_N = scores(student, inputs, precision=precision).argmax(-1).numpy()
    gold_N = np.array([task.choices.index(str(e.label)) for e in examples])
    assert task.metric_of(answers_N, gold_N, "accuracy") == outcome.best.fit.score
