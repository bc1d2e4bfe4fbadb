"""Pairs with models that have no second token type: nothing asks them for it."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from stillhouse.core.progress import Silent
from stillhouse.measure import evaluate, to_onnx
from stillhouse.models.load import load_tokenizer
from stillhouse.runs import run_distill


@pytest.fixture
def one_type(tmp_path: Path) -> Path:
    """A BERT of one token type, whose tokenizer gives two."""
    folder = tmp_path / "one"
    tiny.model(layers=2, type_vocab_size=1).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_pairs_are_distilled_and_measured_with_one_token_type(
    one_type: Path, cache: Path, tmp_path: Path
) -> None:
    rows = [(text, "the film", label) for text, label in tiny.sentences(60)]
    pairs = tiny.write_csv(tmp_path / "pairs.csv", ["text", "pair", "label"], rows)
    run = run_distill(tiny.config(one_type, pairs, cache), tmp_path / "run", progress=Silent())
    assert run.record.student.flops
    student = tmp_path / "run" / "student"
    assert "token_type_ids" not in load_tokenizer(str(student)).model_input_names
    assert evaluate(one_type, {"path": str(pairs)}, cache=str(cache), progress=Silent())["rows"]


@pytest.mark.slow
def test_its_export_has_no_token_types(one_type: Path, tmp_path: Path) -> None:
    assert to_onnx(one_type, tmp_path / "onnx", progress=Silent())["max_difference"] < 1e-3
