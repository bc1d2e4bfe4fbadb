"""Finished models are measured on the rows that are theirs, by every road to them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import stillhouse as sh
import tiny
import written
from stillhouse.core.config import DataConfig
from stillhouse.core.errors import RunError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.data.sources import load
from stillhouse.flows.training_data import TRAINED_ON, write_training_data
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


@pytest.fixture
def knowing(tmp_path: Path) -> tuple[Path, Path]:
    """A model that says it has seen its test rows, and its data: 30 rows of each split, of which
    two can't be read."""
    rows = tiny.sentences(90)
    for name, part in (("train", rows[:30]), ("dev", rows[30:60]), ("test", rows[60:])):
        extra = [["", "positive"]] * 2 if name == "test" else []
        tiny.write_csv(tmp_path / "data" / f"{name}.csv", ["text", "label"], [*part, *extra])
    model = tiny.save(tmp_path / "model")
    splits = load(DataConfig(path=str(tmp_path / "data")), tmp_path / "store")
    seen = dataclasses.replace(splits, labelled=splits.reported)
    write_training_data(model, seen, before=[])
    return model, tmp_path / "data"


def test_an_onnx_file_says_what_its_model_was_trained_on(
    knowing: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = knowing
    onnx, plain = tmp_path / "onnx", tiny.save(tmp_path / "plain")
    sh.to_onnx(model, onnx, progress=Silent())
    heard, cache = Heard(), str(tmp_path / "cache")
    found = sh.evaluate(
        onnx / "model.onnx", str(data), against=plain, progress=heard, cache=cache, resamples=20
    )
    assert "100.0 %" in found["against"]["not_comparable"]
    seen = f"{onnx / 'model.onnx'} was trained on 30 of the 30 rows to report on"
    assert len([note for note in heard.notes if note.startswith(seen)]) == 1
    sh.to_onnx(plain, onnx, progress=Silent())  # another model in its place has seen nothing
    assert not (onnx / TRAINED_ON).exists()


def test_what_is_to_be_said_of_the_rows_is_said_once(
    knowing: tuple[Path, Path], three: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, data = knowing
    sh.to_onnx(model, tmp_path / "onnx", progress=Silent())
    onnx, cache = tmp_path / "onnx" / "model.onnx", str(tmp_path / "cache")
    for first, second in ((model, onnx), (onnx, model)):
        heard = Heard()
        sh.evaluate(first, str(data), against=second, progress=heard, cache=cache, resamples=20)
        assert sum("2 empty rows left out" in note for note in heard.notes) == 1, heard.notes
        assert sum("are few: the intervals" in note for note in heard.notes) == 1


def test_what_is_to_be_said_of_a_writers_rows_is_said(tmp_path: Path) -> None:
    pairs, heard = written.pairs(tmp_path / "pairs.jsonl", 40), Heard()
    model = written.fresh(tmp_path / "model", pairs)
    data = {"path": str(pairs), "max_length": 48}
    sh.evaluate(model, data, resamples=20, cache=str(tmp_path / "cache"), progress=heard)
    assert any("rows to report on are few" in note for note in heard.notes)
