"""A run says which of its test data the models it starts from have seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from stillhouse.core.config import CorpusConfig, DataConfig, DistillConfig
from stillhouse.core.errors import DataError
from stillhouse.core.settings import parse
from stillhouse.data.corpus import Corpus, load_corpus
from stillhouse.data.sources import Splits, load
from stillhouse.flows.distill import starts
from stillhouse.flows.training_data import (
    TRAINED_ON,
    seen_before,
    seen_share,
    write_training_data,
)

ROWS = tiny.sentences(150)


def rows(place: Path, train: slice, dev: slice, test: slice) -> Splits:
    for name, part in (("train", train), ("dev", dev), ("test", test)):
        tiny.write_csv(place / "data" / f"{name}.csv", ["text", "label"], ROWS[part])
    return load(DataConfig(path=str(place / "data")), place / "store")


def lines(place: Path, **parts: slice) -> Corpus:
    (place / "text").mkdir(parents=True)
    for name, part in parts.items():
        text = "\n".join(text.upper() for text, _ in ROWS[part]) + "\n"
        (place / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
    config = CorpusConfig(path=str(place / "text"), length=8)
    return load_corpus(config, tiny.tokenizer(), place, max_length=64)


def teacher(place: Path, data: Splits | Corpus, *before: Path, unlabelled: bool = False) -> Path:
    tiny.save(place, layers=1)
    write_training_data(place, data, before=map(str, before), unlabelled=unlabelled)
    return place


def told(data: Splits | Corpus, *teachers: Path) -> list[str]:
    return seen_before([(f"teacher {each.name}", str(each)) for each in teachers], data)


@pytest.fixture
def mine(tmp_path: Path) -> Splits:
    return rows(tmp_path / "mine", slice(40, 80), slice(30, 40), slice(30))


def test_every_teacher_that_saw_test_rows_is_named(tmp_path: Path, mine: Splits) -> None:
    other = slice(100, 120), slice(120, 130), slice(130, 150)
    clean = teacher(tmp_path / "clean", rows(tmp_path / "a", *other))
    seen = teacher(tmp_path / "seen", rows(tmp_path / "b", slice(20, 60), *other[1:]))
    chose = teacher(tmp_path / "chose", rows(tmp_path / "c", other[0], slice(5), other[2]))
    plain = tmp_path / "plain"
    tiny.save(plain, layers=1)
    assert told(mine, clean, plain) == []
    shares = [seen_share([("it", str(each))], mine) for each in (clean, plain, seen, chose)]
    assert shares == pytest.approx([0.0, 0.0, 10 / 30, 0.0])
    assert seen_share([("a", str(clean)), ("b", str(seen))], mine) == pytest.approx(1 / 3)
    assert told(mine, clean, seen, chose) == [
        "teacher seen was trained on 10 of the 30 rows to report on: scores on them are flattered",
        "teacher chose chose its checkpoint on 5 of the 30 rows to report on: scores on them are "
        "somewhat flattered",
    ]


def test_a_model_has_seen_what_the_models_it_comes_from_have(tmp_path: Path, mine: Splits) -> None:
    other = slice(100, 120), slice(120, 130), slice(130, 150)
    seen = teacher(tmp_path / "seen", rows(tmp_path / "b", slice(20, 60), *other[1:]))
    student = teacher(tmp_path / "student", rows(tmp_path / "a", *other), seen)
    again = teacher(tmp_path / "again", rows(tmp_path / "d", *other), student)
    assert "trained on 10 of the 30 rows" in told(mine, again)[0]


def test_rows_that_only_a_teacher_answered_were_trained_on(tmp_path: Path, mine: Splits) -> None:
    labelled = [(text, label if i > 4 else "") for i, (text, label) in enumerate(ROWS[20:60])]
    place = tmp_path / "b"
    tiny.write_csv(place / "data" / "train.csv", ["text", "label"], labelled)
    tiny.write_csv(place / "data" / "dev.csv", ["text", "label"], ROWS[100:120])
    data = load(DataConfig(path=str(place / "data"), held_out=0.0), place / "store")
    assert "trained on 5 of" in told(mine, teacher(tmp_path / "labels", data))[0]
    assert "trained on 10 of" in told(mine, teacher(tmp_path / "all", data, unlabelled=True))[0]


def test_lines_of_running_text_are_told_too(tmp_path: Path, mine: Splits) -> None:
    """To a run on running text, and to one on rows."""
    theirs = lines(tmp_path / "a", train=slice(60), valid=slice(60, 70), test=slice(100, 150))
    seen = teacher(tmp_path / "seen", theirs)
    text = lines(tmp_path / "b", train=slice(100, 150), valid=slice(80, 90), test=slice(40, 80))
    assert told(text, seen) == [
        "teacher seen was trained on 20 of the 40 lines to report on: scores on them are flattered",
        "teacher seen chose its checkpoint on 10 of the 40 lines to report on: scores on them are "
        "somewhat flattered",
    ]
    assert "trained on 30 of the 30 rows" in told(mine, seen)[0]
    assert told(theirs, teacher(tmp_path / "own", theirs)) == []


def test_a_damaged_file_is_one_line(tmp_path: Path, mine: Splits) -> None:
    place = teacher(tmp_path / "teacher", mine)
    for damage in (b"", b"no array", np.zeros(3).tobytes()):
        (place / TRAINED_ON).write_bytes(damage)
        with pytest.raises(DataError, match="trained-on") as caught:
            told(mine, place)
        assert "\n" not in str(caught.value)
    np.save(place / TRAINED_ON, np.zeros((3, 3)))
    with pytest.raises(DataError, match="holds no keys of rows"):
        told(mine, place)


def test_a_run_asks_every_model_that_it_starts_from() -> None:
    term = {"kind": "soft"}
    several = {
        "task": "seq2seq", "data": {"path": "x"}, "objective": [term],
        "teachers": [{"model": "one"}, {"model": "two"}], "student": {"model": "start"},
    }  # fmt: skip
    assert starts(parse(DistillConfig, several)) == [
        ("the teacher one", "one"),
        ("the teacher two", "two"),
        ("start, which the student is made of,", "start"),
    ]
    stage = {"name": "text", "objective": [term], "corpus": {"path": "t.txt"}, "teacher": "three"}
    staged = {"teacher": "one", "data": {"path": "x"}, "stages": [stage]}
    assert [name for _, name in starts(parse(DistillConfig, staged))] == ["one", "three"]
