"""The functions a notebook calls: what may be given, and what is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import stillhouse as sh
import tiny
from stillhouse.core.errors import StillhouseError

QUICK: dict[str, Any] = {
    "student": {"layers": 1}, "seeds": 1, "baseline": False, "training": {"steps": 3},
    "export": {"onnx": False}, "evaluation": {"efficiency": False, "resamples": 20},
}  # fmt: skip


def test_a_frame_is_distilled_as_its_file_is(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    frame, cache = pd.read_csv(reviews), str(tmp_path / "cache")
    mine = sh.distill(teacher, frame, out=tmp_path / "frame", cache=cache, **QUICK)
    theirs = sh.distill(teacher, reviews, out=tmp_path / "file", cache=cache, **QUICK)
    one, other = (tmp_path / out / "student" / "model.safetensors" for out in ("frame", "file"))
    assert one.read_bytes() == other.read_bytes()
    assert mine.record.student.score == theirs.record.student.score
    again = sh.distill(teacher, frame.copy(), out=tmp_path / "frame", cache=cache, **QUICK)
    assert again.record == mine.record
    with pytest.raises(StillhouseError, match=r"holds another run .its data\.path differ"):
        sh.distill(teacher, frame.head(100), out=tmp_path / "frame", cache=cache, **QUICK)


def test_a_frame_is_evaluated_as_its_file_is(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    cache = str(tmp_path)
    found = sh.evaluate(teacher, pd.read_csv(reviews), cache=cache)
    assert found == sh.evaluate(teacher, reviews, cache=cache)


def _predict(texts: list[str]) -> list[str]:
    return texts


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "None": (lambda: None, "is None: give a model's folder or a hub name"),
    "a function": (lambda: _predict, "is the function _predict: give a model's folder"),
    "a number": (lambda: 3, "is an int: give a model's folder"),
    "a list": (lambda: ["m"], "is a list: give a model's folder"),
    "a model": (
        lambda: tiny.model("bert", layers=1),
        r"is a BertForSequenceClassification: models in memory are not supported yet, .*save_pret",
    ),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_teacher_that_is_no_path_is_refused_by_its_name(wrong: str, tmp_path: Path) -> None:
    make, says = WRONG[wrong]
    given: Any = make()
    out, rows = tmp_path / "out", [{"text": "a", "label": "b"}]
    settings = {"cache": str(tmp_path / "cache")}
    calls: dict[str, Callable[[], object]] = {
        "teacher": lambda: sh.distill(given, rows, out=out, **settings),
        "model": lambda: sh.finetune(given, rows, out=out, **settings),
        "victim": lambda: sh.audit(given, rows, thief="m", out=out, **settings),
        "thief": lambda: sh.audit("m", rows, thief=given or 1, out=out, **settings),
    }
    for what, call in calls.items():
        with pytest.raises(StillhouseError, match=says.split(":")[0] if what != "thief" else what):
            call()
    for call in (
        lambda: unwrap(sh.evaluate)(given, rows, cache=settings["cache"]),  # types unchecked
        lambda: unwrap(sh.bench)([given]),
        lambda: unwrap(sh.to_onnx)(given, out),
        lambda: sh.check(given, rows, **settings),
        lambda: sh.label(given, rows, out=out),
    ):
        with pytest.raises(StillhouseError, match=says) as caught:
            call()
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
    assert not out.exists()


def test_an_out_that_is_no_path_is_refused(teacher: Path, reviews: Path) -> None:
    nothing: Any = None
    with pytest.raises(StillhouseError, match="out is None: give a path"):
        sh.distill(teacher, reviews, out=nothing)
