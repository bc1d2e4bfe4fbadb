"""What auto becomes in a run: said, written down, part of the caches' keys, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny
from stillhouse.core import precision as precisions
from stillhouse.core.machine import Machine
from stillhouse.core.progress import Silent
from stillhouse.flows.distill import distill, label_only
from stillhouse.flows.finetune import finetune
from stillhouse.flows.stages import Trained

AUTO = {"training": {"precision": "auto"}, "label": {"precision": "auto"}}


class Killed(Exception):
    pass


class Notes(Silent):
    """Keeps what is said; ends the run when `ends` is about to begin."""

    def __init__(self, ends: str | None = None) -> None:
        self.said: list[str] = []
        self.ends = ends

    def note(self, text: str) -> None:
        self.said.append(text)

    def stage(self, title, total, unit):
        if self.ends and self.ends in title:
            raise Killed
        return super().stage(title, total, unit)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    """`on("bf16")`: from here, the machine is one where that is faster."""
    monkeypatch.delenv("STILLHOUSE_PRECISION")

    def choose(faster: str) -> None:
        found = Machine("cpu", 1, "AMX" if faster == "bf16" else None, int8=True)
        vars(found)["bf16_ratio"] = 0.25 if faster == "bf16" else 5.0
        monkeypatch.setattr(precisions, "machine", lambda device=None: found)

    return choose


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"{name}.safetensors")


@pytest.mark.parametrize("faster", ["bf16", "float32"])
def test_auto_trains_as_if_the_faster_one_were_asked_for(on, distil, tmp_path, faster):
    on(faster)
    notes = Notes()
    distill(distil(**AUTO), tmp_path / "auto", progress=notes)
    asked = {"training": {"precision": faster}, "label": {"precision": faster}}
    distill(distil(**asked), tmp_path / "asked")
    mine, theirs = (weights(tmp_path / run, "student-0") for run in ("auto", "asked"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [n for n in notes.said if n.startswith(f"precision auto is {faster}: ")]
    manifest = json.loads((tmp_path / "auto" / "manifest.json").read_text())
    assert manifest["auto"] == {"precision": faster}
    config = yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())
    assert config["training"]["precision"] == "auto", "repeated elsewhere, it is asked anew"


def test_the_two_precisions_are_told_apart_at_all(on, distil, tmp_path):
    for faster in ("bf16", "float32"):
        on(faster)
        distill(distil(**AUTO), tmp_path / faster)
    mine, theirs = (weights(tmp_path / run, "student-0") for run in ("bf16", "float32"))
    assert not all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_killed_run_goes_on_in_its_precision_on_another_machine(on, distil, tmp_path):
    config = distil(evaluation={"seeds": [0, 1]}, **AUTO)
    on("bf16")
    distill(config, tmp_path / "whole")
    with pytest.raises(Killed):
        distill(config, tmp_path / "killed", progress=Notes("seed 1"))
    on("float32")
    notes = Notes()
    distill(config, tmp_path / "killed", progress=notes)
    mine, theirs = (weights(tmp_path / run, "student-1") for run in ("killed", "whole"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "killed" / "manifest.json").read_text())["auto"] == {
        "precision": "bf16"
    }
    (said,) = [n for n in notes.said if n.startswith("precision bf16, as this run began")]
    assert "5 times as long" in said


def test_the_caches_know_what_the_teacher_was_asked_in(on, distil, tmp_path):
    config = distil(**AUTO, cache=str(tmp_path / "cache"))
    for faster, caches in (("bf16", 1), ("float32", 2), ("bf16", 2)):
        on(faster)
        store, _ = label_only(config)
        assert len(list(store.glob("answers/*/"))) == caches


def test_finetune_settles_it_too(on, reviews, cache, folders, tmp_path):
    on("bf16")
    from stillhouse.core.config import FinetuneConfig
    from stillhouse.core.settings import parse

    values = tiny.settings(folders(), reviews, cache)
    given = {"model": values["teacher"], "data": values["data"], "cache": str(cache)}
    given["training"] = {**values["training"], "precision": "auto"}
    notes = Notes()
    done = finetune(parse(FinetuneConfig, given), tmp_path / "run", progress=notes)
    assert isinstance(done.trained, Trained)
    assert done.config.training.precision == "bf16"
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())["auto"]
    assert facts["precision"] == "bf16"
    assert any(note.startswith("precision auto is bf16") for note in notes.said)
