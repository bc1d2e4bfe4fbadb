"""A run's folder: the better of the two small models is in it, and loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import stillhouse as sh
import tiny
from stillhouse.core.inference import Inference
from stillhouse.core.progress import Silent
from stillhouse.core.results import Record
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.flows.prepare import prepare
from stillhouse.models.card import model_card
from stillhouse.runs import Run, run_distill

OTHERS = [(f"another text, number {i}", ["negative", "positive"][i % 2]) for i in range(20)]


def distilled(root: Path, data: Path, **evaluation: object) -> Run:
    """From a teacher that was never trained, whose answers are worth nothing."""
    teacher = tiny.save(root / "teacher", "bert", layers=2, labels=["negative", "positive"])
    config = tiny.config(
        teacher,
        data,
        root / "cache",
        student={"layers": 1},
        training={"steps": 80, "lr": 3e-3, "dropout": 0.0},
        evaluation={"seeds": [0, 1], "efficiency": False, "resamples": 50, **evaluation},
        export={"onnx": False},
        keep_checkpoints=True,
    )
    return run_distill(config, root / "run", progress=Silent())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("untaught")
    return distilled(root, tiny.reviews(root / "reviews.csv", 500), baseline=True, margin=2)


def test_a_better_baseline_is_named_and_kept(run: Run) -> None:
    record = run.record
    baseline = record.baseline
    assert baseline is not None
    assert baseline.score > record.student.score
    assert record.best == "baseline"
    assert record.sentence.startswith(record.lead)
    assert "The baseline is kept in baseline/." in record.sentence
    assert any("beats it" in sign for sign in record.weak_teacher)
    assert "weak" in record.lead
    assert "keeps" not in record.sentence
    assert record.gain is not None
    assert (record.gain.margin, record.gain.seeds) == (0.02, 2)


def test_the_kept_baseline_answers_as_it_was_measured(run: Run) -> None:
    folder = run.out / "baseline"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a fine film")["input_ids"]
    config = tiny.config(
        run.out.parent / "teacher", run.out.parent / "reviews.csv", run.out.parent / "cache",
        student={"layers": 1},
    )  # fmt: skip
    setup = prepare(config, progress=Silent())
    from stillhouse.flows.plan import Plan

    reported = Plan(setup, Silent()).reported
    right_N = score_rows(model, reported).argmax(-1) == reported.gold_N.numpy()
    baseline = run.record.baseline
    assert baseline is not None
    assert float(np.mean(right_N)) == pytest.approx(baseline.shipped_score)
    assert baseline.shipped_seed in (0, 1)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# The baseline of a distilled student of teacher" in card
    assert "without the teacher" in card


def test_a_card_says_which_score_is_whose(run: Run) -> None:
    card = (run.out / "student" / "README.md").read_text(encoding="utf-8")
    student = run.record.student
    assert (
        f"These weights are of seed {student.shipped_seed}, which was the best on the held-out "
        f"rows; on the test rows it scores {student.shipped_score:.4f}."
    ) in card
    assert run.record.sentence in card


def test_a_card_has_the_warnings_and_an_example_of_the_models_own_rows(run: Run) -> None:
    warned = run.record.model_copy(update={"warnings": ["one thing", "another"]})
    facts = Inference(task="classification", max_length=16, pair=True)
    card = model_card(warned, teacher="t", inference=facts)
    assert "## What to know\n\n- one thing\n- another\n\n## How it was made" in card
    assert 'classify({"text": "...", "text_pair": "..."})' in card
    plain = model_card(run.record.model_copy(update={"warnings": []}), teacher="t")
    assert "What to know" not in plain
    assert 'classify("...")' in plain


def test_a_run_killed_after_its_trainings_ends_the_same(run: Run) -> None:
    (run.out / "record.json").unlink()
    (run.out / "baseline" / "model.safetensors").unlink()
    again = distilled(run.out.parent, run.out.parent / "reviews.csv", baseline=True, margin=2)
    assert (run.out / "baseline" / "model.safetensors").is_file()
    same = ("gain", "verdict", "best", "lead", "sentence", "weak_teacher")
    for name in same:
        assert getattr(again.record, name) == getattr(run.record, name)
    assert Record.open(run.out, "run") == again.record


def test_a_model_that_knew_the_rows_is_not_compared(run: Run, tmp_path: Path) -> None:
    tiny.write_csv(tmp_path / "train.csv", ["text", "label"], OTHERS)
    shutil.copy(run.out.parent / "reviews.csv", tmp_path / "test.csv")
    baseline, teacher = run.out / "baseline", run.out.parent / "teacher"
    for model, against in ((baseline, teacher), (teacher, baseline)):
        found = sh.evaluate(
            model, str(tmp_path), against=against, resamples=50,
            cache=str(run.out.parent / "cache"), progress=Silent(),
        )["against"]  # fmt: skip
        assert found["verdict"] == "not comparable"
        assert found["not_comparable"].startswith("one of the models, or what it is made of, was")


def test_a_fine_tuning_without_speed(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", "bert", labels=["negative", "positive"])
    made = sh.finetune(
        base, str(tiny.reviews(tmp_path / "reviews.csv", 100)), out=tmp_path / "run",
        training={"steps": 1}, resamples=50, efficiency=False, cache=str(tmp_path / "cache"),
        progress=Silent(),
    )  # fmt: skip
    found = made.record.student
    assert (found.latency_ms, found.throughput_per_s, found.peak_memory_bytes) == (None, None, None)
    assert found.flops
    assert (made.out / "report.html").is_file()
