"""A run without measured speed has a record and a report all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import stillhouse as sh
from stillhouse.core.progress import Silent


@pytest.mark.slow
def test_no_speed_no_export(distil: Callable, tmp_path: Path) -> None:
    config = distil().model_dump()
    for key in ("flow", "teacher", "data", "student"):
        config.pop(key)
    config |= {"evaluation": {"seeds": [0], "efficiency": False, "resamples": 50}}
    made = distil()
    for onnx in (False, True):
        out = tmp_path / f"run-{onnx}"
        run = sh.distill(made.teacher, made.data, student=sh.layers(1), out=out, progress=Silent(),
                         **(config | {"export": {"onnx": onnx}}))  # fmt: skip
        assert run.record.student.latency_ms is None
        assert len(run.record.exports) == 2 * onnx
        assert "not measured" in (out / "report.html").read_text()
