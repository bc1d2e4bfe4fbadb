"""What works with each family of models, and what is refused, found by trying: docs/families.md.

Write it again with `PYTHONPATH=tests python -m families.table docs/families.md`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("STILLHOUSE_PRECISION", "float32")

import tiny
from families import zoo
from stillhouse.core.config import FinetuneConfig
from stillhouse.core.errors import StillhouseError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.measure import to_onnx
from stillhouse.models.load import load_classifier
from stillhouse.runs import run_distill, run_finetune

COLUMNS = ("fine-tune", "distil by layers", "distil by width", "ONNX", "int8")
WORKS = "works"


@dataclass(frozen=True)
class Place:
    """Where a family's model, the data and the results of its trials are."""

    model: Path
    data: Path
    root: Path


def _finetune(place: Place) -> None:
    values = tiny.settings(place.model, place.data, place.root / "cache")
    kept = {name: values[name] for name in ("data", "training", "cache")}
    kept["training"] = {**kept["training"], "steps": 2}
    config = parse(FinetuneConfig, {**kept, "model": str(place.model), "resamples": 20})
    run_finetune(config, place.root / "finetuned", progress=Silent())


def _distil(place: Place, out: str, **shape: Any) -> None:
    config = tiny.config(
        place.model, place.data, place.root / "cache", student=shape,
        training={"steps": 2}, evaluation={"resamples": 20},
    )  # fmt: skip
    run_distill(config, place.root / out, progress=Silent())
    load_classifier(str(place.root / out))


def _export(place: Place, *, int8: bool) -> None:
    to_onnx(place.model, place.root / f"onnx-{int8}", int8=int8, progress=Silent())


TRIALS: dict[str, Callable[[Place], None]] = {
    "fine-tune": _finetune,
    "distil by layers": partial(_distil, out="layers", layers=zoo.LAYERS // 2),
    "distil by width": partial(_distil, out="width", layers=2, width=zoo.WIDTH // 2),
    "ONNX": partial(_export, int8=False),
    "int8": partial(_export, int8=True),
}


def cell(place: Place, column: str) -> str:
    """`works`, or the one line that says why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TRIALS[column](place)
    except StillhouseError as error:
        return str(error)
    return WORKS


def row(family: str, root: Path) -> dict[str, str]:
    """A family's cells by column."""
    data = tiny.reviews(root / "reviews.csv", 60)
    place = Place(zoo.save(root / family, family), data, root)
    return {column: cell(place, column) for column in COLUMNS}
