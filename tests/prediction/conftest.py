"""Models whose answers are asked for, in a folder and as ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import stillhouse as sh
import tiny
from stillhouse.core.inference import Inference, read_inference, write_inference
from stillhouse.core.progress import Silent

LENGTH = 12  # tokens, fewer than some rows have


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """`exported("classification")`: a model's folder, trained (so it says) on 12 tokens, and the
    folder of its ONNX files."""
    root, made = tmp_path_factory.mktemp("exported"), {}

    def make(task: str) -> tuple[Path, Path]:
        if task not in made:
            folder, onnx = root / task, root / f"{task}-onnx"
            if task == "span":
                tiny.save_spans(folder)
            else:
                tiny.save(folder, labels=["value"] if task == "regression" else ["no", "so", "yes"])
            write_inference(
                folder, Inference(task=task, max_length=24 if task == "span" else LENGTH)
            )
            sh.to_onnx(folder, onnx, int8=task == "classification", progress=Silent())
            assert read_inference(onnx) is not None
            made[task] = folder, onnx
        return made[task]

    return make
