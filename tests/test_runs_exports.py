"""A run from its config to its folder, where an export is not to be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from families import zoo
from stillhouse.core.errors import RunError
from stillhouse.core.progress import Silent
from stillhouse.export import export_onnx
from stillhouse.runs import Run, run_distill


class Unexportable(nn.Module):
    """Its shape depends on what is in the tensor."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids[: int(input_ids.sum().item())].float()


def test_what_the_exporter_says_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="can't export Unexportable to ONNX: ") as caught:
        export_onnx(Unexportable(), {"input_ids": torch.ones(2, 4).long()}, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()
    shown = capfd.readouterr()
    assert "def forward" not in shown.out + shown.err, "its own notes are kept off the screen"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["longformer", "funnel"])  # not written; written, not running
def test_a_run_whose_export_fails_ends_with_its_record(
    family: str, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    teacher = zoo.save(tmp_path / family, family)
    shape = {"layers": None, "width": 16} if family == "funnel" else {"layers": 1}
    export = {"onnx": True, "int8": True}
    config = tiny.config(teacher, reviews, cache, export=export, student=shape)
    run = run_distill(config, tmp_path / "run", progress=Silent())
    assert run.record.exports == []
    assert not list((tmp_path / "run").rglob("*.onnx"))
    (warning,) = [w for w in run.record.warnings if "ONNX" in w]
    assert "\n" not in warning
    assert (tmp_path / "run" / "student" / "config.json").is_file()
    assert Run.open(tmp_path / "run").record.student.score == run.record.student.score
