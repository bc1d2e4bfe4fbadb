"""The speed benchmark runs, and both its sides train the same thing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tiny
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.flows.common import set_dropout
from stillhouse.training import objective as objectives

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "distill_speed.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    """The script as a module. Skipped without TextBrewer, whose source Python warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("textbrewer")
    spec = importlib.util.spec_from_file_location("distill_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def given(folders: Callable[..., Path], tmp_path: Path) -> list[str]:
    """--teacher and --data: a BERT of six layers, and splits of a few rows."""
    for split, (count, seed) in {"train": (80, 0), "dev": (40, 1)}.items():
        rows = [{"text": t, "label": label} for t, label in tiny.sentences(count, seed)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return ["--teacher", str(folders("bert", layers=6)), "--data", str(tmp_path)]


def loaded(speed: ModuleType, given: list[str], store: Path, *, rows: int, epochs: int) -> Any:
    named = dict(zip(("teacher", "data"), given[1::2], strict=True))
    return speed.load(
        argparse.Namespace(**named, rows=rows, epochs=epochs, seed=0), store, precision="float32"
    )


def test_the_benchmark_measures_every_contender(
    speed: ModuleType, given: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "speed.json"
    speed.main([*given, "--rows", "40", "--epochs", "1", "--repeats", "2", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found["jobs"]) == set(speed.contenders(found["precision"]))
    for runs in found["jobs"].values():
        assert len(runs["seconds"]) == len(runs["accuracy"]) == 2
        assert runs["examples_per_s"] > 0
    assert found["jobs"]["textbrewer plain"]["times_plain"] == 1.0
    assert found["jobs"][found["best_textbrewer"]]["times_best"] == 1.0
    assert found["epoch_times_gold"] > 0


def test_the_profile_names_operations(
    speed: ModuleType, given: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    speed.main([*given, "--rows", "40", "--profile", "2"])
    said = capfd.readouterr().out
    assert "aten::" in said
    alone, whole = re.findall(r"products alone: (\S+) of (\S+) ms a step", said)[0]
    assert 0 < float(alone) < float(whole)


@pytest.mark.parametrize(
    ("precision", "added"),
    [("bf16", ["fused", "bf16", "cached", "grouped"]), ("float32", ["fused", "cached", "grouped"])],
)
def test_the_best_of_textbrewer_has_bf16_where_ours_has_it(
    speed: ModuleType, precision: str, added: list[str]
) -> None:
    options = {
        name: contender.keywords["options"]
        for name, contender in speed.contenders(precision).items()
        if name.startswith("textbrewer ") and name != "textbrewer plain"
    }
    assert list(options.values()) == [added[:count] for count in range(1, len(added) + 1)]


def test_more_rows_than_there_are_are_refused(speed: ModuleType, given: list[str]) -> None:
    with pytest.raises(SystemExit, match="--rows 4000"):
        speed.main([*given, "--rows", "4000"])


def test_both_losses_have_one_gradient(speed: ModuleType) -> None:
    from textbrewer.losses import kd_ce_loss

    draw = torch.Generator().manual_seed(0)
    student_NK, teacher_NK = (torch.randn(7, 3, generator=draw).mul_(3) for _ in range(2))
    student_NK.requires_grad_(True)
    objective = objectives.build([speed.SOFT], choices=3, signal=Dense, has_gold=False)
    batch = Batch({}, torch.arange(7).numpy())
    found = objective.terms[0](StudentOutput(student_NK), Dense(teacher_NK), batch, 0.0)
    (mine,) = torch.autograd.grad(found.sum / found.count, student_NK)
    loss = kd_ce_loss(student_NK, teacher_NK, speed.KD_CE["temperature"])
    (theirs,) = torch.autograd.grad(loss * speed.KD_CE["kd_loss_weight"], student_NK)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("options", [[], ["fused"], ["fused", "cached"]], ids=str)
def test_without_randomness_both_sides_train_the_same_student(
    speed: ModuleType, given: list[str], tmp_path: Path, options: list[str]
) -> None:
    """One batch an epoch, no dropout, float32: same schedule, optimizer, clipping and loss."""
    bench = loaded(speed, given, tmp_path / "store", rows=32, epochs=6)
    bench = replace(bench, training=bench.training.model_copy(update={"lr": 1e-3}))
    set_dropout(bench.student, 0.0)
    data = bench.dataset(bench.pool, tmp_path / "store")
    before = score_rows(bench.student, data)
    _, mine = speed.timed(bench, speed.contenders("float32")["stillhouse dense"], 0)
    _, theirs = speed.timed(bench, partial(speed.theirs, options=options), 1)
    moved = abs(score_rows(mine, data) - before).max()
    apart = abs(score_rows(mine, data) - score_rows(theirs, data)).max()
    assert moved > 0.1
    assert apart < 1e-3 * moved
