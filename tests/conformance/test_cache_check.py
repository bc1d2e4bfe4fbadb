"""Rows: server and local teacher disagree; a student's ids fed to another tokenizer's teacher.
Cached answers are compared with the live teacher at the start of each run; each model reads its
own ids.

Axes: N rows, K choices.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

import tiny
from stillhouse.core.errors import RunError
from stillhouse.core.progress import Silent
from stillhouse.flows.distill import distill
from stillhouse.flows.plan import Plan
from stillhouse.flows.prepare import prepare
from stillhouse.signals.cache import AnswerCache
from stillhouse.signals.teacher import TOLERANCE

Distil = Callable[..., Any]


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_answers_of_another_teacher_stop_the_run(
    distil: Distil, tmp_path: Path, precision: str
) -> None:
    """The cache's own name is right, its answers are not: as after a file was put in its place."""
    setup = prepare(distil(cache=str(tmp_path), label={"precision": precision}))
    plan, pool = Plan(setup, Silent()), setup.rows.train
    train = plan.rows(pool, "training rows", of_teacher=True)
    plan.answers(pool, "training rows")
    (folder,) = (tmp_path / "answers").iterdir()
    (folder / "shard-00000.bin").unlink()
    about = json.loads((folder / "cache.json").read_text())
    cache = AnswerCache(tmp_path, {k: v for k, v in about.items() if k not in ("schema", "kind")})
    assert cache.folder == folder
    wrong_NK = np.random.default_rng(0).normal(size=(len(train), 2)).astype(np.float32)
    with cache.writing() as writer:
        writer.append(train.keys_N2, wrong_NK)
    with pytest.raises(RunError, match="are not this teacher's") as caught:
        distill(setup.config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_answers_a_little_over_the_tolerance_stop_the_run(
    distil: Distil, tmp_path: Path, precision: str
) -> None:
    """Probabilities off by three to six times what is allowed: ten times as much would let them
    through."""
    setup = prepare(distil(cache=str(tmp_path), label={"precision": precision}))
    pool = setup.rows.train
    Plan(setup, Silent()).answers(pool, "training rows")
    (folder,) = (tmp_path / "answers").iterdir()
    about = json.loads((folder / "cache.json").read_text())
    cache = AnswerCache(tmp_path, {k: v for k, v in about.items() if k not in ("schema", "kind")})
    positions = cache.positions(pool.keys_N2)
    scores_NK = cache.scores(positions)
    moved_NK = scores_NK + np.float32([22 * TOLERANCE[precision], 0.0])
    off = np.abs(softmax(moved_NK, -1) - softmax(scores_NK, -1)).max() / TOLERANCE[precision]
    assert 3 < off < 6
    (folder / "shard-00000.bin").unlink()
    with AnswerCache(tmp_path, cache.identity).writing() as writer:
        writer.append(pool.keys_N2, moved_NK)
    with pytest.raises(RunError, match="are not this teacher's"):
        Plan(setup, Silent()).answers(pool, "training rows")


def test_another_teacher_in_the_same_folder_is_asked_anew(
    distil: Distil, tmp_path: Path, reviews: Path
) -> None:
    for seed in (0, 1):
        teacher = tiny.save(tmp_path / "teacher", "bert", layers=2, seed=seed)
        distill(tiny.config(teacher, reviews, tmp_path / "cache"), tmp_path / f"run-{seed}")
    assert len(list((tmp_path / "cache" / "answers").iterdir())) == 2


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("given", ["model", "source"])
def test_a_student_with_another_vocabulary_has_its_teacher_asked_in_the_teachers_own(
    distil: Distil, folders: Callable[..., Path], tmp_path: Path, given: str
) -> None:
    student = folders("roberta", layers=2)
    shape = {"model": str(student)} if given == "model" else {"source": str(student), "layers": 1}
    config = distil(cache=str(tmp_path / "cache"), student={"layers": None, **shape})
    outcome = distill(config, tmp_path / "run")
    assert type(outcome.student).__name__.startswith("Roberta")
    setup, splits = outcome.setup, outcome.setup.splits
    (folder,) = (tmp_path / "cache" / "answers").iterdir()
    records = np.fromfile(
        folder / "shard-00000.bin", [("key", "<u8", (2,)), ("scores", "<f4", (2,)), ("crc", "<u4")]
    )
    answers = {record["key"].tobytes(): record["scores"] for record in records}
    assert len(answers) == len(splits.train)
    with torch.no_grad():
        for key, example in list(zip(splits.train.keys_N2, splits.train, strict=True))[:20]:
            own = setup.teacher(**tiny.tokenizer("bert")(example.text, return_tensors="pt")).logits
            assert answers[key.tobytes()].tolist() == pytest.approx(own[0].tolist(), abs=1e-4)
