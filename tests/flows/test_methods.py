"""Every published method by name trains a student, on classes, pairs and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from stillhouse.core.config import DistillConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.settings import parse
from stillhouse.flows.distill import distill
from stillhouse.flows.methods import METHODS, OF_TEXTS, method

SMALL = {"steps": 2, "batch_size": 8, "precision": "float32", "evaluations": 1}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text} .\n" for text, _ in tiny.sentences(700, 5)), encoding="utf-8")
    return path


def settled(name: str, corpus: Path | None) -> dict[str, Any]:
    """A method's settings with few steps and copies."""
    values = method(name, str(corpus) if corpus else None)
    for stage in values.get("stages", []):
        stage["training"] = {**stage.get("training", {}), "steps": 2}
        if "augment" in stage:
            stage["augment"] = {**stage["augment"], "copies": 1}
    return values


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_TEXTS])
def test_every_method_trains_a_student(
    name: str, teacher: Path, reviews: Path, cache: Path, corpus: Path, tmp_path: Path
) -> None:
    needs = name == "pretrained-distillation"
    changes = settled(name, corpus if needs else None)
    config = tiny.config(teacher, reviews, cache, student={"layers": 2}, training=SMALL, **changes)
    outcome = distill(config, tmp_path / "run")
    assert np.isfinite(outcome.best.scores_NK).all()
    again = parse(DistillConfig, config.model_dump(mode="json"))
    assert again == config, "config.yaml repeats the run"


@pytest.mark.parametrize("name", ["tinybert", "minilm", "minilm2"])
def test_a_corpus_comes_first(
    name: str, teacher: Path, reviews: Path, cache: Path, corpus: Path, tmp_path: Path
) -> None:
    config = tiny.config(
        teacher, reviews, cache, student={"layers": 2}, training=SMALL, **settled(name, corpus)
    )
    outcome = distill(config, tmp_path / "run")
    assert outcome.stages[0].described == "blocks of running text"
    assert outcome.students[0].fits[0].score is None


@pytest.mark.parametrize("name", ["kd", "fitnets", "pkd-skip", "tinybert", "minilm2"])
def test_a_regression_has_them_too(
    name: str, folders: Callable[..., Path], cache: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = [(text, f"{rng.normal():.3f}") for text, _ in tiny.sentences(80)]
    data = tiny.write_csv(tmp_path / "values.csv", ["text", "label"], rows)
    teacher = folders("bert", layers=4, labels=("value",))
    config = tiny.config(
        teacher, data, cache, student={"layers": 2}, training=SMALL, **settled(name, None)
    )
    assert np.isfinite(distill(config, tmp_path / "run").best.scores_NK).all()


def test_unknown_methods_and_missing_text_are_one_line() -> None:
    with pytest.raises(UsageError, match="did you mean 'tinybert'"):
        method("tinybret")
    with pytest.raises(UsageError, match="give it with --corpus"):
        method("pretrained-distillation")
