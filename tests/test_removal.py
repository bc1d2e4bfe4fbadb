"""Removal and recovery as one run: cut, distilled, measured, gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from stillhouse.core.errors import ModelError, UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.models.load import load_classifier, resolve
from stillhouse.models.surgery import sizes
from stillhouse.removal import run_removal
from stillhouse.tickets.config import RemoveConfig

RECOVER = {
    "training": {"steps": 6, "batch_size": 16, "lr": 1e-3, "precision": "float32"},
    "label": {"precision": "float32", "check_rows": 8},
    "evaluation": {"seeds": [0], "resamples": 50, "efficiency": False},
    "export": {"onnx": False, "int8": False},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("removal")
    tiny.save(path / "model", layers=3)
    tiny.reviews(path / "reviews.csv")
    return path


def config(folder: Path, **changes: Any) -> RemoveConfig:
    values = {
        "model": str(folder / "model"),
        "data": {"path": str(folder / "reviews.csv"), "max_length": 32},
        "score_rows": 30,
        "layers": 2,
        "heads": 1,
        "cache": str(folder / "cache"),
        **changes,
    }
    return parse(RemoveConfig, values)


def test_a_cut_model_is_recovered_from_the_whole_one(folder: Path, tmp_path: Path) -> None:
    found = run_removal(config(folder), tmp_path / "run", recover=RECOVER, progress=Silent())
    assert found.run is not None
    stay = [each for each in found.removed.layers if each.heads]
    assert [(each.heads, each.of_heads, each.neurons) for each in stay] == [(1, 2, 64)] * 2
    assert len(found.removed.layers) == 3
    cut, student = (load_classifier(str(tmp_path / "run" / n)) for n in ("cut", "student"))
    assert sizes(cut) == sizes(student)
    moved = [n for n, t in cut.state_dict().items() if not torch.equal(t, student.state_dict()[n])]
    assert any("attention" in name for name in moved)
    record = found.run.record
    assert record.baseline is not None
    assert record.student.parameters == found.removed.parameters
    assert record.removed == found.removed
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What was cut out" in page
    assert "1 of 2" in page
    again = run_removal(config(folder), tmp_path / "run", recover=RECOVER, progress=Silent())
    assert again.run is not None
    assert again.run.record == record
    with pytest.raises(UsageError, match="another run"):
        run_removal(config(folder, layers=1), tmp_path / "run", recover=RECOVER, progress=Silent())


def test_it_can_be_left_at_the_cut(folder: Path, tmp_path: Path) -> None:
    found = run_removal(config(folder), tmp_path / "run", recover=None, progress=Silent())
    assert found.run is None
    held = json.loads((tmp_path / "run" / "cut" / "removal.json").read_text())
    assert held == found.removed.model_dump(mode="json")
    kept = json.loads((tmp_path / "run" / "cut" / "kept.json").read_text())
    assert [len(each["heads"]) for each in kept] == [1, 1]
    assert held["parameters"] < held["parameters_before"]
    assert resolve(str(tmp_path / "run")) == tmp_path / "run" / "cut"
    (tmp_path / "run" / "config.yaml").touch()  # a recovery has begun: its model is not there yet
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path / "run"))


def test_what_follows_from_the_removal_is_not_asked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the recovery's student follows"):
        run_removal(config(folder), tmp_path / "run", recover={"student": {}}, progress=Silent())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", ["save_model", "write_yaml", "told"])
def test_a_killed_removal_is_done_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(f"stillhouse.removal.{step}", stop)
        with pytest.raises(KeyboardInterrupt):
            run_removal(config(folder), tmp_path / "run", recover=None, progress=Silent())
    assert not (tmp_path / "run" / "cut").exists()
    (tmp_path / "run" / ".part-left").mkdir(parents=True)  # as a kill leaves it
    found = run_removal(config(folder), tmp_path / "run", recover=RECOVER, progress=Silent())
    assert found.run is not None


def test_changed_rows_are_noticed(folder: Path, tmp_path: Path) -> None:
    data = tiny.reviews(tmp_path / "rows.csv")
    asked = config(folder, data={"path": str(data), "max_length": 32})
    run_removal(asked, tmp_path / "run", recover=None, progress=Silent())
    with data.open("a", encoding="utf-8") as file:
        file.write("a wholly new row,positive\n")
    with pytest.raises(UsageError, match="changed"):
        run_removal(asked, tmp_path / "run", recover=None, progress=Silent())
