"""Finished models are measured on the rows that are theirs, by every road to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stillhouse as sh
import tiny
from stillhouse.core.errors import RunError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.guard import learning
from stillhouse.guard.settings import LearnConfig
from stillhouse.prediction import reported

THREE = ["-1", "0", "1"]


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model of the classes -1, 0 and 1, its ONNX file, and rows of these."""
    root = tmp_path_factory.mktemp("three")
    model = tiny.save(root / "model", labels=THREE)
    sh.to_onnx(model, root / "onnx", progress=Silent())
    rows = [(text, THREE[i % 3]) for i, (text, _) in enumerate(tiny.sentences(240))]
    data = tiny.write_csv(root / "rows.csv", ["text", "label"], rows)
    return model, root / "onnx" / "model.onnx", data


def test_a_class_minus_one_is_one_by_every_road(
    three: tuple[Path, Path, Path], tmp_path: Path, in_float32: None
) -> None:
    """Its rows count in a folder's score, in an ONNX file's, and stand among the predictions."""
    model, onnx, data = three
    cache, told = str(tmp_path / "cache"), tmp_path / "told.jsonl"
    mine = sh.evaluate(model, data, against=onnx, predictions=told, resamples=20, cache=cache)
    theirs = sh.evaluate(onnx, data, resamples=20, cache=cache)
    assert (theirs["rows"], theirs["accuracy"]) == (mine["rows"], mine["accuracy"])
    assert mine["against"]["agreement"] == 1
    rows = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == mine["rows"]
    lines = data.read_text(encoding="utf-8").splitlines()
    assert [f"{row['text']},{row['gold']}" for row in rows] == [lines[r["line"] - 1] for r in rows]
    assert {row["gold"] for row in rows} == {*THREE}
    assert sum(row["gold"] == row["model"] for row in rows) / len(rows) == mine["accuracy"]


def test_rows_are_varied_and_learnt_from_whose_class_the_model_has(
    three: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, data = three
    cache = str(tmp_path / "cache")
    varied = []
    monkeypatch.setattr("stillhouse.api.augmented", lambda pool, *_, **__: varied.append(pool))
    monkeypatch.setattr("stillhouse.api.write_rows", lambda rows, out: 0)
    sh.augment(data, teacher=model, out=tmp_path / "rows.jsonl", cache=cache)
    assert {*varied[0].labels} == {*THREE}

    def rows(pools: list, most: int | None, seed: int) -> list:
        varied.append(pools[0])
        return []

    monkeypatch.setattr(learning, "_rows", rows)
    values = {"model": str(model), "data": {"path": str(data)}, "cache": cache, "corpus": str(data)}
    with pytest.raises(Exception, match="too few"):
        learning.learn_check(parse(LearnConfig, values), tmp_path / "check")
    assert {*varied[1].labels} == {*THREE}


def test_predictions_of_other_rows_are_not_paired(
    three: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, data = three
    asked = reported._are_asked
    monkeypatch.setattr(reported, "_are_asked", lambda *given: asked(*given)[1:])
    with pytest.raises(RunError, match=r"is not written: of \d+ test rows model \d+ were answered"):
        sh.evaluate(
            model, data, predictions=tmp_path / "told.jsonl", cache=str(tmp_path / "cache"),
            resamples=20,
        )  # fmt: skip
    assert not (tmp_path / "told.jsonl").exists()
