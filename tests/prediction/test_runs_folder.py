"""What a run leaves for those who use its model: answers to the test rows, files that are enough
in production, a card whose code runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_fscore_support

import stillhouse as sh
import tiny
from stillhouse.core.inference import read_inference
from stillhouse.core.progress import Silent
from stillhouse.core.results import Record
from stillhouse.core.types import Predictions
from stillhouse.data.columns import SQUAD, Columns
from stillhouse.data.readers import read
from stillhouse.data.rows import ingest
from stillhouse.data.sources import Part, Pool
from stillhouse.evaluation.batches import ALONE, batch_result
from stillhouse.evaluation.evaluate import classes, confusion
from stillhouse.flows.training_data import TRAINED_ON
from stillhouse.prediction import reported
from stillhouse.prediction.reported import write_predictions
from stillhouse.runs import run_distill
from stillhouse.tasks.classification import Classification

MAX_LENGTH = 10


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher: Path, reviews: Path) -> Path:
    """A finished distillation with exports, its rows cut at ten tokens."""
    root = tmp_path_factory.mktemp("distilled")
    config = tiny.config(
        teacher, reviews, root / "cache",
        data={"max_length": MAX_LENGTH}, export={"onnx": True, "int8": True},
        evaluation={"baseline": True, "efficiency": True},
    )  # fmt: skip
    run_distill(config, root / "small", progress=Silent())
    shutil.copytree(root / "small", root / "again", ignore=shutil.ignore_patterns("*"))
    run_distill(config, root / "again", progress=Silent())
    return root / "small"


def told(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_test_rows_stand_with_every_models_answer(run: Path, reviews: Path) -> None:
    rows, record = told(run), Record.open(run, "run")
    lines = reviews.read_text(encoding="utf-8").splitlines()
    for row in rows:
        assert lines[int(str(row["line"])) - 1] == f"{row['text']},{row['gold']}"
    for name, score in [
        ("teacher", record.teacher and record.teacher.score),
        ("student", record.student.shipped_score),
        ("baseline", record.baseline and record.baseline.shipped_score),
        *((each.format.replace("-", "_"), each.score) for each in record.exports),
    ]:
        assert np.mean([row[name] == row["gold"] for row in rows]) == pytest.approx(score), name
        for row in rows:
            shares = row[f"{name}_probabilities"]
            assert isinstance(shares, dict)
            assert shares[row[name]] == row[f"{name}_probability"] == max(shares.values())


def test_predict_gives_the_answers_that_the_run_reports(run: Path, in_float32: None) -> None:
    rows = told(run)
    texts = [str(row["text"]) for row in rows]
    for model in (run, run / "student", run / "onnx", run / "onnx" / "model.onnx"):
        found = sh.predict(model, texts)
        assert [each["answer"] for each in found] == [row["student"] for row in rows]
        for mine, row in zip(found, rows, strict=True):
            assert mine["probability"] == pytest.approx(row["student_probability"], abs=1e-3)
    student, onnx = ((run / folder / TRAINED_ON).read_bytes() for folder in ("student", "onnx"))
    assert student == onnx
    for folder in (run / "student", run / "onnx"):
        facts = read_inference(folder)
        assert facts is not None
        assert (facts.max_length, facts.pair) == (MAX_LENGTH, False)
        assert facts.labels == tiny.SENTIMENT


def test_the_cards_example_runs_and_answers_as_predict_does(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", card, re.S) if "onnxruntime" in b]
    statements = [line for line in code.splitlines() if line.strip() and line[0] not in " )"]
    assert len(statements) <= 10
    assert "torch" not in code
    monkeypatch.chdir(run)
    for text in ("good film", "the film was very good but the meal was quite awful and rude"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code.replace('"..."', repr(text)), {})
        assert printed.getvalue().strip() == sh.predict("onnx/model.onnx", [text])[0]["answer"]


def test_evaluate_scores_an_onnx_file_as_the_run_did(run: Path, reviews: Path) -> None:
    record = Record.open(run, "run")
    for export in record.exports:
        found = sh.evaluate(
            run / export.path, str(reviews), against=run, resamples=20,
            cache=str(run.parent / "cache"), progress=Silent(),
        )  # fmt: skip
        assert found["accuracy"] == pytest.approx(export.score)
        assert found["against"]["agreement"] == pytest.approx(export.agreement)


def test_figures_say_what_they_were_measured_on(run: Path) -> None:
    record = Record.open(run, "run")
    assert record.teacher is not None
    for model in (record.teacher, record.student, *record.exports):
        assert model.latency_ms is not None
        assert 2 <= (model.tokens or 0) <= MAX_LENGTH
        assert model.batch == min(32, record.data.reported)
        assert (model.tokens or 0) <= (model.batch_tokens or 0) <= MAX_LENGTH
    assert record.student.memory_batch == 32
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    assert f"Latency: 1 row of {record.student.tokens} tokens" in card


def test_answers_from_the_cache_are_counted_apart(run: Path) -> None:
    first, again = (Record.open(run.parent / name, "run").timing for name in ("small", "again"))
    assert first.teacher_asked
    assert first.teacher_cached == 0
    assert (again.teacher_asked, again.teacher_cached) == (0, first.teacher_asked)


def test_a_fine_tuned_model_has_its_answers_too(
    folders, reviews: Path, tmp_path: Path, in_float32: None
) -> None:
    out = tmp_path / "model"
    sh.finetune(
        folders("bert", layers=1, labels=["a", "b", "c"]),
        {"path": str(reviews), "max_length": MAX_LENGTH},
        out=out, training={"steps": 4, "batch_size": 16}, resamples=20,
        cache=str(tmp_path / "cache"), progress=Silent(),
    )  # fmt: skip
    rows = told(out)
    found = sh.predict(out, [str(row["text"]) for row in rows])
    assert [each["answer"] for each in found] == [row["model"] for row in rows]


def test_what_an_int8_file_owes_to_a_batch_is_measured(run: Path) -> None:
    record = Record.open(run, "run")
    batches = {each.format: each.batches for each in record.exports}
    assert batches["onnx"] is None
    found = batches["onnx-int8"]
    assert found is not None
    assert (found.rows, found.batch) == (record.data.reported, 32)
    texts = [str(row["text"]) for row in told(run)]
    gold = [row["gold"] for row in told(run)]
    file = run / "onnx" / "model-int8.onnx"
    alone, together = (
        [row["answer"] for row in sh.predict(file, texts, batch_size=size)] for size in (1, 32)
    )
    assert found.alone == pytest.approx(np.mean([a == g for a, g in zip(alone, gold, strict=True)]))
    assert found.changed == sum(a != b for a, b in zip(alone, together, strict=True))


def test_the_sample_of_a_batch_result_is_bounded_and_counts_what_changes() -> None:
    """A model whose answers follow how many rows are asked together."""
    gold_N = torch.zeros(3 * ALONE, dtype=torch.long)
    data, task = tiny.answered(gold_N), Classification(["no", "yes"])
    sizes = []

    def answer(some, size: int) -> np.ndarray:
        sizes.append((len(some), size))
        scores_NK = np.zeros((len(some), 2), np.float32)
        scores_NK[: 50 if size > 1 else 0, 1] = 1.0
        return scores_NK

    found = batch_result(answer, data, task)
    assert found is not None
    assert sizes == [(ALONE, 1), (ALONE, 32)]
    assert (found.alone, found.together, found.changed) == (1.0, 1 - 50 / ALONE, 50)


def test_the_sample_of_a_batch_result_is_spread_over_all_rows() -> None:
    """Of data sorted by label as many of each, not the first alone."""
    gold_N = torch.tensor([0, 1]).repeat_interleave(ALONE)
    task = Classification(["no", "yes"])

    def answer(some, size: int) -> np.ndarray:
        return np.eye(2, dtype=np.float32)[np.zeros(len(some), int)]

    found = batch_result(answer, tiny.answered(gold_N), task)
    assert found is not None
    assert (found.rows, found.alone) == (ALONE, 0.5)


def test_answers_to_questions_stand_with_their_own_row_where_others_have_no_gold(
    tmp_path: Path,
) -> None:
    """A question without an answer is no row of the file, and shifts no other."""
    passage, names = "the warm film and the cold meal", ["warm film", None, "cold meal"]
    lines = [
        {"question": f"what {i} ?", "context": passage, "answers": name}
        for i, name in enumerate(names)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = ingest(
        read(tmp_path / "rows.jsonl"), "rows.jsonl", Columns(*SQUAD), tmp_path / "store",
        labelled=True,
    )  # fmt: skip
    pool = Pool([Part(rows, np.arange(3), True)])
    data = SimpleNamespace(answers=[["warm film"], [], ["cold meal"]])
    shown = SimpleNamespace(name="span", show=lambda answer: str(answer))
    answers_N = np.array(["warm film", "meal"], object)
    gold_N = np.array(["warm film", "cold meal"], object)
    path = write_predictions(
        tmp_path / "predictions.jsonl", pool, shown, data,  # pyright: ignore
        {"student": Predictions(answers_N, None, gold_N)},
    )  # fmt: skip
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["line"], row["text"], row["gold"], row["student"]) for row in found] == [
        (1, "what 0 ?", "warm film", "warm film"),
        (3, "what 2 ?", "cold meal", "meal"),
    ]


def test_labels_are_scored_as_scikit_learn_scores_them() -> None:
    """Macro F1 counts a label that is never answered as 0, and leaves out one that is neither gold
    nor answered."""
    rng = np.random.default_rng(0)
    gold_N, answers_N = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    task = Classification(list("abcde"))
    shares_NK = np.eye(5, dtype=np.float32)[answers_N] * 10
    predictions = task.predictions(shares_NK, tiny.answered(torch.from_numpy(gold_N)))
    found = classes(confusion(predictions, task), task)
    precision, recall, f1, rows = precision_recall_fscore_support(
        gold_N, answers_N, labels=range(5), zero_division=np.nan
    )
    for i, each in enumerate(found):
        for mine, theirs in ((each.precision, precision[i]), (each.recall, recall[i])):
            assert (mine is None) == np.isnan(theirs)
            assert mine is None or mine == pytest.approx(theirs)
        assert each.rows == rows[i]
    assert [each.f1 for each in found[:4]] == pytest.approx(f1[:4].tolist())
    assert (found[3].f1, found[3].precision, found[4].f1) == (0.0, None, None)
    macro = task.score(predictions)["macro_f1"]
    assert macro == pytest.approx(f1_score(gold_N, answers_N, average="macro"))
    assert macro == pytest.approx(np.mean([each.f1 for each in found if each.f1 is not None]))
    wrong = answers_N[(gold_N == 3)]
    most = int(np.bincount(wrong).argmax())
    assert (found[3].confused_with, found[3].confused_rows) == (
        "abcde"[most],
        (wrong == most).sum(),
    )


def test_the_baselines_answers_are_those_of_the_one_that_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its best seed's, as the record's score is, and not those of the student's best seed."""
    data, task = tiny.answered(torch.tensor([0, 1, 1, 0])), Classification(["no", "yes"])
    wrong, right = (np.eye(2, dtype=np.float32)[rows] for rows in ([1, 1, 0, 1], [0, 1, 1, 0]))
    first, second = (SimpleNamespace(seed=i, scores_NK=s) for i, s in enumerate((wrong, right)))
    outcome = SimpleNamespace(
        setup=SimpleNamespace(task=task, splits=SimpleNamespace(reported=None)),
        teacher_scores_NK=wrong, teacher_reported=data, reported=data,
        best=SimpleNamespace(seed=0, scores_NK=wrong), baselines=[first, second],
        best_baseline=second,
    )  # fmt: skip
    held: dict[str, Predictions] = {}
    monkeypatch.setattr(reported, "write_predictions", lambda *given: held.update(given[-1]))
    reported.write_distilled(outcome, {}, tmp_path)  # pyright: ignore
    assert held["baseline"].answers_N.tolist() == [0, 1, 1, 0]
    outcome.best_baseline, outcome.baselines = None, []
    held.clear()
    reported.write_distilled(outcome, {}, tmp_path)  # pyright: ignore
    assert [*held] == ["teacher", "student"]
