"""What takes long stands in a stage, and each stage ends where it said it would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import stillhouse as sh
import tiny
import written
from counting import Counting
from stillhouse.core.settings import parse
from stillhouse.runs import run_distill
from stillhouse.tickets.config import RemoveConfig, TicketsConfig
from stillhouse.tickets.remove import remove
from stillhouse.tickets.runs import run_tickets


@pytest.fixture
def told() -> Counting:
    return Counting()


def test_a_distillation(distil: Callable[..., object], tmp_path: Path, told: Counting) -> None:
    config = distil(cache=str(tmp_path / "cache"))
    run = run_distill(config, tmp_path / "run", progress=told)  # pyright: ignore
    assert told.unfinished == []
    assert told.titles == [
        "reading training rows", "asking the teacher",
        "reading held-out rows", "reading reported rows", "training student, seed 0",
        "answering reported rows, student, seed 0", "answering reported rows, teacher",
        "measuring cost", "comparing",
    ]  # fmt: skip
    rows = run.record.data
    counts = {title: done for title, _, done in told.found}
    assert counts["answering reported rows, teacher"] == rows.reported
    assert counts["answering reported rows, student, seed 0"] == rows.reported


def test_models_are_compared(
    teacher: Path, folders: Callable[..., Path], reviews: Path, tmp_path: Path, told: Counting
) -> None:
    other = folders("bert", seed=5)
    data = {"path": str(reviews), "max_length": 32}
    found = sh.evaluate(
        teacher, data, against=other, resamples=20, cache=str(tmp_path), progress=told
    )
    assert told.unfinished == []
    assert ("comparing", 1, 1) in told.found
    for model in (teacher, other):
        rows = found["rows"]
        assert (f"answering reported rows, {model}", rows, rows) in told.found


def test_texts_are_written(tmp_path: Path, told: Counting) -> None:
    pairs = written.pairs(tmp_path / "pairs.jsonl", 40)
    model = written.fresh(tmp_path / "model", pairs)
    data = {"path": str(pairs), "max_length": 48}
    found = sh.evaluate(model, data, resamples=20, cache=str(tmp_path / "cache"), progress=told)
    assert told.unfinished == []
    assert (f"answering reported rows, {model}", found["rows"], found["rows"]) in told.found


@pytest.mark.parametrize("score", ["gradient", "fisher"])
def test_weights_are_scored(score: str, tmp_path: Path, told: Counting) -> None:
    values = {
        "model": str(tiny.save(tmp_path / "model")),
        "data": {"path": str(tiny.reviews(tmp_path / "reviews.csv")), "max_length": 32},
        "training": {"steps": 3, "batch_size": 16, "precision": "float32"},
        "prune": {"rounds": 1, "score": score, "score_rows": 20},
        "evaluation": {"seeds": [0], "resamples": 20, "controls": []},
        "cache": str(tmp_path / "cache"),
    }
    run_tickets(parse(TicketsConfig, values), tmp_path / "run", progress=told)
    assert told.unfinished == []
    assert ("scoring weights", 20, 20) in told.found
    assert told.titles[-1] == "comparing"


@pytest.mark.parametrize(
    ("asked", "title", "total"),
    [({"layers": 1}, "trying what goes", 5), ({"parameters": 0.7}, "trying what goes", None)],
)
def test_parts_are_scored_and_tried(
    asked: dict[str, object], title: str, total: int | None, tmp_path: Path, told: Counting
) -> None:
    from stillhouse.removal import prepared, rows_of

    values = {
        "model": str(tiny.save(tmp_path / "model", layers=3)),
        "data": {"path": str(tiny.reviews(tmp_path / "reviews.csv")), "max_length": 32},
        "score_rows": 40, "runtime": "torch", "cache": str(tmp_path / "cache"), **asked,
    }  # fmt: skip
    config = parse(RemoveConfig, values)
    setup = prepared(config, told)
    remove(config, setup.teacher, rows_of(setup, told), progress=told)
    assert told.unfinished == []
    counts = {title: done for title, _, done in told.found}
    assert counts["scoring heads and neurons"] == counts["reading activations"] == 40
    assert title in counts
    assert total is None or counts[title] == total
