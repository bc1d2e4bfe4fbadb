"""What works with each family of models, and what is refused, found by trying: docs/families.md.

Write it again with `PYTHONPATH=tests python -m families.table`, which takes some minutes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["STILLHOUSE_PRECISION"] = "float32"  # the table is to be the same on every machine

import torch

import tiny
from families import zoo
from stillhouse.core.config import FinetuneConfig
from stillhouse.core.errors import StillhouseError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.evaluation import efficiency
from stillhouse.export import onnx_runner, quantize_int8
from stillhouse.flows.dry_run import two_rows
from stillhouse.measure import to_onnx
from stillhouse.models.load import load_classifier, load_tokenizer
from stillhouse.runs import run_distill, run_finetune

DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"
WORKS = "works"
HEAD = """# Families of models

What works with classifiers of {count} of the families that transformers has, found by trying each
with a tiny random model. `PYTHONPATH=tests python -m families.table` writes this page; a slow test
compares it with what it finds. "Refused" is one line, whose text is below: before anything is
trained, or (of exports) as a warning beside the finished student.

- Distil by layers: a student of some of the layers (`--student layers=2`), with their weights. By
  width: a fresh, smaller student (`--student width=16`). In both the student loads from its folder.
- ONNX: the file is written and gives PyTorch's scores. int8: it is made of that one, and runs.
- `precision: auto` becomes float32 for families that can't compute in bf16 (DeBERTa's first
  version); a note says so.
- Some families don't leave padding out: their answers to a row change with the rows that share its
  batch. They are refused as teachers; where one is trained, a warning says so.

"""


@dataclass(frozen=True)
class Place:
    """Where a family's model, the data and the results of its trials are."""

    family: str
    model: Path
    data: Path
    root: Path


def _finetune(place: Place) -> None:
    values = tiny.settings(place.model, place.data, place.root / "cache")
    given = {name: values[name] for name in ("data", "cache")}
    given["training"] = {**values["training"], "steps": 2}
    config = parse(FinetuneConfig, {**given, "model": str(place.model), "resamples": 20})
    run_finetune(config, place.root / "finetuned", progress=Silent())


def _distil(place: Place, out: str, **shape: Any) -> None:
    config = tiny.config(
        place.model, place.data, place.root / "cache", student={"layers": None, **shape},
        training={"steps": 2}, evaluation={"resamples": 20},
    )  # fmt: skip
    run_distill(config, place.root / out, progress=Silent())
    load_classifier(str(place.root / out))


def _onnx(place: Place) -> None:
    student = place.root / "layers" / "student"
    model = student if student.is_dir() else place.model  # fewer layers are exported sooner
    to_onnx(model, place.root / "onnx", progress=Silent())


def _int8(place: Place) -> None:
    plain, small = (place.root / "onnx" / name for name in ("model.onnx", "model-int8.onnx"))
    if not plain.exists():
        _onnx(place)
    batch = two_rows("classification", load_tokenizer(str(place.model)), 12)
    onnx_runner(quantize_int8(plain, small))(batch.inputs)


TRIALS: dict[str, Callable[[Place], None]] = {
    "fine-tune": _finetune,
    "distil by layers": partial(_distil, out="layers", layers=zoo.LAYERS // 2),
    "distil by width": partial(_distil, out="width", width=zoo.WIDTH // 2),
    "ONNX": _onnx,
    "int8": _int8,
}
QUICK = ("fine-tune", "distil by layers", "distil by width")


def place_of(family: str, root: Path) -> Place:
    """A tiny model of a family, and rows for it."""
    model = zoo.save(root / family, family)
    return Place(family, model, tiny.reviews(root / "reviews.csv", 60), root)


def cell(place: Place, column: str) -> str:
    """`works`, or the one line that says why not. Any other error is one of ours, and is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TRIALS[column](place)
    except StillhouseError as error:
        return str(error).replace(str(place.root), "")
    return WORKS


def row(family: str) -> dict[str, str]:
    """A family's cells by column."""
    with tempfile.TemporaryDirectory() as folder:
        place = place_of(family, Path(folder))
        return {column: cell(place, column) for column in TRIALS}


def page(rows: dict[str, dict[str, str]]) -> str:
    """The page in Markdown."""
    reasons: dict[str, int] = {}
    lines = [f"| family | {' | '.join(TRIALS)} |", "|---" * (len(TRIALS) + 1) + "|"]
    for family, cells in rows.items():
        shown = [
            WORKS if text == WORKS else f"refused ({reasons.setdefault(text, len(reasons) + 1)})"
            for text in cells.values()
        ]
        lines.append(f"| {family} | {' | '.join(shown)} |")
    told = [f"{number}. {text}" for text, number in reasons.items()]
    return HEAD.format(count=len(rows)) + "\n".join([*lines, "", *told]) + "\n"


def cells_of(text: str) -> dict[str, dict[str, str]]:
    """What a page says: cells by family and column, without the reasons."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    (_, *columns), *rows = found
    return {
        family: dict(zip(columns, [cell.split(" ")[0] for cell in cells], strict=True))
        for family, *cells in rows
    }


def main(families: Sequence[str]) -> None:
    torch.set_num_threads(1)
    efficiency.peak_memory = lambda folder, tokens: 1
    efficiency.time_all = partial(efficiency.time_all, rounds=efficiency.FEWEST)
    rows: dict[str, dict[str, str]] = {}
    for family in families:
        rows[family] = row(family)
        print(family, *rows[family].values(), sep="\n    ", flush=True)
        DOCS.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or zoo.FAMILIES)
