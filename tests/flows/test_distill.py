"""A distillation from end to end: what it leaves is what it says.

Axes: N rows, K choices.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.config import DistillConfig, FinetuneConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.settings import parse, read_yaml
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.flows.common import tidy
from stillhouse.flows.distill import Outcome, distill, label_only, prepare
from stillhouse.flows.finetune import Finetuned, finetune
from stillhouse.flows.training_data import TRAINED_ON

Distil = Callable[..., Any]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finetuned, Path, Path]:
    """A teacher that has learnt the reviews, its folder, and the reviews."""
    root = tmp_path_factory.mktemp("taught")
    base = tiny.save(root / "base", "bert", layers=2, labels=["a", "b", "c"])
    data = tiny.reviews(root / "reviews.csv", 500)
    config = parse(
        FinetuneConfig,
        {
            "model": str(base),
            "data": {"path": str(data), "max_length": 32},
            "training": {"epochs": 15, "lr": 3e-3, "precision": "float32", "dropout": 0.0},
            "cache": str(root / "cache"),
        },
    )
    found = finetune(config, root / "run")
    found.model.save_pretrained(root / "teacher")  # pyright: ignore
    found.gold.tokenizer.save_pretrained(root / "teacher")
    return found, root / "teacher", data


@pytest.fixture(scope="module")
def outcome(
    taught: tuple[Finetuned, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """Two seeds of students and baselines with few labels."""
    _, teacher, data = taught
    root = tmp_path_factory.mktemp("distilled")
    config = tiny.config(
        teacher,
        data,
        root / "cache",
        student={"layers": 1},
        data={"labelled_rows": 40},
        evaluation={"seeds": [0, 1], "baseline": True},
        training={"steps": 120, "lr": 3e-3, "evaluations": 6, "dropout": 0.0},
    )
    return distill(config, root / "run")


def accuracy(found: Outcome, scores_NK: np.ndarray) -> float:
    gold_N = found.reported.gold_N.numpy()
    return found.setup.task.metric_of(scores_NK.argmax(-1), gold_N, "accuracy")


def test_a_fine_tuned_model_has_learnt_and_knows_its_labels(
    taught: tuple[Finetuned, Path, Path],
) -> None:
    found, _, _ = taught
    assert found.gold.task.choices == ["negative", "positive"]
    assert found.model.config.id2label == {0: "negative", 1: "positive"}  # pyright: ignore
    answers_N = found.trained.scores_NK.argmax(-1)
    assert found.gold.task.metric_of(answers_N, found.reported.gold_N.numpy(), "accuracy") > 0.85


def test_students_learn_from_a_teacher_what_few_labels_do_not_tell(outcome: Outcome) -> None:
    teacher = accuracy(outcome, outcome.teacher_scores_NK)
    students = [accuracy(outcome, run.scores_NK) for run in outcome.students]
    baselines = [accuracy(outcome, run.scores_NK) for run in outcome.baselines]
    assert teacher > 0.85
    assert min(students) > 0.7
    assert sum(students) > sum(baselines) + 0.1


def test_the_outcome_has_every_seed_and_the_best_of_them(outcome: Outcome) -> None:
    assert [run.seed for run in outcome.students] == [0, 1]
    assert [run.seed for run in outcome.baselines] == [0, 1]
    assert {run.role for run in outcome.students} == {"student"}
    assert outcome.best.fit.score == max(run.fit.score or 0.0 for run in outcome.students)
    assert {run.fit.steps for run in [*outcome.students, *outcome.baselines]} == {120}
    assert not np.allclose(outcome.students[0].scores_NK, outcome.students[1].scores_NK)
    assert outcome.total_s >= outcome.teacher_s > 0


def test_the_student_is_the_best_run_and_gives_its_answers(outcome: Outcome) -> None:
    np.testing.assert_array_equal(
        score_rows(outcome.student, outcome.reported), outcome.best.scores_NK
    )
    assert not outcome.student.training
    assert outcome.student.config.num_hidden_layers == 1  # pyright: ignore


def test_the_teachers_answers_are_its_own(outcome: Outcome) -> None:
    examples = list(outcome.setup.splits.reported)
    inputs = tiny.tokenizer()([e.text for e in examples], padding=True, return_tensors="pt")
    with torch.no_grad():
        own_NK = outcome.setup.teacher(**inputs).logits.numpy()
    np.testing.assert_allclose(outcome.teacher_scores_NK, own_NK, atol=1e-4)


def test_the_run_folder_repeats_the_run(outcome: Outcome) -> None:
    folder = outcome.best.path.parent.parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {(line["run"], line["seed"]) for line in lines} == {
        ("student", 0),
        ("student", 1),
        ("baseline", 0),
        ("baseline", 1),
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["seeds"] == [0, 1]
    again = distill(parse(DistillConfig, read_yaml(folder / "config.yaml")), folder)
    assert (again.best.scores_NK == outcome.best.scores_NK).all()
    assert again.best.fit == outcome.best.fit
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(lines)


def test_checkpoints_go_unless_they_are_to_be_kept(distil: Distil, tmp_path: Path) -> None:
    distill(distil(), tmp_path / "run")
    tidy(tmp_path / "run", keep=True)
    assert (tmp_path / "run" / "checkpoints").exists()
    tidy(tmp_path / "run", keep=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_baseline_trains_as_long_as_its_student(distil: Distil, tmp_path: Path) -> None:
    """On the labelled rows only, and where epochs end it, for the student's number of steps."""
    config = distil(
        training={"steps": None, "epochs": 2.0},
        data={"labelled_rows": 20},
        evaluation={"baseline": True},
    )
    found = distill(config, tmp_path)
    assert found.baselines[0].fit.steps == found.students[0].fit.steps > 8


def test_seeds_do_not_depend_on_each_other(distil: Distil, tmp_path: Path) -> None:
    both = distill(distil(evaluation={"seeds": [3, 4]}), tmp_path / "both")
    alone = distill(distil(evaluation={"seeds": [4]}), tmp_path / "alone")
    assert (both.students[1].scores_NK == alone.students[0].scores_NK).all()


def test_a_named_students_new_head_is_the_same_every_time(
    distil: Distil, folders: Callable[..., Path], tmp_path: Path
) -> None:
    """It is drawn from the run's seed, not from whatever was drawn before."""
    other = folders("bert", layers=1, labels=["a", "b", "c"])
    config = distil(student={"layers": None, "model": str(other)})
    found = []
    for name in ("a", "b"):
        torch.manual_seed(len(found))
        found.append(distill(config, tmp_path / name).best.scores_NK)
    assert (found[0] == found[1]).all()


def test_a_named_students_new_head_is_another_one_for_each_seed(
    distil: Distil, folders: Callable[..., Path]
) -> None:
    other = folders("bert", layers=1, labels=["a", "b", "c"])
    setup = prepare(distil(student={"layers": None, "model": str(other)}))
    first, second, again = (setup.make(seed) for seed in (0, 1, 0))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert torch.equal(first.bert.pooler.dense.weight, second.bert.pooler.dense.weight)


def test_a_teacher_that_knows_reported_rows_is_told(
    taught: tuple[Finetuned, Path, Path], distil: Distil, tmp_path: Path
) -> None:
    """The reported rows of another file are the teacher's training rows, in capitals."""
    found, teacher, data = taught
    rows = [(e.text.upper(), e.label) for e in found.gold.splits.labelled]
    other = tiny.write_csv(tmp_path / "other" / "dev.csv", ["text", "label"], rows).parent
    tiny.write_csv(other / "train.csv", ["text", "label"], tiny.sentences(560)[500:])
    shutil.copytree(teacher, tmp_path / "teacher")
    shutil.copy(found_folder(found), tmp_path / "teacher")
    done = distill(distil(of=tmp_path / "teacher", data_file=other), tmp_path / "a")
    count = len(done.setup.splits.reported)
    assert any(f"trained on {count} of the {count} rows" in note for note in done.notes)
    done = distill(distil(of=tmp_path / "teacher", data_file=data), tmp_path / "b")
    assert not any("trained on" in note for note in done.notes)


def found_folder(found: Finetuned) -> Path:
    return found.trained.path.parent.parent / TRAINED_ON


def test_a_teacher_no_better_than_chance_is_told(
    taught: tuple[Finetuned, Path, Path], distil: Distil, tmp_path: Path
) -> None:
    """Its labels were swapped on the way."""
    _, teacher, data = taught
    swapped = {"negative": "positive", "positive": "negative"}
    config = distil(of=teacher, data_file=data, data={"label_map": swapped})
    assert any("label-map" in note for note in distill(config, tmp_path / "a").notes)
    config = distil(of=teacher, data_file=data)
    assert not any("label-map" in note for note in distill(config, tmp_path / "b").notes)


def test_a_student_whose_model_changed_is_not_gone_on_with(
    distil: Distil, folders: Callable[..., Path], tmp_path: Path
) -> None:
    named = shutil.copytree(folders("bert", layers=2), tmp_path / "named")
    config = distil(student={"layers": 1, "source": str(named)})
    distill(config, tmp_path / "run")
    tiny.save(named, layers=2, seed=7)
    with pytest.raises(UsageError, match="the student's model changed"):
        distill(config, tmp_path / "run")


def test_pairs_are_distilled(folders: Callable[..., Path], cache: Path, tmp_path: Path) -> None:
    rows = tiny.sentences(80)
    pairs = [(a, b, ["other", "same"][x == y]) for (a, x), (b, y) in itertools.pairwise(rows)]
    data = tiny.write_csv(
        tmp_path / "d" / "train.csv", ["premise", "hypothesis", "label"], pairs[:60]
    )
    dev = tiny.write_csv(tmp_path / "dev.csv", ["premise", "hypothesis", "label"], pairs[60:])
    extra = tiny.write_csv(
        tmp_path / "more.csv", ["premise", "hypothesis"], [(b, a) for a, b, _ in pairs]
    )
    teacher = folders("bert", labels=["same", "other"], layers=2)
    config = tiny.config(
        teacher,
        data.parent,
        cache,
        data={
            "dev": str(dev),
            "unlabelled": str(extra),
            "pair": "hypothesis",
            "text": "premise",
        },
    )
    found = distill(config, tmp_path / "run")
    splits = found.setup.splits
    assert [len(p) for p in (splits.labelled, splits.held_out, splits.reported)] == [54, 6, 19]
    assert len(splits.unlabelled) == 79 - 6 - 19  # turned round, some are held out or reported
    assert found.setup.task.choices == ["same", "other"]
    assert np.isfinite(found.best.scores_NK).all()


@pytest.mark.parametrize(
    ("task", "metric"), [("auto", None), ("regression", "pearson"), ("auto", "spearman")]
)
def test_values_are_distilled(
    folders: Callable[..., Path], cache: Path, tmp_path: Path, metric: str | None, task: str
) -> None:
    rows = [
        (text, sum(w in tiny.GOOD for w in text.split()) + 0.5) for text, _ in tiny.sentences(100)
    ]
    data = tiny.write_csv(tmp_path / "d.csv", ["text", "score"], rows)
    teacher = folders("bert", labels=["value"], layers=2)
    config = tiny.config(
        teacher,
        data,
        cache,
        task=task,
        evaluation={"metric": metric, "baseline": True},
        training={"steps": 60, "lr": 3e-3},
    )
    found = distill(config, tmp_path / "run")
    assert found.setup.task.name == "regression"
    assert found.setup.task.metric == (metric or "pearson")
    target_N = 0.9 * found.teacher_scores_NK[:, 0] + 0.1 * found.reported.gold_N.numpy()
    before_N = score_rows(found.setup.make(0), found.reported)[:, 0]
    errors = [((x - target_N) ** 2).mean() for x in (before_N, found.best.scores_NK[:, 0])]
    assert errors[1] < 0.3 * errors[0]
    agreement = found.setup.task.agreement(found.best.scores_NK[:, 0], target_N)
    assert np.isfinite(agreement)
    assert found.student.config.problem_type == "regression"  # pyright: ignore


def test_a_folder_of_another_run_is_refused(distil: Distil, tmp_path: Path) -> None:
    distill(distil(), tmp_path / "run")
    with pytest.raises(UsageError, match=r"another run .its training\.lr differ"):
        distill(distil(training={"lr": 2e-3}), tmp_path / "run")


def test_label_only_fills_the_cache_that_a_run_then_uses(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    config = tiny.config(teacher, reviews, tmp_path / "cache")
    store, count = label_only(config)
    shards = {p: p.read_bytes() for p in (store / "answers").rglob("*.bin")}
    found = distill(config, tmp_path / "run")
    assert count == len(found.setup.splits.train)
    assert {p: p.read_bytes() for p in (store / "answers").rglob("*.bin")} == shards
