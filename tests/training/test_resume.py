"""A training that stopped anywhere ends bit for bit where an uninterrupted one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from stillhouse.core.config import DataConfig, TrainingConfig
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Dense, LoopState
from stillhouse.data.encoding import encode
from stillhouse.data.sources import load
from stillhouse.tasks.base import Dataset
from stillhouse.tasks.classification import Classification
from stillhouse.training.loop import FitResult, fit
from stillhouse.training.metrics import MetricsLog
from stillhouse.training.objective import build
from stillhouse.training.steps import TextForward


class Pulled(Exception):
    """The plug was."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    store = tmp_path_factory.mktemp("store")
    path = tiny.reviews(store / "reviews.csv", 60)
    pool = load(DataConfig(path=str(path)), store).train
    encoded = encode(pool, tiny.tokenizer(), store, max_length=32)
    return Dataset(encoded, pool.keys_N2, Classification(tiny.SENTIMENT).gold(pool.labels))


Weights = dict[str, Tensor]


def train(
    data: Dataset,
    out: Path,
    callback: Callable[[LoopState], None] = lambda state: None,
    **settings: Any,
) -> tuple[FitResult, Weights, list[dict[str, Any]]]:
    """One training in the folder `out`: its facts, its weights, its log."""
    config = TrainingConfig(
        **{
            "steps": 12,
            "batch_size": 8,
            "accumulation": 2,
            "lr": 3e-3,
            "evaluations": 6,
            "checkpoint_s": 1e-9,
            "log_every": 2,
            "precision": "float32",
            **settings,
        }
    )
    out.mkdir(exist_ok=True)
    objective = build(
        [tiny.soft(temperature=2.0), TermConfig(kind="gold")],
        choices=2,
        signal=Dense,
        has_gold=True,
    )
    teacher_NK = 3 * torch.randn(len(data), 2, generator=torch.Generator().manual_seed(1))
    model = tiny.model(dropout=0.2, seed=3)

    def evaluate(now: nn.Module) -> float:
        """Rises, falls, rises: as the sum of a few weights happens to."""
        return float(now.state_dict()["classifier.weight"].sum().sin())

    result = fit(
        model,
        data,
        objective,
        tiny.Fixed(teacher_NK),
        config,
        seed=5,
        forward=TextForward(config),
        evaluate=evaluate,
        log=MetricsLog(out / "metrics.jsonl", run="student", seed=5),
        resume=out / "half.safetensors",
        callbacks=[callback],
    )
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = [{k: v for k, v in json.loads(line).items() if k != "examples_per_s"} for line in lines]
    return replace(result, seconds=0.0), dict(model.state_dict()), log


def pull_at(step: int) -> Callable[[LoopState], None]:
    def callback(state: LoopState) -> None:
        if state.step == step:
            raise Pulled

    return callback


def same(one: tuple[FitResult, Weights, Any], other: tuple[FitResult, Weights, Any]) -> bool:
    equal = all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    return equal and one[0] == other[0] and one[2] == other[2]


@pytest.mark.parametrize("embeddings", ["rows", "dense", "frozen"])
@pytest.mark.parametrize("settings", [{"select": "last"}, {"patience": 2}], ids=["last", "best"])
def test_resumed_equals_uninterrupted(
    data: Dataset, tmp_path: Path, embeddings: str, settings: dict[str, Any]
) -> None:
    settings = {**settings, "embeddings": embeddings}
    whole = train(data, tmp_path / "whole", **settings)
    for step in (1, 4, 6):
        out = tmp_path / f"at-{step}"
        with pytest.raises(Pulled):
            train(data, out, pull_at(step), **settings)
        assert same(train(data, out, **settings), whole), step


def test_a_run_may_stop_many_times(data: Dataset, tmp_path: Path) -> None:
    whole = train(data, tmp_path / "whole")
    for step in (2, 3, 7, 7, 12):
        with pytest.raises(Pulled):
            train(data, tmp_path / "often", pull_at(step))
    assert same(train(data, tmp_path / "often"), whole)


def test_a_checkpoint_older_than_the_log_cuts_the_log(data: Dataset, tmp_path: Path) -> None:
    whole = train(data, tmp_path / "whole")
    out = tmp_path / "old"

    def keep(state: LoopState) -> None:
        if state.step == 5:
            shutil.copy(out / "half.safetensors", out / "kept")
        if state.step == 9:
            raise Pulled

    with pytest.raises(Pulled):
        train(data, out, keep)
    (out / "kept").replace(out / "half.safetensors")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"run": "student", "seed": 5, "st')  # torn as it was written
    assert same(train(data, out), whole)


def test_a_finished_checkpoint_trains_no_more(data: Dataset, tmp_path: Path) -> None:
    whole = train(data, tmp_path)
    seen: list[int] = []
    assert same(train(data, tmp_path, lambda state: seen.append(state.step)), whole)
    assert seen == []


def test_the_log_keeps_other_runs_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    mine, other = MetricsLog(path, run="student", seed=1), MetricsLog(path, run="student", seed=0)
    for step in (1, 2, 3):
        mine.write(step=step, loss=0.5)
        other.write(step=step, loss=0.5)
    mine.cut(1)
    left = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["seed"], row["step"]) for row in left] == [(1, 1), (0, 1), (0, 2), (0, 3)]
